"""A policy as a set of settings: the few functions of `varsearch.space` that the search needs.

All other modules of `sampler` and `sensitivity` take them from here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import product

from varsearch.policy import Policy
from varsearch.space.changes import changes
from varsearch.space.probes import Chosen, Probes, cost_parts, named, probes
from varsearch.space.units import Kind, Setting, compose
from varsearch.space.units import settings as candidates

__all__ = [
    "GLOBAL_KINDS",
    "Chosen",
    "Kind",
    "Probes",
    "Setting",
    "candidates",
    "compose",
    "cost_parts",
    "effective",
    "has_effect",
    "named",
    "other_fields",
    "probes",
    "settings_of",
]

GLOBAL_KINDS = ("skip", "guidance", "refiner")
"""Kinds of global settings: they change other units, and their savings multiply with the rest."""


def settings_of(policy: Policy) -> Chosen:
    """The settings that make this policy from dense, as far as settings express it."""
    return changes(policy).settings


def other_fields(policy: Policy) -> tuple[str, ...]:
    """Paths of the fields that no setting expresses, such as `layers[2].attention.band`."""
    return changes(policy).rest


def has_effect(outer: Chosen, chosen: Chosen) -> bool:
    """Whether no global setting of `outer` makes one of these settings useless.

    A setting is useless at a skipped or refined scale; so is sharing where guidance is off.
    """
    for whole, inner in product(outer, chosen):
        if inner.scale is None:
            continue
        later = whole.kind != "skip" and inner.scale >= whole.first_scale
        if whole.kind == "skip" and whole.scale == inner.scale:
            return False
        if later and (whole.kind == "refiner" or inner.kind == "sharing"):
            return False
    return True


def effective(chosen: Iterable[Setting]) -> Chosen:
    """The settings that have an effect beside each other, global settings first."""
    given = list(chosen)
    outer = tuple(s for kind in GLOBAL_KINDS for s in given if s.kind == kind)
    emptied = Counter((s.layer, s.heads) for s in given if s.kind == "keep" and not s.value)
    # A cache of which no head keeps an entry has no bits to round.
    empty = {layer for (layer, heads), n in emptied.items() if n == heads}
    inner = []
    for setting in given:
        is_empty = setting.kind == "kv_bits" and setting.layer in empty
        if setting.kind not in GLOBAL_KINDS and not is_empty and has_effect(outer, (setting,)):
            inner.append(setting)
    return (*outer, *inner)
