"""Early looks at a policy: which there are, and how their numbers tell the final ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from varsearch.measurement import METRICS, Kind, Origin, QualityProtocol, SpeedProtocol
from varsearch.search.core.pareto import Array
from varsearch.search.core.settings import RunSettings

SHARES = (1 / 8, 3 / 8)
"""Parts of the images that are looked at."""

PAIRS = 12
"""Complete trials that must have a rung's number and the final one before the rung may stop anything."""

RANK = 0.6
"""Least rank correlation of a rung's number with the final one."""


@dataclass(frozen=True, slots=True)
class Rung:
    """An early look: evidence under another protocol than the run's, or under the run's own where that costs nothing.

    Attributes:
        name: for people.
        protocol: how it is evaluated.
        share: what a trial that ends here counts as: the part of its images that were drawn. Costs draw none, but what
            is free would be proposed without end, so they count as half of the first look.
        metrics: whose final values it tells.
    """

    name: str
    protocol: QualityProtocol | SpeedProtocol
    share: float
    metrics: tuple[str, ...]

    @property
    def asks(self) -> tuple[QualityProtocol | None, SpeedProtocol | None]:
        """What a job of this rung asks for."""
        return (self.protocol, None) if isinstance(self.protocol, QualityProtocol) else (None, self.protocol)

    @property
    def kind(self) -> Kind:
        """What its evidence is about."""
        return "quality" if self.asks[0] else "speed"


def rungs_of(settings: RunSettings, predicted: SpeedProtocol, batch: int) -> tuple[Rung, ...]:
    """The rungs of a run, cheap ones first; none where few images are drawn, or they tell nothing of what counts.

    Args:
        settings: of the run.
        predicted: how costs on its target are predicted.
        batch: images that are drawn at once.
    """
    quality, speed = settings.quality, settings.speed
    wanted = {name for name in (*settings.objectives, *settings.bounds) if METRICS[name].kind == "quality"}
    if quality is None or not wanted <= {"fid", "delta_fid"}:
        return ()
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
    names = dict.fromkeys((*settings.objectives, *settings.bounds))
    metrics = tuple(name for name in names if METRICS[name].kind == "speed")
    first = [Rung("predicted costs", costs, looks[0].share / 2, metrics)] if metrics else []
    return (*first, *looks)


@dataclass(frozen=True, slots=True)
class Link:
    """From a rung's number to the final one: a line between bent numbers, its residual deviation, and how it ranks.

    Attributes:
        rank: Spearman's correlation of the two numbers over `pairs` trials.
    """

    slope: float
    offset: float
    error: float
    rank: float
    pairs: int

    @property
    def is_usable(self) -> bool:
        """Whether it may stop trials."""
        return self.pairs >= PAIRS and self.rank >= RANK


EXACT = Link(1.0, 0.0, 0.0, 1.0, PAIRS)
"""Where the rung's number is the final one."""


def fit_link(early_N: Array, final_N: Array) -> Link:
    """The least-squares line from bent early to bent final numbers; not usable with too few of them."""
    n = len(early_N)
    if n < PAIRS or np.ptp(early_N) == 0 or np.ptp(final_N) == 0:
        return Link(0.0, 0.0, math.inf, 0.0, n)
    slope, offset = np.polyfit(early_N, final_N, 1)
    error = float(np.sqrt(((final_N - offset - slope * early_N) ** 2).sum() / (n - 2)))
    return Link(float(slope), float(offset), error, float(spearmanr(early_N, final_N).statistic), n)
