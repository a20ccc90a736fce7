"""Weight quantization: linears whose weights stay packed in memory and are expanded for each product.

Round-to-nearest, symmetric, one scale per output channel or group of input channels; optional 8-bit activations
with a dynamic scale per token, as LiteVAR does (arXiv 2411.17178). Products are taken in the activations' dtype: 8-bit
activations are rounded and multiplied as floating-point numbers (simulated), and on a CPU, which has no fast product
with packed weights, bytes fall and time does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from varsearch.kernels.packing import pack, quantize
from varsearch.kernels.quantized_linear import Backend, quantized_linear
from varsearch.models.families import Transformer, blocks_of
from varsearch.policy import LINEARS, Policy, Quantization


class QuantizedLinear(nn.Module):
    """Stands in for an `nn.Linear`; its bias is the original's."""

    packed: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, how: Quantization, backend: Backend = "torch") -> None:
        super().__init__()
        self.how, self.in_features, self.backend = how, linear.in_features, backend
        self.bias = linear.bias
        groups = linear.weight.unflatten(1, (-1, how.group or linear.in_features))
        q, scale = quantize(groups, how.bits)
        self.register_buffer("packed", pack(q.flatten(1), how.bits))
        self.register_buffer("scale", scale.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.how.activation_bits:
            q, scale = quantize(x, self.how.activation_bits)
            x = q.mul_(scale)
        return quantized_linear(x, self.packed, self.scale, self.bias, self.how.bits, self.in_features, self.backend)


@contextmanager
def quantized(model: Transformer, policy: Policy, backend: Backend) -> Iterator[None]:
    """Swaps the linears that `policy` quantizes; on exit the original modules are back, untouched."""
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for block, layer in zip(blocks_of(model), policy.layers, strict=True):
            for name in LINEARS:
                how = getattr(layer.weights, name)
                if how is not None:
                    parent, attribute = block.linears[name]
                    linear = getattr(parent, attribute)
                    swapped.append((parent, attribute, linear))
                    setattr(parent, attribute, QuantizedLinear(linear, how, backend))
        yield
    finally:
        for parent, attribute, linear in swapped:
            setattr(parent, attribute, linear)
