"""The sizes of everything and how long each stage trains: `FULL` for a CUDA device, `SMOKE` for a test on a CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from recipes.common.budget import Budget, Schedule
from recipes.common.package import Evaluation
from varsearch.models.classifier import ClassifierConfig
from varsearch.models.storage import Storage
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig

SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
"""Of the token maps: those of VAR at 256x256."""

SCALES = tuple((side, side) for side in SIDES)
SHARES = {"classifier": 0.10, "tokenizer": 0.16, "transformer": 0.60}
"""Of the minutes; the rest is for reading the data, encoding it, choosing the guidance and measuring."""

STORED: dict[str, Storage] = {"classifier": "int8", "tokenizer": "bfloat16", "transformer": "int8"}
"""How weights are stored, so that all files stay under 40 MB. What a tokenizer rounds is seen in every image."""


@dataclass(frozen=True)
class Stage:
    """How one network is trained.

    Args:
        batch: images per step.
        rate: largest learning rate.
        schedule: how the training goes.
    """

    batch: int
    rate: float
    schedule: Schedule


@dataclass(frozen=True)
class Plan:
    """What the recipe trains and measures.

    Args:
        name: of the plan.
        images: at most so many training and so many test images are read; None reads all.
        held_out: training images that nothing trains on.
        judged: held-out images that the log's figures are of.
        stages: by network.
    """

    name: str
    images: int | None
    held_out: int
    judged: int
    classifier: ClassifierConfig
    tokenizer: TokenizerConfig
    transformer: VARConfig
    stages: dict[str, Stage]
    evaluation: Evaluation

    def within(self, minutes: float) -> Plan:
        """The same plan with every stage ended after its share of the minutes."""
        return replace(
            self,
            stages={
                name: replace(
                    stage,
                    schedule=replace(
                        stage.schedule, budget=replace(stage.schedule.budget, seconds=60 * minutes * SHARES[name])
                    ),
                )
                for name, stage in self.stages.items()
            },
        )


def _stage(batch: int, rate: float, warm_up: int, clip: float, decay: float) -> Stage:
    return Stage(batch, rate, Schedule(Budget(), warm_up, clip, decay, save_seconds=60))


def _tiny(rate: float, steps: int) -> Stage:
    return Stage(8, rate, Schedule(Budget(steps=steps), warm_up=2, clip=1.0, decay=0.9, save_seconds=0))


FULL = Plan(
    name="full",
    images=None,
    held_out=2000,
    judged=500,
    classifier=ClassifierConfig("residual", channels=3, width=64, num_features=128),
    tokenizer=TokenizerConfig(
        SCALES, vocab=1024, z_channels=16, ch=48, ch_mult=(1, 2), res_blocks=1, image_channels=3, norm_groups=16
    ),
    transformer=VARConfig(
        SCALES, depth=8, width=512, heads=8, classes=10, vocab=1024, z_channels=16, shared_adaln=True
    ),
    stages={
        "classifier": _stage(batch=512, rate=0.4, warm_up=500, clip=math.inf, decay=0.998),
        "tokenizer": _stage(batch=128, rate=1e-3, warm_up=200, clip=1.0, decay=0.0),
        "transformer": _stage(batch=128, rate=8e-4, warm_up=300, clip=1.0, decay=0.998),
    },
    evaluation=Evaluation(
        guidance=(0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
        agreement=0.0,
        n_images=2000,
        n_tuning=2000,
        n_held_out=1000,
        batch=250,
        paired=False,
    ),
)

SMOKE = Plan(
    name="smoke",
    images=64,
    held_out=32,
    judged=8,
    classifier=ClassifierConfig("residual", channels=3, width=4, num_features=8),
    tokenizer=TokenizerConfig(
        SCALES, vocab=16, z_channels=4, ch=4, ch_mult=(1, 2), res_blocks=1, image_channels=3, norm_groups=2
    ),
    transformer=VARConfig(SCALES, depth=2, width=32, heads=2, classes=10, vocab=16, z_channels=4, shared_adaln=True),
    stages={
        "classifier": _tiny(rate=0.1, steps=6),
        "tokenizer": _tiny(rate=2e-3, steps=12),
        "transformer": _tiny(rate=2e-3, steps=6),
    },
    evaluation=Evaluation(
        guidance=(0.0, 1.0), agreement=0.0, n_images=32, n_tuning=16, n_held_out=16, batch=16, paired=False
    ),
)
