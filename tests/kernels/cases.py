"""What the tests of kernels compute; picklable, so that it also runs in the interpreter's process."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.conftest import build_tiny
from varsearch.accel import apply, labels_for
from varsearch.accel.quantization import QuantizedLinear
from varsearch.kernels.packing import pack, quantize
from varsearch.kernels.quantized_linear import Backend, expand, expand_weight, fused_linear, quantized_linear
from varsearch.policy import Policy, Quantization


class Case(NamedTuple):
    bits: int
    group: int | None
    dtype: torch.dtype
    rows: int
    inputs: int
    outputs: int
    seed: int = 0

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"w{self.bits}-{self.group}-{name}-{self.rows}x{self.inputs}x{self.outputs}"


class Found(NamedTuple):
    """Wrong numbers, and numbers written outside of the result."""

    wrong: int
    outside: int


class Operands(NamedTuple):
    x_MK: Tensor
    q_NK: Tensor
    packed: Tensor
    scale: Tensor
    bias: Tensor | None


def guarded(t: Tensor) -> Tensor:
    """A contiguous copy with not-a-numbers (or ones in every bit) before and after it."""
    around = torch.full((t.numel() + 512,), float("nan") if t.is_floating_point() else 255, dtype=t.dtype).to(t.device)
    inside = around[256 : 256 + t.numel()].view(t.shape)
    return inside.copy_(t)


def whole_numbers(case: Case, device: str) -> Operands:
    """Operands whose products and sums are exact in float32, in any order, so that a result is right or wrong."""
    rng = torch.Generator().manual_seed(case.seed)
    limit, n_groups = 2 ** (case.bits - 1) - 1, case.inputs // (case.group or case.inputs)
    q_NK = torch.randint(-limit, limit + 1, (case.outputs, case.inputs), generator=rng).to(device)
    scale = 2.0 ** -torch.randint(0, 7, (case.outputs, n_groups), generator=rng)
    bias = torch.randint(-8, 9, (case.outputs,), generator=rng).to(device, case.dtype) if case.seed % 2 else None
    # Rows apart, and not-a-numbers between them.
    x_MK = torch.full((case.rows, case.inputs + 5), float("nan"), dtype=case.dtype, device=device)[:, 2:-3]
    x_MK.copy_(torch.randint(-2, 3, (case.rows, case.inputs), generator=rng))
    packed = guarded(pack(q_NK, case.bits))
    return Operands(x_MK, q_NK, packed, guarded(scale.to(device, case.dtype)), bias if bias is None else guarded(bias))


def exact_weight(o: Operands) -> Tensor:
    return (o.q_NK.unflatten(1, (o.scale.shape[1], -1)).double() * o.scale.double()[..., None]).flatten(1)


def product(case: Case, device: str = "cpu") -> Found:
    """The kernel of products against arithmetic without rounding."""
    from varsearch.kernels.quantized_linear_triton import linear

    o = whole_numbers(case, device)
    want = o.x_MK.double() @ exact_weight(o).T + (0 if o.bias is None else o.bias.double())
    # In float32, because the interpreter's conversion to bfloat16 rounds differently.
    return compare(lambda out: linear(o.x_MK, o.packed, o.scale, o.bias, case.bits, out), want)


def expansion(case: Case, device: str = "cpu") -> Found:
    """The kernel that expands weights against arithmetic without rounding."""
    from varsearch.kernels.quantized_linear_triton import expand as expand_triton

    o = whole_numbers(case, device)
    return compare(lambda out: expand_triton(o.packed, o.scale, case.bits, out), exact_weight(o))


def compare(fill, want: Tensor) -> Found:  # noqa: ANN001
    out = guarded(torch.full_like(want, float("nan"), dtype=torch.float32))
    fill(out)
    untouched = out.untyped_storage().nbytes() // 4 - out.numel()
    kept = torch.empty(0, dtype=torch.float32, device=out.device).set_(out.untyped_storage()).isnan().sum().item()
    wrong = int((out.double() != want).sum())
    return Found(wrong, int(untouched - kept + out.isnan().sum().item()))


class Layer(NamedTuple):
    """Two backends of one layer on real numbers, and the exact result with its bound of rounding errors."""

    x: Tensor
    torch: QuantizedLinear
    triton: QuantizedLinear
    exact: Tensor
    bound: Tensor


def layer(case: Case, device: str = "cpu", activation_bits: int | None = None) -> Layer:
    rng = torch.Generator().manual_seed(case.seed)
    linear = nn.Linear(case.inputs, case.outputs, bias=case.seed % 2 == 0).requires_grad_(False)
    for parameter in linear.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=rng))
    linear.to(device, case.dtype)
    x = torch.randn(2, case.rows, case.inputs, generator=rng).to(device, case.dtype)
    how = Quantization(bits=case.bits, group=case.group, activation_bits=activation_bits)
    both: dict[Backend, QuantizedLinear] = {b: QuantizedLinear(linear, how, b) for b in ("torch", "triton")}
    q, scale = quantize(linear.weight.unflatten(1, (-1, case.group or case.inputs)), case.bits)
    weight, bias = (q.double() * scale.double()).flatten(1), 0 if linear.bias is None else linear.bias.double()
    size = x.double().abs() @ weight.abs().T + abs(bias)
    # Weights are rounded to the dtype, sums to float32 as often as there are inputs, and the result to the dtype.
    bound = (2 * torch.finfo(case.dtype).eps + case.inputs * 2.0**-24) * size
    return Layer(x, both["torch"], both["triton"], x.double() @ weight.T + bias, bound)


def rounding(case: Case, device: str = "cpu") -> tuple[float, float]:
    """Errors of both backends, in units of the bound."""
    found = layer(case, device)
    errors = [
        ((one(found.x).double() - found.exact).abs() / found.bound).max().item() for one in (found.torch, found.triton)
    ]
    return errors[0], errors[1]


def same_as_definition(case: Case, device: str = "cpu", activation_bits: int | None = None) -> bool:
    """Whether both backends give the same bits, which many rows must: they multiply with the same weight."""
    found = layer(case, device, activation_bits)
    return torch.equal(found.torch(found.x), found.triton(found.x))


def repeats(case: Case, device: str) -> bool:
    found = layer(case, device)
    return torch.equal(found.triton(found.x), found.triton(found.x))


def check_operators() -> None:
    """PyTorch's own checks of schema, fake kernel and tracing."""
    o = whole_numbers(Case(4, 32, torch.float32, 5, 64, 7, seed=1), "cpu")
    for bias in (o.bias, None):
        torch.library.opcheck(fused_linear, (o.x_MK, o.packed, o.scale, bias, 4))
    torch.library.opcheck(expand_weight, (o.packed, o.scale, 4, 64, torch.float16))


