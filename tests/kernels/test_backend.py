"""Who computes quantized linears, and that whoever says so is told the truth."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tests.accel.techniques import DENSE, TECHNIQUES
from tests.conftest import build_tiny
from tests.kernels import cases
from varsearch.accel import apply, default_backend
from varsearch.errors import TargetError, UsageError
from varsearch.evaluators.cost_model import CostModel, latency_seconds, predicted_protocol
from varsearch.evaluators.speed import SpeedEvaluator, protocol_for
from varsearch.evaluators.trace import Op, Trace, record, trace
from varsearch.kernels.quantized_linear import FUSED_ROWS, quantized_linear, supported
from varsearch.policy import LayerPolicy, Quantization, Weights
from varsearch.target import Target, find_device

MODEL = build_tiny()
QUANTIZED = ["w8a8", "w6", "w4-group", "w3-ada"]
each_technique = pytest.mark.parametrize("name", QUANTIZED)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@cache
def on(device: str, name: str, batch_size: int = 2) -> Trace:
    return trace(MODEL, TECHNIQUES[name], Target(device=device, dtype="float32", batch_size=batch_size))


@pytest.mark.numerics
def test_a_model_gives_the_same_likelihood(interpreter: Callable[..., Any]) -> None:
    mixed = Weights(qkv=Quantization(bits=8, activation_bits=8), proj=Quantization(bits=3), fc1=Quantization(bits=6))
    grouped = Weights(fc2=Quantization(bits=4, group=64))
    policy = DENSE.model_copy(update={"layers": tuple(LayerPolicy(weights=w) for w in (mixed, grouped, Weights()))})
    kernel, definition = (interpreter(cases.likelihood, backend, policy) for backend in ("triton", "torch"))
    torch.testing.assert_close(kernel, definition, atol=1e-5, rtol=0)
    assert not torch.equal(kernel, definition)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else in the kernels' place, to run what is around them here."""
    pytest.importorskip("triton")
    folder = "varsearch.kernels.quantized_linear"
    monkeypatch.setattr(f"{folder}.require_supported", lambda *_: None)
    monkeypatch.setattr("varsearch.accel.require_supported", lambda *_: None)
    monkeypatch.setattr(f"{folder}_triton.linear", lambda *operands: operands[-1].zero_())
    monkeypatch.setattr(f"{folder}_triton.expand", lambda *operands: operands[-1].zero_())


@each_technique
@pytest.mark.parametrize("batch_size", [2, 64])
def test_a_gpu_is_traced_with_what_runs_there(name: str, batch_size: int, stand_ins: None) -> None:
    traced = on("4090", name, batch_size)
    with apply(MODEL, TECHNIQUES[name], "triton") as applied:
        assert applied.backend == "triton"
        assert record(applied, batch_size) == traced


@each_technique
@pytest.mark.parametrize("batch_size", [2, 64])
def test_backends_do_the_same_arithmetic_with_fewer_bytes(name: str, batch_size: int) -> None:
    plain, fused = on("cpu", name, batch_size), on("4090", name, batch_size)
    assert fused.flops == plain.flops and fused.attention_flops == plain.attention_flops
    assert fused.weight_bytes == plain.weight_bytes and fused.kv_bytes == plain.kv_bytes
    assert fused.peak_bytes <= plain.peak_bytes
    assert sum(op.bytes for op in fused.ops) < sum(op.bytes for op in plain.ops)
    assert len(fused.ops) < len(plain.ops)
    # At 64 images only scale 0 has few rows.
    names = {op.name for op in fused.ops if op.scale and op.module.startswith("VAR.blocks")}
    assert ("quantized_linear" in names, "expand_weight" in names) == (
        (True, False) if batch_size == 2 else (False, True)
    )


def fc1(found: Trace, scale: int) -> list[Op]:
    return [op for op in found.ops if op.module == "VAR.blocks.1.ffn.fc1" and op.scale == scale]


def test_operators_move_the_packed_weight() -> None:
    weight, scales = 64 * 256 // 2, 2 * 256
    rows = 2 * 2 * 36
    (op,) = fc1(on("4090", "w4-group"), scale=4)
    assert (op.name, op.dtype, op.flops) == ("quantized_linear", "float32", 2 * rows * 64 * 256)
    assert op.bytes == weight + 4 * (rows * 64 + scales + 256 + rows * 256)
    rows = 2 * 64 * 36
    assert rows > FUSED_ROWS
    expansion, product = fc1(on("4090", "w4-group", batch_size=64), scale=4)
    assert (expansion.name, expansion.flops) == ("expand_weight", 0)
    assert expansion.bytes == weight + 4 * (scales + 64 * 256)
    assert (product.name, product.flops) == ("addmm", 2 * rows * 64 * 256)


