from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.accel.techniques import DENSE, TECHNIQUES
from tests.conftest import build_tiny
from varsearch.errors import EvaluationError, PolicyError, TargetError
from varsearch.evaluators.cost_model import KINDS, CostModel, kind_of, latency_seconds, predicted_protocol, work_seconds
from varsearch.evaluators.trace import Op, trace
from varsearch.measurement import METRICS, Origin
from varsearch.policy import Policy
from varsearch.target import Device, Target, devices, find_device

MODEL = build_tiny()
T = Target(device="4090", dtype="float16", batch_size=8)


def device(kind: str = "cpu", launch_us: float = 0, **efficiency: float) -> Device:
    """1 TFLOP/s in float32, 2 in half precision, 1 GB/s."""
    return Device.model_validate(
        {
            "name": "toy", "label": "Toy", "kind": kind, "gb_per_s": 1, "launch_us": launch_us, "memory_gb": 1,
            "tflops": {"float32": 1, "float16": 2, "bfloat16": 2}, "sources": {}, "efficiency": efficiency,
        }
    )  # fmt: skip


def op(flops: float = 0, bytes: float = 0, name: str = "mm", dtype: str = "float32", attention: bool = False) -> Op:
    return Op(name, "", 0, attention, dtype, int(flops), int(bytes))


@pytest.mark.parametrize(
    ("one", "milliseconds"),
    [
        (op(flops=5e9, bytes=4e6), 5),
        (op(flops=5e9, bytes=6e6), 6),
        (op(flops=5e9, dtype="float16"), 2.5),
        (op(flops=5e9, dtype="int32"), 2.5),  # not in the table: the target's rate
        (op(bytes=3e6, name="gelu"), 12),
        (op(flops=5e9, bytes=1, attention=True), 10),
        (op(bytes=3e6, name="gelu", attention=True), 6),
        (op(), 0),
    ],
)
def test_an_operator_takes_the_longer_of_arithmetic_and_traffic(one: Op, milliseconds: float) -> None:
    assert work_seconds(one, device(transcendental=0.25, attention=0.5), T) == pytest.approx(milliseconds * 1e-3)


def test_a_cpu_pays_for_every_launch() -> None:
    ops = (op(flops=1e9), op(flops=1e6), op(flops=1e6))
    assert latency_seconds(ops, device("cpu", launch_us=100), T) == pytest.approx(1.002e-3 + 300e-6)


def test_a_gpu_launches_while_it_computes() -> None:
    gpu = device("cuda", launch_us=100)
    # The queue never runs dry behind the long operator.
    assert latency_seconds((op(flops=1e9), op(flops=1e6), op(flops=1e6)), gpu, T) == pytest.approx(100e-6 + 1.002e-3)
    # Short operators wait for their launches, and the long one at the end for its own.
    assert latency_seconds((op(flops=1e6), op(flops=1e6), op(flops=1e9)), gpu, T) == pytest.approx(300e-6 + 1e-3)


ops = st.lists(st.builds(op, flops=st.floats(0, 1e9), bytes=st.floats(0, 1e6)), min_size=1, max_size=20).map(tuple)


@given(ops, st.floats(0, 1000))
def test_a_queue_is_bounded_by_launches_and_by_work(found: tuple[Op, ...], launch_us: float) -> None:
    gpu = latency_seconds(found, device("cuda", launch_us), T)
    work, launches = sum(work_seconds(one, device(), T) for one in found), len(found) * launch_us * 1e-6
    assert max(work, launches) * (1 - 1e-9) <= gpu <= latency_seconds(found, device("cpu", launch_us), T) * (1 + 1e-9)


def test_kinds_do_not_overlap_and_are_the_tables() -> None:
    names = [name for group in KINDS.values() for name in group.split()]
    assert len(names) == len(set(names))
    assert kind_of(op(name="topk")) == "selection" and kind_of(op(name="addmm")) == "plain"
    known = {*KINDS, "attention"}
    assert all(set(row.efficiency) <= known for row in devices().values())
    assert set(devices()["cpu"].efficiency) == known


def test_every_figure_of_the_table_has_a_source() -> None:
    assert {"4090", "3090", "l40s", "a100", "h100", "h200", "cpu"} <= devices().keys()
    for row in devices().values():
        figures = {"tflops", "gb_per_s", "launch_us", "memory_gb"} | ({"efficiency"} if row.efficiency else set())
        assert row.sources.keys() == figures
        assert set(row.tflops) == {"float32", "float16", "bfloat16"}
        assert min(row.gb_per_s, row.launch_us, row.memory_gb, *row.tflops.values(), *row.efficiency.values()) > 0
        start = "https://" if row.kind == "cuda" else "python -m benchmarks.device"
        assert all(source.startswith(start) for source in row.sources.values())


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TargetError, match="unknown target '6090': known targets are 4090, 3090"):
        find_device("6090")
    with pytest.raises(TargetError, match="unknown target"):
        predicted_protocol(Target(device="tpu", dtype="float16", batch_size=1))


def test_evidence_is_complete_and_marked_as_predicted() -> None:
    model = CostModel(MODEL, predicted_protocol(T))
    found = model.evaluate(TECHNIQUES["unguided-last"])
    assert (found.kind, found.policy) == ("speed", TECHNIQUES["unguided-last"].digest)
    assert (found.model, found.protocol) == (MODEL.spec.fingerprint, model.protocol.digest)
    assert found.values.keys() == {
        "latency_ms", "speedup", "peak_bytes", "kv_bytes", "weight_bytes", "flops", "attention_flops",
    }  # fmt: skip
    assert found.values.keys() <= METRICS.keys()
    assert {m.origin for m in found.measurements} == {Origin.PREDICTED}
    exact = trace(MODEL, TECHNIQUES["unguided-last"], T)
    assert found.values["peak_bytes"] == exact.peak_bytes
    assert found.values["latency_ms"] == 1e3 * latency_seconds(exact.ops, find_device("4090"), T)
    assert model.protocol.origin is Origin.PREDICTED and model.protocol.repeats == 0


def test_less_work_is_faster_and_dense_is_the_unit() -> None:
    model = CostModel(MODEL, predicted_protocol(T))
    dense = model.evaluate(DENSE).values
    assert dense["speedup"] == 1
    for name in ("skip-middle", "skip-last", "unguided"):
        found = model.evaluate(TECHNIQUES[name]).values
        assert found["speedup"] == dense["latency_ms"] / found["latency_ms"] > 1


def test_predictions_repeat_exactly() -> None:
    first, second = (CostModel(MODEL, predicted_protocol(T)).evaluate(TECHNIQUES["kv4-ragged"]) for _ in range(2))
    assert first.measurements == second.measurements


def test_new_figures_give_another_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    before = predicted_protocol(T)
    faster = find_device("4090").model_copy(update={"gb_per_s": 2000.0})
    monkeypatch.setattr("varsearch.evaluators.cost_model.find_device", lambda _: faster)
    assert predicted_protocol(T).digest != before.digest


def test_a_batch_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small = find_device("4090").model_copy(update={"memory_gb": 1e-6})
    monkeypatch.setattr("varsearch.evaluators.cost_model.find_device", lambda _: small)
    with pytest.raises(EvaluationError, match="choose a smaller batch"):
        CostModel(MODEL, predicted_protocol(T)).evaluate(DENSE)


def test_a_policy_of_another_shape_is_refused() -> None:
    with pytest.raises(PolicyError, match="policy has 2 layers"):
        CostModel(MODEL, predicted_protocol(T)).evaluate(Policy.dense(2, 5))
