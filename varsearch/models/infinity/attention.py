"""Attention of image tokens to the text, and the pooling of the text.

State-dict keys are those of the published checkpoints. Shape suffixes: B rows, L tokens of one scale, T text features,
D width, H heads, C head dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varsearch.linear import Linear
from varsearch.models.seams import Rows


class TextKV(NamedTuple):
    """Keys and values of the text in one layer; `present_B11T` says where they are not padding, None if nowhere."""

    k_BHTC: Tensor
    v_BHTC: Tensor
    present_B11T: Tensor | None

    def take(self, rows: Rows) -> TextKV:
        """The text of these rows only."""
        present = None if self.present_B11T is None else rows(self.present_B11T)
        return TextKV(rows(self.k_BHTC), rows(self.v_BHTC), present)


class TextAttention(nn.Module):
    """What both uses of the text share: its keys and values, attention to them, and the projection afterwards."""

    zero_k_bias: Tensor

    def __init__(self, width: int, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_kv = Linear(channels, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = Linear(width, width)

    def text(self, text_BTC: Tensor, present_BT: Tensor | None) -> TextKV:
        """Keys and values of the text."""
        kv = self.mat_kv(text_BTC) + torch.cat((self.zero_k_bias, self.v_bias))
        k_BHTC, v_BHTC = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return TextKV(k_BHTC, v_BHTC, None if present_BT is None else present_BT[:, None, None])

    def attend(self, q_BHLC: Tensor, text: TextKV) -> Tensor:
        """Projected output, (B, L, D)."""
        y_BHLC = F.scaled_dot_product_attention(q_BHLC, text.k_BHTC, text.v_BHTC, attn_mask=text.present_B11T)
        y_BLD: Tensor = self.proj(y_BHLC.transpose(1, 2).flatten(2))
        return y_BLD


class CrossAttention(TextAttention):
    """Image tokens read the text."""

    def __init__(self, width: int, channels: int, heads: int) -> None:
        super().__init__(width, channels, heads)
        self.mat_q = Linear(width, width)

    def read(self, x_BLD: Tensor, text: TextKV) -> Tensor:
        """Output (B, L, D) for each token."""
        q_BHLC = self.mat_q(x_BLD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.attend(q_BHLC, text)


class AttentivePool(TextAttention):
    """One learnt query per head reads the text."""

    def __init__(self, width: int, channels: int, heads: int) -> None:
        super().__init__(width, channels, heads)
        self.mat_q = nn.Parameter(torch.zeros(1, heads, width // heads))

    def forward(self, text_BTC: Tensor, present_BT: Tensor | None) -> Tensor:
        """The pooled text, (B, D)."""
        q_BH1C = self.mat_q[:, :, None].expand(len(text_BTC), -1, -1, -1)
        return self.attend(q_BH1C, self.text(text_BTC, present_BT))[:, 0]
