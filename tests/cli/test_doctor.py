"""`varsearch doctor` on this machine, and on machines where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from varsearch import doctor
from varsearch.cli.main import main
from varsearch.doctor import Check, Found, examine


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray: starting it takes seconds, and other tests do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VARSEARCH_LIBRARY", str(tmp_path / "policies"))
    monkeypatch.setattr(doctor, "_ray", lambda: Found("ok", "stood in"))


def found(storage: str = "varsearch.db") -> dict[str, Check]:
    return {check.name: check for check in examine(storage)}


@pytest.mark.slow
def test_this_machine_can_run_the_main_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["can_run"] is True
    by_name = {check["name"]: check for check in told["checks"]}
    assert {"device", "triton product", "techniques", "ray", "database", "library", "attention sdpa"} <= by_name.keys()
    assert by_name["attention reference"]["status"] == by_name["attention sdpa"]["status"] == "ok"
    assert not any(check["status"] == "error" for check in told["checks"])
    assert all(check["advice"] for check in told["checks"] if check["status"] != "ok")
    assert not list(tmp_path.glob("*.db")), "nothing is left behind"


def test_an_error_is_the_exit_code_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = [Check("database", "error", "no room", "make room"), Check("ray", "ok", "fine", "")]
    monkeypatch.setattr(doctor, "examine", lambda storage: iter(failed))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "make room" in out and "does not run here: database" in out


def test_a_kernel_that_is_wrong_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)

    sdpa = doctor.BACKENDS["sdpa"]
    monkeypatch.setitem(doctor.BACKENDS, "sdpa", type(sdpa)("sdpa", wrong, sdpa.unsupported))
    got = doctor._attention("sdpa", torch.device("cpu"))
    assert got.status == "error" and "a mask with an empty row" in got.told and "--attention" in got.advice


def test_a_kernel_that_gives_nan_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    sdpa = doctor.BACKENDS["sdpa"]
    broken = type(sdpa)("sdpa", lambda q, k, v, mask: torch.full_like(q, torch.nan), sdpa.unsupported)
    monkeypatch.setitem(doctor.BACKENDS, "sdpa", broken)
    assert doctor._attention("sdpa", torch.device("cpu")).status == "error"


def test_a_check_that_raises_tells_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises() -> Found:
        raise RuntimeError("first line\nsecond line")

    assert doctor._tried(raises)[:2] == ("error", "RuntimeError: first line")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.NEEDED, "no-such-package", "pip install it")
    assert doctor._package("no-such-package") == Found("error", "not installed", "pip install it")


def test_a_damaged_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "varsearch.db").write_text("no database")
    assert doctor._tried(lambda: doctor._database("varsearch.db")).status == "error"
