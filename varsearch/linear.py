"""Linear layers that ask the faster of PyTorch's two libraries for large products on a CPU.

For float32 PyTorch takes MKL, which is slower than oneDNN for products with large weights on an AMD processor
(`benchmarks/linear.py`); results agree up to rounding. Small weights, gradients, tracers and other devices get what
PyTorch takes by itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 2**20
"""Weights from so many numbers on; with few of them a call of oneDNN costs more than it saves."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` for x (..., K), weight (N, K) and bias (N)."""
    if _faster_in_onednn(x, weight):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """See `linear`."""
        return linear(x, self.weight, self.bias)


def _faster_in_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        weight.numel() >= LARGE
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and not torch.is_grad_enabled()
        # Whoever watches operators knows PyTorch's own: same work, same bytes.
        and not torch._C._len_torch_dispatch_stack()
    )
