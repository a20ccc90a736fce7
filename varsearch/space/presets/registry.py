"""Every published system by name, at the strengths that its authors report.

A name without a number is the strength of the main results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from varsearch.calibration import Calibration
from varsearch.errors import PolicyError, UsageError
from varsearch.policy import Policy
from varsearch.space.presets.code import code
from varsearch.space.presets.fastvar import HART, fastvar
from varsearch.space.presets.hack import hack
from varsearch.space.presets.hackpp import hackpp
from varsearch.space.presets.litevar import litevar
from varsearch.space.presets.scalekv import scalekv
from varsearch.space.presets.skipvar import skipvar, trained
from varsearch.space.presets.sparvar import sparvar
from varsearch.space.presets.toprovar import toprovar
from varsearch.target import ModelSpec

Siblings = Sequence[ModelSpec]
"""Smaller models with the same tokenizer."""

Make = Callable[[ModelSpec, Calibration | None, Siblings], Policy]


def _learnt(make: Callable[[ModelSpec, Calibration], Policy]) -> Make:
    """A preset whose constants come from a calibration."""

    def checked(spec: ModelSpec, calibration: Calibration | None, _: Siblings) -> Policy:
        if calibration is None:
            raise UsageError("constants from a calibration, which takes trained weights and attention across scales")
        return make(spec, calibration)

    return checked


def _code(drafted: float | None = None) -> Make:
    def make(spec: ModelSpec, _: Calibration | None, siblings: Siblings) -> Policy:
        if not siblings:
            raise UsageError(
                f"CoDe needs a smaller readable model with the tokenizer of {spec.name} beside it, and there is none"
            )
        largest = max(siblings, key=lambda other: other.size)
        return code(spec, largest, None if drafted is None else max(1, round(drafted * len(spec.scales))))

    return make


PRESETS: dict[str, Make] = {
    "litevar": _learnt(litevar),
    "litevar-w6": _learnt(lambda spec, found: litevar(spec, found, bits=6)),
    "litevar-85": _learnt(lambda spec, found: litevar(spec, found, coverage=0.4, floor=0.1, difference=math.inf)),
    "fastvar": lambda spec, *_: fastvar(spec),
    "fastvar-hart": lambda spec, *_: fastvar(spec, HART, layers=(0, 1)),
    "hack": _learnt(hack),
    "hack-50": _learnt(lambda spec, found: hack(spec, found, 0.5)),
    "hackpp": _learnt(hackpp),
    "scalekv": _learnt(scalekv),
    "scalekv-20": _learnt(lambda spec, found: scalekv(spec, found, 0.2)),
    "sparvar": lambda spec, *_: sparvar(spec),
    "toprovar": _learnt(toprovar),
    "skipvar": _learnt(lambda spec, found: skipvar(spec, trained(spec, found, 0.84))),
    "skipvar-88": _learnt(lambda spec, found: skipvar(spec, trained(spec, found, 0.88))),
    "code": _code(),
    "code-6": _code(6 / 10),
}

LEAST_SCALES = 3
"""Models with fewer have no late scales that differ from the early ones."""


def presets(
    spec: ModelSpec, calibration: Calibration | None, siblings: Siblings = ()
) -> tuple[dict[str, Policy], dict[str, str]]:
    """The policy of every preset that fits the model, and why the others do not; some need a calibration.

    Presets that come out equal on this model appear once, under the first of their names.
    """
    if len(spec.scales) < LEAST_SCALES:
        reason = f"published systems need {LEAST_SCALES} scales, {spec.name} has {len(spec.scales)}"
        return {}, dict.fromkeys(PRESETS, reason)
    found: dict[str, Policy] = {}
    reasons: dict[str, str] = {}
    for name, make in PRESETS.items():
        try:
            policy = make(spec, calibration, siblings)
            policy.check(spec)
        except (UsageError, PolicyError) as error:
            reasons[name] = str(error)
            continue
        twin = next((other for other, known in found.items() if known == policy), None)
        if twin is None:
            found[name] = policy
        else:
            reasons[name] = f"the same policy as {twin} on this model"
    return found, reasons
