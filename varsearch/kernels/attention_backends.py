"""Softmax attention by name: who computes it, and whether that can run.

`reference` is the definition. `sdpa` is PyTorch's choice among its own kernels, `cudnn` one of these by force, and
`flash-attn` the package of that name. Neither of the last two takes a mask, so attention under a mask is `sdpa` beside
them, and `Attention.label` says so.

Where a policy leaves pairs out, `reference` and `triton` take the whole request by blocks and lengths (see
`block_attention.py`); behind the others, `+triton` says that it does. Without it such attention is made of calls for
tiles and groups of heads, as on a CPU.

What is known of `cudnn` and `flash-attn`: neither has been run on a GPU with this code. The adapter of `flash-attn` is
tested against a stand-in with the signature that the package documents. `benchmarks/models.py` measures both.

Shape suffixes: B rows, H heads, L queries, S keys, C head dim. Queries come scaled; the softmax takes plain products.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import register_flop_formula, sdpa_flop_count

from varsearch.errors import TargetError, UsageError
from varsearch.kernels import block_attention
from varsearch.kernels.block_attention import AttentionInputs, Implementation, KVEntries, attend
from varsearch.target import AttentionBackend, AttentionName

log = logging.getLogger(__name__)
HALF = (torch.float16, torch.bfloat16)


class Request(NamedTuple):
    """What attention is asked for; numbers of rows, heads, queries and keys make no difference to any back-end."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    masked: bool = False


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to compute attention.

    Args:
        name: as users say it.
        run: (q_BHLC, k_BHSC, v_BHSC, mask or None) -> (B, H, L, C). A mask broadcasts to (B, H, L, S); it is boolean,
            True where a query sees a key, or added to the products. A query that sees nothing gets zeros.
        unsupported: why it cannot do what a request asks, or None if it can.
    """

    name: AttentionBackend
    run: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    unsupported: Callable[[Request], str | None]


@dataclass(frozen=True, slots=True)
class Attention:
    """The back-ends that a model's attention runs on: `dense` without a mask, `masked` with one.

    `blocks` computes requests by blocks and lengths; None where there is nobody, and techniques make tiles instead.
    """

    dense: Backend
    masked: Backend
    blocks: Implementation | None = None

    def __call__(self, q_BHLC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `Backend.run`."""
        return (self.dense if mask is None else self.masked).run(q_BHLC, k_BHSC, v_BHSC, mask)

    @property
    def name(self) -> AttentionBackend:
        """The name by which it is chosen."""
        dense = self.dense.name
        return dense if self.blocks in (None, dense) else _with_blocks(dense)

    @property
    def label(self) -> str:
        """What runs, for records."""
        return self.name if self.dense == self.masked else f"{self.name}, {self.masked.name} under masks"


def reference(q_BHLC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, mask: Tensor | None = None) -> Tensor:
    """See `Backend.run`: softmax(q k^T) v step by step, in float32 or better."""
    wide = torch.promote_types(q_BHLC.dtype, torch.float32)
    product_BHLS = q_BHLC.to(wide) @ k_BHSC.to(wide).mT
    if mask is not None:
        product_BHLS = product_BHLS.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else product_BHLS + mask
    weight_BHLS = product_BHLS.softmax(-1)
    if mask is not None:
        weight_BHLS = weight_BHLS.masked_fill(product_BHLS.isneginf().all(-1, keepdim=True), 0)
    return (weight_BHLS @ v_BHSC.to(wide)).to(q_BHLC.dtype)


def sdpa(q_BHLC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, mask: Tensor | None = None) -> Tensor:
    """See `Backend.run`."""
    return F.scaled_dot_product_attention(q_BHLC, k_BHSC, v_BHSC, attn_mask=mask, scale=1.0)


def cudnn(q_BHLC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, mask: Tensor | None = None) -> Tensor:
    """See `Backend.run`; without a mask."""
    if k_BHSC.shape[2] == 1:
        # The kernel refuses a single key, as the first scale has; all weight is on it.
        return v_BHSC.expand(q_BHLC.shape).clone()
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(q_BHLC, k_BHSC, v_BHSC)


def flash_attn(q_BHLC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, mask: Tensor | None = None) -> Tensor:
    """See `Backend.run`; without a mask."""
    out_BHLC: Tensor = flash_attention(q_BHLC, k_BHSC, v_BHSC)
    return out_BHLC


def triton(q_BHLC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, mask: Tensor | None = None) -> Tensor:
    """See `Backend.run`; without a mask."""
    return attend(AttentionInputs(q_BHLC, KVEntries(k_BHSC, v_BHSC)), "triton").out_BHLC


