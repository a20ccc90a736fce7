"""The protocols of a run: of its search, and of the reevaluation of its finalists."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Self

from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.measurement import Origin, QualityProtocol, SpeedProtocol
from varsearch.search.core.settings import RunSettings

FRESH_NOISE = 0x5EED
"""Added to a run's seed: no search draws these images, as no one chooses such a seed."""

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
    """The protocols of the reevaluation: more images of other noise, more timed rounds.

    Predictions have no noise and stay as they are. Where that leaves nothing to confirm, these are
    the search's own protocols.
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
    digest = quality.digest if quality else ""
    asked = replace(run, quality_protocol=digest, speed_protocol=speed.digest)
    return store.trials(asked)


def answered(trial: TrialRecord, protocols: Protocols) -> bool:
    """Whether a trial has numbers, and its evidence is all there that these protocols give."""
    has_quality = trial.quality is not None or protocols.quality is None
    return trial.state is State.COMPLETE and trial.speed is not None and has_quality
