"""A run with rungs: what few images say, and a worker that climbs."""

from __future__ import annotations

import random

from tests.search.support.fakes import QUALITY, SPACE, SPEED, STARTS, evidence, settings
from varsearch.measurement import Evidence, Job, Measurement, Outcome, QualityProtocol
from varsearch.policy import Policy
from varsearch.search.run.broker import Broker
from varsearch.search.run.pruner import PAIRS
from varsearch.search.run.rungs import rungs_of

WHOLE = settings(quality=QUALITY.model_copy(update={"n_images": 512}))
RUNGS = rungs_of(WHOLE, SPEED, 64)
DRAWN = ({k: random.Random(f"{i}{k}").randrange(n) for k, n in SPACE.knobs.items()} for i in range(PAIRS + 3))
MANY = {**STARTS, **{f"seed:{i}": SPACE.decode(levels) for i, levels in enumerate(DRAWN)}}
"""More starts than a rung needs to be of use."""


def known(kind: str, policy: Policy, **changes: object) -> Evidence:
    """Exact costs, and quality with a small error."""
    found = evidence(kind, policy, **changes)
    error = 0.02 if kind == "quality" else 0.0
    exact = (Measurement(metric=n, value=v, low=v - error, high=v + error, n=512) for n, v in found.values.items())
    return found.model_copy(update={"measurements": tuple(exact)})


def answer(job: Job, noise: float = 0.05) -> Outcome:
    """ΔFID of few images has noise that the policy decides, that of all next to none."""
    found = {}
    for kind, protocol in (("quality", job.quality), ("speed", job.speed)):
        if protocol is None:
            continue
        found[kind] = known(kind, job.policy, protocol=protocol.digest)
        if isinstance(protocol, QualityProtocol) and protocol.n_images < 512:
            delta = found[kind].values["delta_fid"]
            delta += random.Random(f"{job.policy.digest}{protocol.n_images}").gauss(0, noise)
            early = {"delta_fid": delta, "fid": 4.0 + delta, "kid": delta / 10, "feature_distance": abs(delta)}
            measurements = tuple(Measurement(metric=name, value=value, n=64) for name, value in early.items())
            found[kind] = found[kind].model_copy(update={"measurements": measurements})
    return Outcome(number=job.number, **found)


def asked(job: Job) -> str:
    """The rung that a job is of."""
    return f"{job.quality.n_images} images" if job.quality else "costs"


def climb(broker: Broker, noise: float = 0.05, jobs: int | None = None) -> list[tuple[int, str]]:
    """Evaluates until there are no more jobs, or so many; number and rung of each."""
    seen = []
    while (jobs is None or len(seen) < jobs) and (job := broker.lease("a")) is not None:
        seen.append((job.number, asked(job)))
        broker.report(answer(job, noise))
    return seen
