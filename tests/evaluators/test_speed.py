from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from tests.accel.techniques import DENSE, TECHNIQUES
from tests.conftest import build_tiny
from varsearch.accel import Accelerated
from varsearch.errors import TargetError
from varsearch.evaluators.devices import local_device
from varsearch.evaluators.speed import (
    SpeedEvaluator,
    is_local,
    median_interval,
    protocol_for,
    time_against_dense,
)
from varsearch.evaluators.trace import trace
from varsearch.measurement import Measurement, Origin, SpeedProtocol
from varsearch.models.image_model import ImageModel
from varsearch.models.layers import FFN
from varsearch.policy import Policy, ScalePolicy
from varsearch.target import Target, find_device

MODEL = build_tiny()
T = Target(device="cpu", dtype="float32", batch_size=4)
CHEAP = Policy(
    layers=DENSE.layers,
    scales=(ScalePolicy(guidance="off"), *[ScalePolicy(run=False)] * 3, ScalePolicy(guidance="off")),
)


def protocol(repeats: int) -> SpeedProtocol:
    return protocol_for(T).model_copy(update={"repeats": repeats})


def weights_digest(model: ImageModel) -> str:
    tensors = [*model.transformer.state_dict().values(), *model.tokenizer.state_dict().values()]
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()


def by_metric(measurements: tuple[Measurement, ...]) -> dict[str, Measurement]:
    return {m.metric: m for m in measurements}