def test_a_flop_counter_counts_the_operator() -> None:
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(), counter:
        packed = torch.empty(7, 64, dtype=torch.uint8)
        quantized_linear(torch.empty(2, 5, 64), packed, torch.empty(7, 1), None, 8, 64, "triton")
    assert counter.get_total_flops() == 2 * 10 * 64 * 7


def test_predictions_use_the_backend_that_they_name() -> None:
    target = Target(device="4090", dtype="float32", batch_size=8)
    model = CostModel(MODEL, predicted_protocol(target))
    assert "triton" in model.protocol.backend
    assert "torch for quantized" in predicted_protocol(Target(device="cpu", dtype="float32", batch_size=8)).backend
    found = model.evaluate(TECHNIQUES["w8"])
    assert found.environment["backend"] == "triton"
    plain = latency_seconds(on("cpu", "w8", batch_size=8).ops, find_device("4090"), target)
    assert found.values["latency_ms"] < 1e3 * plain


def test_measurements_name_the_backend_that_ran() -> None:
    protocol = protocol_for(Target(device="cpu", dtype="float32", batch_size=1)).model_copy(update={"repeats": 1})
    assert protocol.backend == "eager, torch for quantized linears"
    assert SpeedEvaluator(MODEL, protocol).evaluate(TECHNIQUES["w8"]).environment["backend"] == "torch"
    elsewhere = protocol.model_copy(update={"backend": "eager, triton for quantized linears"})
    with pytest.raises(TargetError, match=r"asks for .* triton for quantized linears, but this is .* torch for"):
        SpeedEvaluator(MODEL, elsewhere)


def test_the_default_is_what_the_device_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with apply(MODEL, DENSE) as applied:
        assert applied.backend == "torch"
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (8, 9))
    assert default_backend(CUDA, torch.float16) == "triton"
    assert default_backend(CUDA, torch.float64) == "torch"
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (7, 5))
    assert default_backend(CUDA, torch.float16) == "torch"
    assert supported(CUDA, torch.float16) == "it needs compute capability 8.0, this GPU has 7.5"


def test_reasons(monkeypatch: pytest.MonkeyPatch, interpreter: Callable[..., Any]) -> None:
    assert interpreter(supported, CPU, torch.bfloat16) is None
    assert supported(CPU, torch.float32) == "it compiles for CUDA devices, not for cpu"
    assert supported(CPU, torch.float64) == "it computes in float16, bfloat16 or float32, not in float64"
    monkeypatch.setitem(sys.modules, "triton", None)
    assert supported(CUDA, torch.float16) == "Triton is not installed (pip install 'varsearch[triton]')"


@pytest.mark.parametrize("name", ["dense", "w8"])
def test_a_named_backend_never_falls_back(name: str) -> None:
    policy = TECHNIQUES[name]
    reason = "backend 'triton' cannot run here: it compiles for CUDA devices, not for cpu"
    with pytest.raises(TargetError, match=reason), apply(MODEL, policy, "triton"):
        pass
    with pytest.raises(UsageError, match="unknown backend 'cuda': expected one of"), apply(MODEL, policy, "cuda"):
        pass


@pytest.mark.parametrize("rows", [1, FUSED_ROWS + 1])
def test_operators_refuse_what_they_cannot_compute(rows: int) -> None:
    packed, scale = torch.zeros(3, 6, dtype=torch.uint8), torch.ones(3, 1)
    with pytest.raises(TargetError, match="cannot run here"):
        quantized_linear(torch.ones(rows, 8), packed, scale, None, 6, 8, "triton")
    with pytest.raises(UsageError, match="got activations with 4 inputs, expected the layer's 8"):
        quantized_linear(torch.ones(2 * rows, 4), packed, scale, None, 6, 8, "triton")
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(UsageError, match="got 6 bytes per output, expected 9"),
    ):
        quantized_linear(torch.ones(rows, 12), packed, scale, None, 6, 12, "triton")


def test_everything_else_works_without_triton() -> None:
    script = """
import sys
sys.modules["triton"] = None
import torch
from tests.accel.techniques import TECHNIQUES
from tests.conftest import build_tiny
from varsearch.accel import apply, labels_for
from varsearch.evaluators.trace import trace
from varsearch.target import Target
model = build_tiny()
with apply(model, TECHNIQUES["w4-group"]) as applied:
    assert applied.images(labels_for(1, 10), seed=0).isfinite().all()
found = trace(model, TECHNIQUES["w4-group"], Target(device="4090", dtype="float16", batch_size=1))
assert any(op.name == "quantized_linear" for op in found.ops)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
