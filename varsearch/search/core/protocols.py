"""How the numbers of a run come about: while it searches, and when its finalists are confirmed on fresh noise."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Self

from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.measurement import Origin, QualityProtocol, SpeedProtocol
from varsearch.search.core.settings import RunSettings

FRESH_NOISE = 0x5EED
"""What is added to a run's seed for images that its search has not drawn, nor one with a seed that people choose."""

FRESH_IMAGES = 4
FRESH_ROUNDS = 3
"""How many times as many images and timed rounds a confirmation takes as the search did."""


class Protocols(NamedTuple):
    """Both protocols of a policy's numbers; no quality where it is not evaluated."""

    quality: QualityProtocol | None
    speed: SpeedProtocol

    @classmethod
    def of(cls, settings: RunSettings) -> Self:
        """What the run searches under."""
        return cls(settings.quality, settings.speed)


def confirming(settings: RunSettings) -> Protocols:
    """What the run's finalists are confirmed under: more images of other noise, more rounds where speed is measured.

    Predictions have no noise and stay as they are. Where that leaves nothing to confirm, these are the search's own
    protocols.
    """
    quality, speed = settings.quality, settings.speed
    if quality is not None:
        fresh = {"seed": quality.seed + FRESH_NOISE, "n_images": FRESH_IMAGES * quality.n_images}
        quality = quality.model_copy(update=fresh)
    if speed.origin is Origin.MEASURED:
        speed = speed.model_copy(update={"repeats": FRESH_ROUNDS * speed.repeats})
    return Protocols(quality, speed)


def under(store: Store, run: RunRecord, protocols: Protocols) -> list[TrialRecord]:
    """All trials of the run, each with what the store knows of its policy under these protocols."""
    quality, speed = protocols
    asked = replace(run, quality_protocol=quality.digest if quality else "", speed_protocol=speed.digest)
    return store.trials(asked)


def answered(trial: TrialRecord, protocols: Protocols) -> bool:
    """Whether a trial has numbers, and its evidence is all there that these protocols give."""
    judged = trial.quality is not None or protocols.quality is None
    return trial.state is State.COMPLETE and trial.speed is not None and judged
