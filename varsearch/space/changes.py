"""A policy as the settings of its units: how it differs from dense."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from varsearch.policy import LINEARS, LayerPolicy, Policy
from varsearch.space.settings import Setting, _composed
from varsearch.target import Frozen

REMEMBERED = 4096
"""Policies whose changes are kept: every proposal asks for those of all trials of a run."""


class Changes(NamedTuple):
    """How a policy differs from dense.

    Attributes:
        settings: those of its units.
        rest: the fields that hold something else than these settings make, such as `layers[2].attention.band`.
    """

    settings: tuple[Setting, ...]
    rest: tuple[str, ...]


@lru_cache(REMEMBERED)
def changes(policy: Policy) -> Changes:
    """The settings that make `policy` of the dense one, as far as units can say it, and what remains.

    Guidance is off from the first unguided scale that runs.
    """
    found = (*_of_policy(policy), *_of_layers(policy), *_of_scales(policy))
    shape = len(policy.layers), len(policy.scales)
    skipped = {setting.scale for setting in found if setting.kind == "skip"}
    rebuilt = _composed(shape, (s for s in found if not (s.kind == "window" and s.scale in skipped)))
    return Changes(found, tuple(_differences(policy, rebuilt)))


def _of_policy(policy: Policy) -> Iterator[Setting]:
    yield from (Setting("skip", True, scale=k) for k, scale in enumerate(policy.scales) if not scale.run)
    unguided = [k for k, scale in enumerate(policy.scales) if scale.guidance == "off"]
    if unguided:
        yield Setting("guidance", unguided[0])
    if policy.refiner is not None:
        yield Setting("refiner", policy.refiner)


def _of_layers(policy: Policy) -> Iterator[Setting]:
    for i, layer in enumerate(policy.layers):
        for linear in LINEARS:
            if how := getattr(layer.weights, linear):
                yield Setting("bits", how, layer=i, part=linear)
        keep = layer.kv.keep
        yield from (
            Setting("keep", share, layer=i, head=head, heads=len(keep)) for head, share in enumerate(keep) if share < 1
        )
        if layer.kv.bits:
            yield Setting("kv_bits", layer.kv.bits, layer=i)
        yield from _windows(i, layer)


def _windows(i: int, layer: LayerPolicy) -> Iterator[Setting]:
    for k, row in enumerate(layer.attention.window):
        if isinstance(row[0], int) and len(set(row)) == 1:
            yield Setting("window", row[0], layer=i, scale=k, heads=len(row))


def _of_scales(policy: Policy) -> Iterator[Setting]:
    n = len(policy.layers)
    for k, scale in enumerate(policy.scales):
        yield from (Setting("sharing", True, layer=i, scale=k, part="attention") for i in scale.shared_attention)
        yield from (Setting("sharing", True, layer=i, scale=k, part="ffn") for i in scale.shared_ffn)
        if scale.tokens is not None and scale.tokens.score == "distance":
            pruned = (i for i in scale.tokens.layers(n) if policy.prunes(k, i))
            yield from (Setting("tokens", scale.tokens.keep_in(i), layer=i, scale=k) for i in pruned)


def _differences(policy: Policy, rebuilt: Policy) -> Iterator[str]:
    """Paths of the fields in which the two differ."""
    for i, (own, other) in enumerate(zip(policy.layers, rebuilt.layers, strict=True)):
        for part in LayerPolicy.model_fields:
            yield from _fields(f"layers[{i}].{part}", getattr(own, part), getattr(other, part))
    for k, (scale, other_scale) in enumerate(zip(policy.scales, rebuilt.scales, strict=True)):
        yield from _fields(f"scales[{k}]", scale, other_scale)
    if policy.decisions:
        yield "decisions"


def _fields(place: str, own: Frozen, other: Frozen) -> Iterator[str]:
    return (f"{place}.{name}" for name in type(own).model_fields if getattr(own, name) != getattr(other, name))
