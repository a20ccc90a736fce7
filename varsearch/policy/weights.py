"""Precision of the linear layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

from varsearch.target import Frozen

LINEARS = ("qkv", "proj", "fc1", "fc2", "ada", "text_q", "text_kv", "text_proj", "ssm_in", "ssm_out")
"""The linear layers of a block; `ModelSpec.linears` says which of them a model has."""


class Quantization(Frozen):
    """One linear in low precision: symmetric weights, one scale per output channel or per `group` input channels.

    `activation_bits` also rounds the linear's input, with one dynamic scale per token.
    """

    bits: Literal[8, 6, 4, 3]
    group: Literal[32, 64, 128] | None = None
    activation_bits: Literal[8, 6, 4] | None = None


class Weights(Frozen):
    """Precision of each linear of a block; None leaves it as it is.

    `ada` is the projection of AdaLN, `text_*` belong to attention to a text, `ssm_*` to a state-space branch.
    """

    qkv: Quantization | None = None
    proj: Quantization | None = None
    fc1: Quantization | None = None
    fc2: Quantization | None = None
    ada: Quantization | None = None
    text_q: Quantization | None = None
    text_kv: Quantization | None = None
    text_proj: Quantization | None = None
    ssm_in: Quantization | None = None
    ssm_out: Quantization | None = None

    @classmethod
    def uniform(cls, quantization: Quantization, linears: Iterable[str] = ("qkv", "proj", "fc1", "fc2")) -> Self:
        """The same precision for all of `linears`."""
        return cls(**dict.fromkeys(linears, quantization))