@torch.library.custom_op("varsearch::flash_attention", mutates_args=())
def flash_attention(q_BHLC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor) -> Tensor:
    """The package's product, one operator for tracers, FLOP counters and compilers."""
    from flash_attn import flash_attn_func

    q_BLHC, k_BSHC, v_BSHC = (t.transpose(1, 2) for t in (q_BHLC, k_BHSC, v_BHSC))
    out_BLHC: Tensor = flash_attn_func(q_BLHC, k_BSHC, v_BSHC, softmax_scale=1.0)
    return out_BLHC.transpose(1, 2)


def _flash_attention_fake(q_BHLC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor) -> Tensor:
    rows, heads, length, channels = q_BHLC.shape
    return q_BHLC.new_empty(rows, length, heads, channels).transpose(1, 2)


def _flash_attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(q, k, v))


flash_attention.register_fake(_flash_attention_fake)
register_flop_formula(torch.ops.varsearch.flash_attention)(_flash_attention_flops)


def _anything(request: Request) -> str | None:
    return None if request.dtype.is_floating_point else f"it computes with numbers, not with {_name(request.dtype)}"


def _cudnn(request: Request) -> str | None:
    if request.device.type == "cuda" and not torch.backends.cudnn.is_available():
        return "this PyTorch has no cuDNN"
    return _tensor_cores(request, widest=128)


def _flash_attn(request: Request) -> str | None:
    if not _installed():
        return "flash-attn is not installed (pip install 'varsearch[flash]')"
    return _tensor_cores(request, widest=256)


def _triton(request: Request) -> str | None:
    if request.masked:
        return "it takes no mask"
    return block_attention.unsupported(request.device, request.dtype, request.head_dim)


def _installed() -> bool:
    # Other packages share the namespace, so that only the function itself proves it.
    if find_spec("flash_attn") is None:
        return False
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return False
    return callable(flash_attn_func)


def _tensor_cores(request: Request, widest: int) -> str | None:
    """Limits that `cudnn` and `flash-attn` share but for the widest head."""
    if request.masked:
        return "it takes no mask"
    if request.device.type != "cuda":
        return f"it runs on CUDA devices, not on {request.device.type}"
    if request.dtype not in HALF:
        return f"it computes in float16 or bfloat16, not in {_name(request.dtype)}"
    if request.head_dim > widest or request.head_dim % 8:
        return f"it takes heads of multiples of 8 up to {widest} channels, not of {request.head_dim}"
    major, minor = torch.cuda.get_device_capability(request.device)
    return None if major >= 8 else f"it needs compute capability 8.0, this GPU has {major}.{minor}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


REFERENCE, SDPA = Backend("reference", reference, _anything), Backend("sdpa", sdpa, _anything)
BACKENDS: dict[AttentionBackend, Backend] = {
    "reference": REFERENCE,
    "sdpa": SDPA,
    "cudnn": Backend("cudnn", cudnn, _cudnn),
    "flash-attn": Backend("flash-attn", flash_attn, _flash_attn),
    "triton": Backend("triton", triton, _triton),
}
"""Those that compute dense attention."""

DEFAULT = Attention(SDPA, SDPA)


def choose(name: AttentionName, request: Request) -> Attention:
    """The back-ends for a model whose attention asks `request`, and the same under masks.

    `auto` takes flash-attn, which somebody has installed on purpose, where it can run, else sdpa; and triton behind it
    on a CUDA device where that can run.

    Raises:
        UsageError: there is no back-end of this name.
        TargetError: a back-end was named that cannot do it.
    """
    if name != "auto" and name not in get_args(AttentionBackend):
        raise UsageError(f"unknown attention {name!r}: expected one of auto, {', '.join(get_args(AttentionBackend))}")
    found = named(_auto(request) if name == "auto" else name)
    for part in (found.dense, *(() if found.blocks is None else (BACKENDS[found.blocks],))):
        reason = part.unsupported(request)
        if reason:
            raise TargetError(f"attention {name!r} cannot run here: {reason}; use attention 'sdpa' or 'auto'")
    return found


def named(name: AttentionBackend) -> Attention:
    """The back-ends of this name, wherever they may run."""
    first, _, behind = name.partition("+")
    dense = next(backend for backend in BACKENDS.values() if backend.name == first)
    whole: dict[str, Implementation] = {"reference": "reference", "triton": "triton"}
    return Attention(dense, REFERENCE if dense is REFERENCE else SDPA, whole.get(behind or first))


def _with_blocks(dense: AttentionBackend) -> AttentionBackend:
    return next(name for name in get_args(AttentionBackend) if name == f"{dense}+triton")


@cache
def _auto(request: Request) -> AttentionBackend:
    """Kept, so that it is said once per process."""
    first = BACKENDS["flash-attn"]
    reason = first.unsupported(request)
    chosen = SDPA.name if reason else first.name
    if request.device.type == "cuda" and _triton(request) is None:
        chosen = _with_blocks(chosen)
    asked = f"{_name(request.dtype)} on {request.device}, heads of {request.head_dim}"
    log.info("attention: %s for %s%s", chosen, asked, f" (not flash-attn: {reason})" if reason else "")
    return chosen
