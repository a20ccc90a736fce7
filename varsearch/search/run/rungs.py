"""Early looks at a policy: the cheap protocols that a run asks for before its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

from varsearch.measurement import METRICS, Kind, Origin, QualityProtocol, SpeedProtocol
from varsearch.search.core.settings import RunSettings

SHARES = (1 / 8, 3 / 8)
"""Parts of the images that are looked at."""


@dataclass(frozen=True, slots=True)
class Rung:
    """An early look: a cheaper protocol, or the run's own one where that costs nothing.

    Attributes:
        name: for people.
        protocol: how it is evaluated.
        share: what a trial that ends here counts as: the part of its images that was drawn.
            Predicted costs draw none, but proposals that are free would never end, so they count as
            half of the first look.
        metrics: the metrics whose final values it predicts.
    """

    name: str
    protocol: QualityProtocol | SpeedProtocol
    share: float
    metrics: tuple[str, ...]

    @property
    def asks(self) -> tuple[QualityProtocol | None, SpeedProtocol | None]:
        """What a job of this rung asks for."""
        return (
            (self.protocol, None)
            if isinstance(self.protocol, QualityProtocol)
            else (None, self.protocol)
        )

    @property
    def kind(self) -> Kind:
        """What its evidence is about."""
        return "quality" if self.asks[0] else "speed"


def rungs_of(settings: RunSettings, predicted: SpeedProtocol, batch: int) -> tuple[Rung, ...]:
    """The rungs of a run, cheap ones first; none where they would save or predict nothing.

    Args:
        settings: of the run.
        predicted: how costs on its target are predicted.
        batch: images that are drawn at once.
    """
    quality, speed = settings.quality, settings.speed
    names = dict.fromkeys((*settings.objectives, *settings.bounds))
    wanted = {name for name in names if METRICS[name].kind == "quality"}
    # Only of FID is it known how numbers of few images relate to numbers of many.
    if quality is None or not wanted <= {"fid", "delta_fid"}:
        return ()
    # A part of a batch takes as long as a whole one.
    counts = sorted({math.ceil(share * quality.n_images / batch) * batch for share in SHARES})
    looks = [
        Rung(
            name=f"{n} images",
            protocol=quality.model_copy(update={"n_images": n, "nll_images": 0}),
            share=n / quality.n_images,
            metrics=("delta_fid",),
        )
        for n in counts
        if n < quality.n_images
    ]
    if not looks:
        return ()
    costs = speed if speed.origin is Origin.PREDICTED else predicted
    metrics = tuple(name for name in names if METRICS[name].kind == "speed")
    first = [Rung("predicted costs", costs, looks[0].share / 2, metrics)] if metrics else []
    return (*first, *looks)
