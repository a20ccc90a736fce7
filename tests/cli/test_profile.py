from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.search.support.fake_profile import Calls, fake_evaluators
from varsearch.cli.main import main


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    monkeypatch.chdir(tmp_path)
    return fake_evaluators(monkeypatch)


def test_one_screen_and_progress_on_stderr(capsys: pytest.CaptureFixture[str], calls: Calls) -> None:
    assert main(["profile", "--target", "4090"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert len(lines) <= 25 and max(map(len, lines)) <= 160
    for kind in ("bits", "keep", "kv_bits", "window", "tokens", "sharing", "skip", "guidance", "refiner"):
        assert sum(line.split()[:1] == [kind] for line in lines) == 1, kind
    for word in ("PREDICTED", "484 settings", "interaction of 10 pairs", "latency of 12 policies: R²", "median error"):
        assert word in shown.out
    assert "25/614 measured, ETA " in shown.err and "614/614 measured, ETA 0m00s" in shown.err
    count = len(calls)
    assert main(["profile", "--target", "4090"]) == 0
    assert capsys.readouterr().out == shown.out and len(calls) == count


def test_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--target", "4090", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["settings"]) == 484 and len(found["interactions"]) == 10 and len(found["policies"]) == 12
    setting = found["settings"]["L3H1.keep=0.5"]
    assert set(setting) == {"loss", "shift", "distance", "nll", "change"} and setting["loss"]["error"] > 0
    assert set(found["fits"]) == {"latency", "peak_memory", "log_loss"}
    assert found["cost"]["speed"]["origin"] == "predicted" and found["quality"]["images"] == 32
    assert len(found["heads"]) == 5 * 3  # two, three or four heads at each share


def test_an_interruption_is_one_line(capsys: pytest.CaptureFixture[str], calls: Calls) -> None:
    calls.stop = 3
    assert main(["profile", "--target", "4090"]) == 130
    assert capsys.readouterr().err.endswith(
        "error: interrupted; what was measured is stored, and the same command goes on\n"
    )


def test_an_unknown_target_is_refused_before_anything(capsys: pytest.CaptureFixture[str], calls: Calls) -> None:
    assert main(["profile", "--target", "abacus"]) == 5
    assert "unknown target 'abacus'" in capsys.readouterr().err and not calls