@pytest.fixture
def clock_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second with each token that a feed-forward layer runs on."""
    now, forward = 0.0, FFN.forward

    def counted(self: FFN, x_BLD: Tensor) -> Tensor:
        nonlocal now
        now += x_BLD.shape[0] * x_BLD.shape[1]
        return forward(self, x_BLD)

    monkeypatch.setattr(FFN, "forward", counted)
    monkeypatch.setattr("varsearch.evaluators.speed.time", SimpleNamespace(perf_counter=lambda: now))


TOKENS, CHEAP_TOKENS = 2 * (1 + 4 + 9 + 16 + 36), 1 + 36
"""That a layer runs on per image: with guidance, and of the scales that are left without it."""


@pytest.mark.usefixtures("clock_of_work")
def test_a_policy_that_does_less_is_measured_faster() -> None:
    evaluator = SpeedEvaluator(MODEL, protocol(7))
    found = evaluator.evaluate(CHEAP)
    metrics = by_metric(found.measurements)
    assert metrics["latency_ms"].value == 1e3 * T.batch_size * 3 * CHEAP_TOKENS
    assert metrics["speedup"].value == TOKENS / CHEAP_TOKENS
    for name in ("latency_ms", "speedup"):
        one = metrics[name]
        assert one.low is not None and one.high is not None and one.n == 7
        assert 0 < one.low <= one.value <= one.high
    assert {m.origin for m in found.measurements} == {Origin.MEASURED}
    assert (found.policy, found.protocol) == (CHEAP.digest, evaluator.protocol.digest)


def test_memory_and_flops_are_those_of_the_trace() -> None:
    found = SpeedEvaluator(MODEL, protocol(1)).evaluate(TECHNIQUES["kv4-ragged"]).values
    exact = trace(MODEL, TECHNIQUES["kv4-ragged"], T)
    for metric in ("peak_bytes", "kv_bytes", "weight_bytes", "flops", "attention_flops"):
        assert found[metric] == getattr(exact, metric)


def test_the_model_is_as_it_was() -> None:
    before, modules = weights_digest(MODEL), [*MODEL.transformer.modules()]
    SpeedEvaluator(MODEL, protocol(1)).evaluate(TECHNIQUES["w4-group"])
    assert weights_digest(MODEL) == before
    assert all(a is b for a, b in zip(modules, MODEL.transformer.modules(), strict=True))


@pytest.mark.usefixtures("clock_of_work")
def test_a_policy_is_timed_on_the_model_as_it_is() -> None:
    before = weights_digest(MODEL)
    timed = time_against_dense(MODEL, CHEAP, 2)
    assert len(timed.dense_s) == len(timed.policy_s) == 9
    assert timed.low == timed.speedup == timed.high == TOKENS / CHEAP_TOKENS
    assert timed.latency_ms == 1e3 * 2 * 3 * CHEAP_TOKENS and timed.dense_latency_ms == 1e3 * 2 * 3 * TOKENS
    assert timed.machine == protocol_for(T).machine
    assert weights_digest(MODEL) == before


def test_rounds_are_paired_and_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = SpeedEvaluator(MODEL, protocol(4))
    order: list[str] = []
    # The machine slows down by half in each round; ratios within a round stay at 2, 2, 2 and 4.
    times = {"dense": iter((9, 4, 8, 16, 64)), "policy": iter((9, 2, 4, 8, 16))}

    def seconds(applied: Accelerated, _: int) -> float:
        order.append("dense" if applied is evaluator.dense else "policy")
        return float(next(times[order[-1]]))

    monkeypatch.setattr("varsearch.evaluators.speed.batch_seconds", seconds)
    metrics = by_metric(evaluator.evaluate(TECHNIQUES["kv-half"]).measurements)
    assert order == ["dense", "policy"] + ["policy", "dense", "dense", "policy"] * 2
    latency, speedup = metrics["latency_ms"], metrics["speedup"]
    assert (latency.low, latency.value, latency.high) == (3500, 6000, 10000)
    assert (speedup.low, speedup.value, speedup.high) == (2, 2, 4)


@given(st.lists(st.floats(0.1, 10), min_size=6, max_size=60, unique=True))
def test_the_interval_of_a_median_covers_and_is_not_wider_than_needed(values: list[float]) -> None:
    found, ordered, n = median_interval(values), sorted(values), len(values)
    k = ordered.index(found[0])
    assert found[1] == ordered[n - 1 - k]
    assert 2 * binom.cdf(k, n, 0.5) <= 0.05 < 2 * binom.cdf(k + 1, n, 0.5)


def test_with_few_values_the_interval_is_the_range() -> None:
    assert median_interval([3, 1, 2]) == (1, 3)
    assert median_interval([5]) == (5, 5)


def test_a_target_that_is_elsewhere_is_refused(no_gpu: None) -> None:
    elsewhere = Target(device="4090", dtype="float16", batch_size=4)
    assert protocol_for(elsewhere).origin is Origin.PREDICTED
    with pytest.raises(TargetError, match=r"4090 cannot be measured here, on .*: predict it instead"):
        SpeedEvaluator(MODEL, protocol_for(elsewhere))
    with pytest.raises(TargetError, match="cannot be measured here"):
        SpeedEvaluator(MODEL, protocol_for(elsewhere).model_copy(update={"origin": Origin.MEASURED, "repeats": 3}))


def test_a_protocol_of_another_machine_or_thread_count_is_refused() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        elsewhere = protocol_for(T)
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(TargetError, match=rf"asks for .* {threads + 1} threads, .* but this is .* measure there"):
        SpeedEvaluator(MODEL, elsewhere)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture(params=["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 PCIe"])
def gpu_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: request.param)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (8, 9))
    yield request.param


def test_only_a_gpu_of_exactly_that_name_is_local(gpu_name: str) -> None:
    desktop = gpu_name == "NVIDIA GeForce RTX 4090"
    assert is_local(find_device("4090")) == desktop
    assert not is_local(find_device("h100"))
    assert is_local(find_device("cpu"))
    assert local_device().label == gpu_name, "its own row"
    found = protocol_for(Target(device="4090", dtype="float16", batch_size=4))
    assert found.origin is (Origin.MEASURED if desktop else Origin.PREDICTED)
    assert not desktop or found.machine.startswith("NVIDIA GeForce RTX 4090, torch ")


def test_without_a_gpu_the_cpu_is_the_local_device(no_gpu: None) -> None:
    assert local_device() == find_device("cpu")
    assert not is_local(find_device("4090"))
    measured = protocol_for(T)
    assert measured.origin is Origin.MEASURED and "thread" in measured.machine and "torch" in measured.machine


FRESH = """
import resource
import torch
from varsearch.evaluators.speed import batch_seconds, dense_twin, interleaved
from varsearch.models import zoo

torch.set_num_threads(1)
dense = dense_twin(zoo.load("mnist"))
interleaved(dense, dense, 16, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
batch_seconds(dense, 16)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's heap")
def test_a_timed_batch_asks_the_system_for_no_memory() -> None:
    """Not even in a process that has drawn nothing before, where it took 35,000 pages."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000