def compiled_graph() -> tuple[list[str], bool]:
    """Operators that torch.compile sees in a layer with few rows, and whether its result is that of eager execution."""
    seen: list[str] = []

    def backend(module, _):  # noqa: ANN001, ANN202
        seen.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module.forward

    found = layer(Case(4, 32, torch.float32, 3, 64, 7))
    fast = torch.compile(found.triton, backend=backend, fullgraph=True)
    return seen, torch.equal(fast(found.x), found.triton(found.x))


def empty_batch() -> tuple[int, ...]:
    o = whole_numbers(Case(8, None, torch.float32, 0, 9, 4), "cpu")
    return tuple(quantized_linear(o.x_MK.view(2, 0, 9), o.packed, o.scale, None, 8, 9, "triton").shape)


def odd_strides() -> list[bool]:
    """Activations that are transposed, every other column, and one row repeated."""
    o = whole_numbers(Case(6, None, torch.float32, 9, 18, 5), "cpu")
    x = o.x_MK.contiguous()
    views = (x.T.contiguous().T, torch.stack((x, -x), dim=-1)[..., 0], x[:1].expand(9, -1))
    weight = expand(o.packed, o.scale, 6, 18, torch.float32)
    return [torch.equal(fused_linear(v, o.packed, o.scale, None, 6), v @ weight.T) for v in views]


def likelihood(backend: Backend, policy: Policy) -> Tensor:
    model, rng = build_tiny(), torch.Generator().manual_seed(0)
    tokens = [torch.randint(32, (1, n), generator=rng) for n in model.spec.tokens]
    with apply(model, policy, backend) as applied:
        return applied.likelihood(labels_for(1, 10), tokens)
