"""Every published system by name, at the strengths that its authors report.

A name without a number is the strength of the main results.
"""

from __future__ import annotations

from collections.abc import Callable

from varsearch.calibration import Calibration
from varsearch.errors import UsageError
from varsearch.policy import Policy
from varsearch.space.presets.fastvar import HART, fastvar
from varsearch.space.presets.hack import hack
from varsearch.space.presets.hackpp import hackpp
from varsearch.space.presets.litevar import litevar
from varsearch.space.presets.scalekv import scalekv
from varsearch.space.presets.skipvar import skipvar, trained
from varsearch.space.presets.sparvar import sparvar
from varsearch.space.presets.toprovar import toprovar
from varsearch.target import ModelSpec

PRESETS: dict[str, Callable[[ModelSpec, Calibration], Policy]] = {
    "litevar": litevar,
    "litevar-w6": lambda spec, found: litevar(spec, found, bits=6),
    "litevar-85": lambda spec, found: litevar(spec, found, coverage=0.4, floor=0.1, difference=float("inf")),
    "fastvar": lambda spec, found: fastvar(spec),
    "fastvar-hart": lambda spec, found: fastvar(spec, HART, layers=(0, 1)),
    "hack": hack,
    "hack-50": lambda spec, found: hack(spec, found, 0.5),
    "hackpp": hackpp,
    "scalekv": scalekv,
    "scalekv-20": lambda spec, found: scalekv(spec, found, 0.2),
    "sparvar": sparvar,
    "toprovar": toprovar,
    "skipvar": lambda spec, found: skipvar(spec, trained(spec, found, 0.84)),
    "skipvar-88": lambda spec, found: skipvar(spec, trained(spec, found, 0.88)),
}


LEAST_SCALES = 3
"""Models with fewer have no late scales that differ from the early ones."""


def presets(spec: ModelSpec, calibration: Calibration) -> tuple[dict[str, Policy], dict[str, str]]:
    """The policy of every preset that fits the model, and why the others do not.

    Presets that come out equal on this model appear once, under the first of their names.
    """
    if len(spec.scales) < LEAST_SCALES:
        reason = f"published systems need {LEAST_SCALES} scales, {spec.name} has {len(spec.scales)}"
        return {}, dict.fromkeys(PRESETS, reason)
    found: dict[str, Policy] = {}
    reasons: dict[str, str] = {}
    for name, make in PRESETS.items():
        try:
            policy = make(spec, calibration)
        except UsageError as error:
            reasons[name] = str(error)
            continue
        twin = next((other for other, known in found.items() if known == policy), None)
        if twin is None:
            found[name] = policy
        else:
            reasons[name] = f"the same policy as {twin} on this model"
    return found, reasons
