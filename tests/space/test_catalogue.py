"""The list of published systems says what their presets are."""

from __future__ import annotations

from typing import Any

from varsearch.calibration import Calibration
from varsearch.models import zoo
from varsearch.policy import Policy
from varsearch.space.presets import PRESETS, presets
from varsearch.space.presets.catalogue import CATALOGUE

DEEP = ("attention", "kv")
"""Fields whose parts are named."""


def fields(policy: Policy) -> set[str]:
    """Those that differ from dense."""
    found: set[str] = set()
    changed: dict[str, Any] = policy.model_dump(mode="json", exclude_defaults=True)
    for name in ("layers", "scales"):
        for place in changed.pop(name):
            for field, value in place.items():
                parts = [f".{part}" for part in value] if field in DEEP else [""]
                found |= {f"{name}[].{field}{part}" for part in parts}
    return found | changed.keys()


def test_every_preset_is_listed_with_the_fields_that_it_sets(mnist_calibration: Calibration) -> None:
    assert list(CATALOGUE) == list(PRESETS)
    made, missing = presets(zoo.manifest("mnist").spec(), mnist_calibration, zoo.siblings("mnist"))
    assert not missing
    for name, policy in made.items():
        assert fields(policy) == set(CATALOGUE[name].fields), name


def test_what_a_preset_needs_is_missing_without_it() -> None:
    _, missing = presets(zoo.manifest("mnist").spec(), None, ())
    assert missing.keys() == {name for name, about in CATALOGUE.items() if about.needs}
