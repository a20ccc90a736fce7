"""Mamba-2 (Dao and Gu 2024, arXiv 2405.21060): a linear recurrence over a token sequence, resumed where it stopped.

Per head, with a state h of P x N numbers, h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t' and y_t = h_t C_t + D x_t. Within a
chunk of tokens the recurrence is a masked product of all pairs, between chunks it hands on the state, so the result
is that of one token after the other.

State-dict keys are those of `mamba_ssm.Mamba2`. Shape suffixes: B rows, L tokens, D width, K channels of the
convolution, H heads, P channels of a head, N numbers per channel of the state (B_BLN and C_BLN keep the paper's names).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from varsearch.linear import Linear
from varsearch.target import Count, Size

CHUNK = 64
"""Tokens of a chunk. Work per token grows with it, the number of chunks falls; any size gives the same result."""

KERNEL_CHUNK = 256
"""That of `mamba_ssm`, by its own default."""


@dataclass(frozen=True, slots=True)
class MambaConfig:
    """Hyper-parameters of a `Mamba2`; the defaults are those of `mamba_ssm`, with the state size of M-VAR."""

    state: Size = 64
    conv: Count = 4
    expand: Count = 2
    head_dim: Size = 64
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5


class GatedNorm(nn.Module):
    """Root-mean-square norm of the gated input."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BLD: Tensor, gate_BLD: Tensor) -> Tensor:
        gated_BLD = x_BLD * F.silu(gate_BLD.to(x_BLD.dtype))
        y_BLD: Tensor = F.rms_norm(gated_BLD, gated_BLD.shape[-1:], eps=self.eps) * self.weight
        return y_BLD.to(gate_BLD.dtype)


class Mamba2(nn.Module):
    """The mixer. Whatever the model's dtype, step sizes, state and norm are fp32 or wider, as is `chunked_scan`."""

    def __init__(self, width: int, c: MambaConfig) -> None:
        super().__init__()
        inner = c.expand * width
        heads, channels = inner // c.head_dim, inner + 2 * c.state
        self.head_dim, self.split = c.head_dim, (inner, c.state, c.state)
        self.in_proj = Linear(width, inner + channels + heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, c.conv, groups=channels)
        self.dt_bias, self.A_log, self.D = (nn.Parameter(torch.zeros(heads)) for _ in range(3))
        self.norm = GatedNorm(inner, c.norm_eps)
        self.out_proj = Linear(inner, width, bias=False)

    def forward(self, u_BLD: Tensor, past: tuple[Tensor, ...] = ()) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Output (B, L, D), and what the next call needs as `past` to go on behind these tokens.

        `past` holds the last inputs of the convolution (B, conv - 1, K) and the state (B, H, P, N). Rows that come
        back after a call without them go on from the past of the first rows.
        """
        z_BLD, new_BLK, dt_BLH = self.in_proj(u_BLD).split((self.split[0], sum(self.split), len(self.D)), dim=-1)
        wide = torch.promote_types(u_BLD.dtype, torch.float32)
        tail_BSK, state_BHPN = (_fit(t, len(u_BLD)) for t in past or self._start(new_BLK, wide))
        seen_BSK = torch.cat((tail_BSK, new_BLK), dim=1)
        x_BLD, B_BLN, C_BLN = F.silu(self.conv1d(seen_BSK.mT).mT).split(self.split, dim=-1)
        x_BLHP = x_BLD.unflatten(-1, (-1, self.head_dim))
        dt_BLH = F.softplus(dt_BLH.to(wide) + self.dt_bias)
        y_BLHP, state_BHPN = scan(x_BLHP, dt_BLH, -self.A_log.to(wide).exp(), B_BLN, C_BLN, state_BHPN)
        y_BLD = (y_BLHP + x_BLHP * self.D.to(wide)[:, None]).flatten(2)
        # A slice would keep all inputs of the scale alive.
        return self.out_proj(self.norm(y_BLD, z_BLD)), (seen_BSK[:, u_BLD.shape[1] :].clone(), state_BHPN)

    def _start(self, new_BLK: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
        rows, channels = len(new_BLK), new_BLK.shape[-1]
        state_BHPN = new_BLK.new_zeros(rows, len(self.D), self.head_dim, self.split[1], dtype=wide)
        return new_BLK.new_zeros(rows, self.conv1d.kernel_size[0] - 1, channels), state_BHPN


def _fit(t: Tensor, rows: int) -> Tensor:
    """The past of so many rows: some scales are computed once for both halves of guidance."""
    return t[:rows] if len(t) >= rows else t.repeat(rows // len(t), *(1,) * (t.ndim - 1))


def scan_backend(device: torch.device) -> Literal["torch", "mamba-ssm"]:
    """What `scan` runs on: the kernel of `mamba_ssm` on a CUDA device where it is installed, else `chunked_scan`.

    The kernel multiplies in the activations' dtype and keeps states in fp32. It has not been run with this code yet.
    """
    return "mamba-ssm" if device.type == "cuda" and find_spec("mamba_ssm") else "torch"


def scan(
    x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLN: Tensor, C_BLN: Tensor, state_BHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """All h_t C_t (B, L, H, P) from the state before the first token on, and the state behind the last, in fp32."""
    if scan_backend(x_BLHP.device) == "torch":
        wide = state_BHPN.dtype
        return chunked_scan(x_BLHP.to(wide), dt_BLH, A_H, B_BLN.to(wide), C_BLN.to(wide), state_BHPN)
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    B_BL1N, C_BL1N = B_BLN[:, :, None], C_BLN[:, :, None]
    y_BLHP, state_BHPN = mamba_chunk_scan_combined(
        x_BLHP, dt_BLH, A_H, B_BL1N, C_BL1N, KERNEL_CHUNK, initial_states=state_BHPN, return_final_states=True
    )
    return y_BLHP.to(state_BHPN.dtype), state_BHPN


def chunked_scan(
    x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLN: Tensor, C_BLN: Tensor, state_BHPN: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """See `scan`; all arguments have one dtype, in which it computes."""
    v_BHLP, log_decay_BHL = (x_BLHP * dt_BLH[..., None]).transpose(1, 2), (dt_BLH * A_H).mT
    parts = []
    pieces = (v_BHLP.split(chunk, 2), log_decay_BHL.split(chunk, 2), B_BLN.split(chunk, 1), C_BLN.split(chunk, 1))
    for v, log_decay, b, c in zip(*pieces, strict=True):
        b_B1LN, c_B1LN, total_BHL = b[:, None], c[:, None], log_decay.cumsum(-1)
        between_BHLS = total_BHL[..., None] - total_BHL[..., None, :]
        later_LS = torch.ones(between_BHLS.shape[-2:], dtype=torch.bool, device=v.device).triu(1)
        # Masked before the exponential, which could overflow for tokens that come later.
        weight_BHLS = (c_B1LN @ b_B1LN.mT) * between_BHLS.masked_fill(later_LS, -torch.inf).exp()
        parts.append(weight_BHLS @ v + (c_B1LN @ state_BHPN.mT) * total_BHL.exp()[..., None])
        left_BHL1 = (total_BHL[..., -1:] - total_BHL).exp()[..., None]
        state_BHPN = state_BHPN * total_BHL[..., -1:, None].exp() + (v * left_BHL1).mT @ b_B1LN
    return torch.cat(parts, dim=2).transpose(1, 2), state_BHPN
