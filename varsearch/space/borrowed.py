"""What presets set that no own knob can say: kept whole, by the place where they set it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from varsearch.policy import Decision, KVCompression, Policy, Refiner, ScalePolicy, SparseAttention, TokenPruning

Sharing = tuple[tuple[int, ...], tuple[int, ...]]
"""Layers that share their attention, and those that share their FFN."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Borrowed:
    """Different settings of all presets, none of them "off".

    Attributes:
        kv: [layer], without bits, which have a knob of their own.
        attention: [layer].
        sharing: [scale].
        tokens: [scale].
        decisions: of whole policies.
        refiner: likewise.
    """

    kv: tuple[tuple[KVCompression, ...], ...]
    attention: tuple[tuple[SparseAttention, ...], ...]
    sharing: tuple[tuple[Sharing, ...], ...]
    tokens: tuple[tuple[TokenPruning, ...], ...]
    decisions: tuple[tuple[Decision, ...], ...]
    refiner: tuple[Refiner, ...]

    @classmethod
    def of(cls, presets: Mapping[str, Policy], n_layers: int, n_scales: int) -> Borrowed:
        """What these presets set."""
        policies = presets.values()
        layers = [[policy.layers[i] for policy in policies] for i in range(n_layers)]
        scales = [[policy.scales[k] for policy in policies] for k in range(n_scales)]
        return cls(
            kv=tuple(_different((without_bits(layer.kv) for layer in row), KVCompression()) for row in layers),
            attention=tuple(_different((layer.attention for layer in row), SparseAttention()) for row in layers),
            sharing=tuple(_different((sharing_of(scale) for scale in row), ((), ())) for row in scales),
            tokens=tuple(_different(s.tokens for s in row if s.tokens is not None) for row in scales),
            decisions=_different((policy.decisions for policy in policies), ()),
            refiner=_different(policy.refiner for policy in policies if policy.refiner is not None),
        )


def without_bits(kv: KVCompression) -> KVCompression:
    """The same budgets, stored as they are."""
    return kv.model_copy(update={"bits": None})


def sharing_of(scale: ScalePolicy) -> Sharing:
    """The layers that share."""
    return scale.shared_attention, scale.shared_ffn


def _different(values: Iterable[T], off: T | None = None) -> tuple[T, ...]:
    found: list[T] = []
    for value in values:
        if value != off and value not in found:
            found.append(value)
    return tuple(found)
