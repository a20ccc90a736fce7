"""Benchmarks that others rely on, run small: what they compare is alike, and what they print is what happened."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import dense, models, published_loop, stopwatch
from benchmarks.assumed import assumed
from benchmarks.model import large_model
from benchmarks.techniques import CLAIMS, TARGET
from tests.accel.families import infinity
from tests.conftest import build_tiny
from tests.exact import exact
from varsearch.accel import labels_for
from varsearch.evaluators.speed import dense_twin
from varsearch.evaluators.trace import trace
from varsearch.models import sampling
from varsearch.models.image_model import ImageModel, SamplingDefaults
from varsearch.models.vqvae import VQVAE
from varsearch.policy import Policy
from varsearch.space.presets import PRESETS, presets


def test_every_preset_has_a_claim_and_no_claim_is_left_over() -> None:
    assert list(CLAIMS) == list(PRESETS)


def test_the_assumed_calibration_gives_every_preset_a_policy_of_its_own() -> None:
    model = large_model()
    spec = model.spec
    found, missing = presets(spec, assumed(spec), [model.sibling("half").spec])
    assert not missing
    for policy in found.values():
        policy.check(spec)


@pytest.mark.slow
def test_the_assumed_decay_makes_litevar_save_what_its_paper_reports() -> None:
    model = large_model()
    spec = model.spec
    dense = Policy.dense(spec.n_layers, len(spec.scales))
    cost, full = (trace(model, policy, TARGET) for policy in (PRESETS["litevar"](spec, assumed(spec), ()), dense))
    assert 1 - cost.attention_flops / full.attention_flops == pytest.approx(0.852, abs=0.01)


FILTERED = replace(exact(), sampling=SamplingDefaults(guidance=1.5, top_k=20, top_p=0.9))
LABELS = labels_for(2, 10)


@pytest.mark.numerics
def test_the_published_loop_draws_the_same_tokens() -> None:
    assert dense.check_tokens(FILTERED, LABELS) == 2 * 66


@pytest.mark.numerics
def test_the_likelihood_is_the_same_by_both_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny()
    tokens = [torch.randint(32, (2, n), generator=torch.Generator().manual_seed(0)) for n in model.spec.tokens]
    want = model.likelihood(LABELS, tokens)
    monkeypatch.setattr("varsearch.linear.LARGE", 0)  # even the tiny model's products go to oneDNN
    torch.testing.assert_close(model.likelihood(LABELS, tokens), want, atol=1e-5, rtol=0)


def test_other_tokens_end_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = published_loop.draw

    def off_by_one_filter(logits_NLV: Tensor, generator: torch.Generator, top_k: int, top_p: float) -> Tensor:
        return draw(logits_NLV, generator, top_k - 15, top_p)

    monkeypatch.setattr(published_loop, "draw", off_by_one_filter)
    with pytest.raises(SystemExit, match=r"as PyTorch draws other tokens than the published loop: \d+ of scale \d"):
        dense.check_tokens(FILTERED, LABELS)


def test_cache_bytes_are_those_of_stored_tokens() -> None:
    entries = 2 * 2 * 3 * 64
    assert dense.cache_bytes(FILTERED, "float32", 2) == (entries * 66 * (4 + 4), entries * 30 * (4 + 4))
    assert dense.cache_bytes(FILTERED, "float16", 2) == (entries * 66 * (4 + 2), entries * 30 * (2 + 2))


def test_the_report_has_a_row_per_run(capsys: pytest.CaptureFixture[str]) -> None:
    dense.report(FILTERED, 2, rounds=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[3:6]] == list(dense.RUNS)
    assert "1.00x (1.00-1.00)" in lines[3] and lines[-1].endswith("30.3%")


@pytest.mark.parametrize("build", [build_tiny, infinity])
def test_a_model_is_measured_in_full(
    build: Callable[[], ImageModel],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build()
    models.run(model, "tiny", 2, 1, tmp_path, ("small",))
    monkeypatch.setattr(models, "presets", lambda *_: ({"broken": None}, {"absent": "why"}))
    models.run(model, "broken", 2, 1, tmp_path, ())
    (file,) = tmp_path.glob("broken-b2-*.json")
    broken = json.loads(file.read_text())["presets"]
    assert broken["absent"] == {"refused": "why"} and broken["broken"]["failed"].startswith("AttributeError: ")
    (file,) = tmp_path.glob("tiny-b2-*.json")
    found = json.loads(file.read_text())
    assert list(found["presets"]) == list(PRESETS)
    for name, got in found["presets"].items():
        assert got["latency_ms"] > 0 and got["peak_bytes"] > got["kv_bytes"] > 0, name
    assert {name: "latency_ms" in got for name, got in found["attention"].items()} == {
        "reference": True, "sdpa": True, "cudnn": False, "flash-attn": False,
    }  # fmt: skip
    assert "not installed" in found["attention"]["flash-attn"]["refused"]
    assert found["attention"]["reference"]["attention"] == "reference"
    for shares in (found["shares"], *(got["shares"] for got in found["presets"].values())):
        assert list(shares) == [*stopwatch.PARTS, "rest"] and min(shares.values()) > 0
        assert sum(shares.values()) == pytest.approx(1)
    assert found["packages"]["torch"] == torch.__version__
    modules = [*model.transformer.modules(), *model.tokenizer.modules()]
    assert not any({"forward", "normed", "decode"} & module.__dict__.keys() for module in modules)
    assert "written to" in capsys.readouterr().out


def test_shares_follow_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, decode, filtered = 0.0, VQVAE.decode, sampling.filter_logits

    def after(seconds: float, result: Tensor) -> Tensor:
        nonlocal now
        now += seconds
        return result

    monkeypatch.setattr("time.perf_counter", lambda: now)
    monkeypatch.setattr(VQVAE, "decode", lambda self, f: after(10, decode(self, f)))
    monkeypatch.setattr(sampling, "filter_logits", lambda *given: after(1, filtered(*given)))
    shares = stopwatch.shares(dense_twin(build_tiny()), 1)
    # Five scales are drawn and decoded once.
    assert (shares["tokenizer"], shares["sampling"]) == pytest.approx((10 / 15, 5 / 15))
    assert shares["attention"] == shares["linears"] == shares["AdaLN"] == 0


def test_a_part_within_another_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    watch = stopwatch.Stopwatch(torch.device("cpu"))
    inner = watch.timed("linears", lambda: None)
    watch.timed("AdaLN", inner)()
    inner()
    assert (watch.seconds("AdaLN"), watch.seconds("linears")) == (1, 1)


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    models.main()
    assert capsys.readouterr().out == "This benchmark needs a CUDA device; none is here, so nothing was measured.\n"


def test_models_are_measured_without_the_search_dependencies() -> None:
    blocked = "ray optuna sqlalchemy alembic torchmetrics scipy triton"
    script = f"import sys; sys.modules.update(dict.fromkeys({blocked.split()!r})); import benchmarks.models"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
