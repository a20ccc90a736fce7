"""Who computes attention: the same numbers whoever does, reasons where somebody cannot, and true records of who did."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.accel.techniques import DENSE, TECHNIQUES
from tests.conftest import build_tiny
from tests.exact import exact
from varsearch.accel import apply, attention_for
from varsearch.errors import TargetError, UsageError
from varsearch.evaluators.speed import SpeedEvaluator, dense_twin, protocol_for
from varsearch.evaluators.trace import record
from varsearch.kernels import attention_backends
from varsearch.kernels.attention_backends import BACKENDS, Request, _auto, choose, cudnn, flash_attn, reference, sdpa
from varsearch.measurement import SpeedProtocol
from varsearch.target import Target

MODEL = build_tiny()
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
T = Target(device="cpu", dtype="float32", batch_size=1)
MASKS = ("window", "band", "sinks", "cross-scale")
"""What names of techniques begin with whose attention is partly under a mask."""


def operands(dtype: torch.dtype = torch.float32, keys: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (5, keys, keys))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def by_hand(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Each query on its own, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        seen = visible[b, h, i].nonzero()[:, 0].tolist()
        weights = [math.exp(float(q[b, h, i].double() @ k[b, h, j].double())) for j in seen]
        for weight, j in zip(weights, seen, strict=True):
            out[b, h, i] += weight / sum(weights) * v[b, h, j].double()
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_is_softmax_attention_rounded_once(dtype: torch.dtype) -> None:
    q, k, v = operands(dtype)
    want = by_hand(q, k, v, torch.ones(2, 3, 5, 11, dtype=torch.bool))
    eps = torch.finfo(dtype).eps if dtype != torch.float32 else 16 * torch.finfo(dtype).eps
    assert ((reference(q, k, v).double() - want).abs() <= eps / 2 * want.abs() * 1.001 + 1e-6).all()


@pytest.mark.numerics
@pytest.mark.parametrize("run", [reference, sdpa])
def test_masks_hide_keys_and_queries_that_see_nothing_get_zeros(run) -> None:  # noqa: ANN001
    q, k, v = operands()
    visible = torch.rand(2, 3, 5, 11, generator=torch.Generator().manual_seed(1)) < 0.4
    visible[0, 1, 2] = False
    bias = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    for mask in (visible, bias):
        torch.testing.assert_close(run(q, k, v, mask).double(), by_hand(q, k, v, visible), atol=1e-5, rtol=1e-5)


def test_one_key_needs_no_kernel() -> None:
    q, k, v = operands(keys=1)
    torch.testing.assert_close(cudnn(q, k, v), reference(q, k, v))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """A stand-in for flash-attn, which its documentation describes: (B, S, H, C), scaled by 1 / sqrt(C) unless told.

    It gives the shapes it was called with, and the back-end believes that it can run here.
    """
    shapes: list[tuple[int, ...]] = []

    def flash_attn_func(  # noqa: ANN202
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,  # noqa: ANN001
        alibi_slopes=None, deterministic=False, return_attn_probs=False,  # noqa: ANN001
    ):  # fmt: skip
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        assert not causal and dropout_p == 0
        shapes.append(tuple(q.shape))
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        weights = (scale * torch.einsum("bihc,bjhc->bhij", q, k)).softmax(-1)
        return torch.einsum("bhij,bjhc->bihc", weights, v).contiguous()

    module = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(attention_backends, "find_spec", lambda name: object())
    monkeypatch.setattr(
        attention_backends, "_tensor_cores", lambda request, widest: "it takes no mask" if request.masked else None
    )
    _auto.cache_clear()
    yield shapes
    _auto.cache_clear()


@pytest.mark.numerics
def test_the_package_gets_its_layout_and_no_scale(package: list[tuple[int, ...]]) -> None:
    q, k, v = operands()
    torch.testing.assert_close(flash_attn(q, k, v), reference(q, k, v))
    assert package == [(2, 5, 3, 8)]
    torch.library.opcheck(torch.ops.varsearch.flash_attention, (q, k, v), test_utils=["test_schema", "test_faketensor"])


def likelihood(name: str, attention: str) -> Tensor:
    model = exact()
    tokens = [torch.randint(32, (4, n), generator=torch.Generator().manual_seed(0)) for n in model.spec.tokens]
    with apply(model, TECHNIQUES[name], attention=attention) as applied:  # type: ignore[arg-type]
        return applied.likelihood(torch.arange(4), tokens)


@pytest.mark.numerics
@pytest.mark.parametrize("name", [name for name in TECHNIQUES if "skip" not in name and "decide" not in name])
def test_every_technique_gives_the_same_on_every_backend(name: str, package: list[tuple[int, ...]]) -> None:
    want = likelihood(name, "sdpa")
    for attention in ("reference", "flash-attn"):
        torch.testing.assert_close(likelihood(name, attention), want, atol=1e-12, rtol=0)
    assert package


@pytest.mark.parametrize("name", [name for name in TECHNIQUES if "decide" not in name])
def test_nothing_but_masks_escapes_the_named_backend(name: str, package: list[tuple[int, ...]]) -> None:
    with apply(MODEL, TECHNIQUES[name]) as plain:
        want = record(plain, 2)
    with apply(MODEL, TECHNIQUES[name], attention="flash-attn") as fast:
        found = record(fast, 2)
    assert (found.flops, found.attention_flops, found.kv_bytes) == (want.flops, want.attention_flops, want.kv_bytes)
    own = [op for op in found.ops if op.in_block and op.attention]
    assert not own or name.startswith(MASKS)
    assert package and fast.attention == "flash-attn, sdpa under masks"


@pytest.mark.parametrize("name", ["dense", "window", "cross-scale", "refined", "kv-ragged"])
def test_the_reference_computes_masks_too(name: str) -> None:
    with apply(MODEL, TECHNIQUES[name], attention="reference") as applied:
        assert not [op for op in record(applied, 2).ops if op.in_block and op.attention]
    assert applied.attention == "reference"


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    def why(name: str, **changes: object) -> str | None:
        request = Request(CUDA, torch.bfloat16, 64)._replace(**changes)
        return BACKENDS[name].unsupported(request)  # type: ignore[index]

    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("torch.backends.cudnn.is_available", lambda: True)
    assert why("flash-attn") == "flash-attn is not installed (pip install 'varsearch[flash]')"
    monkeypatch.setattr(attention_backends, "_installed", lambda: True)
    for name in BACKENDS:
        assert why(name) is None
    for name in ("reference", "sdpa"):
        assert why(name, device=CPU, dtype=torch.float64, head_dim=7, masked=True) is None
        assert why(name, dtype=torch.int8) == "it computes with numbers, not with int8"
    for name, widest in (("cudnn", 128), ("flash-attn", 256)):
        assert why(name, head_dim=widest) is None
        assert why(name, masked=True) == "it takes no mask"
        assert why(name, device=CPU) == "it runs on CUDA devices, not on cpu"
        assert why(name, dtype=torch.float32) == "it computes in float16 or bfloat16, not in float32"
        for wrong in (widest + 8, 12):
            assert (
                why(name, head_dim=wrong) == f"it takes heads of multiples of 8 up to {widest} channels, not of {wrong}"
            )
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (7, 5))
    assert why("flash-attn") == "it needs compute capability 8.0, this GPU has 7.5"
    monkeypatch.setattr("torch.backends.cudnn.is_available", lambda: False)
    assert why("cudnn") == "this PyTorch has no cuDNN"


def test_a_package_of_that_name_without_the_function_is_another(package: object) -> None:
    del sys.modules["flash_attn"].flash_attn_func
    assert "not installed" in str(BACKENDS["flash-attn"].unsupported(Request(CUDA, torch.float16, 64)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flash-attn", r"attention 'flash-attn' cannot run here: flash-attn is not installed"),
        ("cudnn", r"attention 'cudnn' cannot run here: it runs on CUDA devices, not on cpu; use attention 'sdpa'"),
    ],
)
def test_a_named_backend_never_falls_back(name: str, reason: str) -> None:
    with pytest.raises(TargetError, match=reason), apply(MODEL, DENSE, attention=name):  # type: ignore[arg-type]
        pass
    with pytest.raises(TargetError, match=reason):
        protocol_for(T, name)  # type: ignore[arg-type]


def test_unknown_names_are_refused() -> None:
    reason = "unknown attention 'flash': expected one of auto, reference, sdpa, cudnn, flash-attn"
    with pytest.raises(UsageError, match=reason), apply(MODEL, DENSE, attention="flash"):  # type: ignore[arg-type]
        pass


def test_auto_says_once_what_it_chose(caplog: pytest.LogCaptureFixture) -> None:
    _auto.cache_clear()
    with caplog.at_level(logging.INFO, "varsearch"):
        for _ in range(2):
            with apply(MODEL, DENSE, attention="auto") as applied:
                assert applied.attention == "sdpa"
        choose("auto", Request(CPU, torch.float32, 64))
    why = "(not flash-attn: flash-attn is not installed (pip install 'varsearch[flash]'))"
    assert caplog.messages == [f"attention: sdpa for float32 on cpu, heads of {n} {why}" for n in (16, 64)]


def test_auto_takes_the_package_where_it_runs(package: object, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "varsearch"):
        assert attention_for(MODEL, "auto").dense is BACKENDS["flash-attn"]
    assert caplog.messages == ["attention: flash-attn for float32 on cpu, heads of 16"]


def test_measurements_say_what_ran(package: list[tuple[int, ...]]) -> None:
    for name, label in (("reference", "reference"), ("flash-attn", "flash-attn, sdpa under masks"), ("sdpa", "sdpa")):
        protocol = protocol_for(T, name, 16).model_copy(update={"repeats": 1})  # type: ignore[arg-type]
        evaluator = SpeedEvaluator(MODEL, protocol)
        assert evaluator.evaluate(DENSE).environment["attention"] == evaluator.dense.attention == label
        assert bool(package) == (name != "reference")
    assert protocol_for(T, "auto", 16).attention == "flash-attn"
    assert dense_twin(MODEL).attention == "sdpa"


def test_evidence_that_names_no_attention_is_found_again() -> None:
    protocol = protocol_for(T)
    old = protocol.model_dump(mode="json", exclude={"attention"})
    assert SpeedProtocol.model_validate(old) == protocol
    text = json.dumps(old, sort_keys=True, separators=(",", ":"))
    assert protocol.digest == hashlib.sha256(text.encode()).hexdigest()
    assert protocol_for(T, "reference").digest != protocol.digest


def test_predictions_are_for_one_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Target(device="4090", dtype="float16", batch_size=1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert protocol_for(elsewhere, "auto") == protocol_for(elsewhere)
    with pytest.raises(
        UsageError, match=r"speed on 4090 is predicted here, for attention 'sdpa.triton': measure 'cudnn' ther"
    ):
        protocol_for(elsewhere, "cudnn")
