"""The sizes of everything and how long each stage trains: `FULL` for one core of a CPU, `SMOKE` for a test."""

from __future__ import annotations

import math

from recipes.common.budget import Budget, Schedule
from recipes.common.package import Evaluation
from recipes.common.plan import Plan, Stage, tiny
from varsearch.models.classifier import ClassifierConfig
from varsearch.models.storage import Storage
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig

SIDES = (1, 2, 3, 4, 6, 9, 12, 16)
"""Of the token maps: 547 tokens in all."""

SCALES = tuple((side, side) for side in SIDES)
CLASSES = 9
POWER = 0.5
"""A training draws a class of n images in proportion to n ** `POWER`: three fifths of the images are people."""

STORED: dict[str, Storage] = {"classifier": "bfloat16", "tokenizer": "bfloat16", "transformer": "bfloat16"}


def _steps(batch: int, rate: float, steps: int, clip: float, decay: float) -> Stage:
    """A stage of so many steps; until half of them are done, their number may be changed."""
    schedule = Schedule(Budget(steps=steps), 200, clip, decay, save_seconds=120, processor=True, flat=0.5)
    return Stage(batch, rate, schedule)


FULL = Plan(
    name="full",
    images=None,
    held_out=0.1,
    judged=96,
    classifier=ClassifierConfig("residual", channels=3, width=24, num_features=64, classes=CLASSES, side=64),
    tokenizer=TokenizerConfig(
        SCALES, vocab=512, z_channels=16, ch=16, ch_mult=(1, 2, 4), res_blocks=1, image_channels=3, norm_groups=8
    ),
    transformer=VARConfig(
        SCALES, depth=8, width=192, heads=6, classes=CLASSES, vocab=512, z_channels=16, shared_adaln=True
    ),
    stages={
        "classifier": _steps(batch=64, rate=0.05, steps=2400, clip=math.inf, decay=0.998),
        "tokenizer": _steps(batch=16, rate=1.5e-3, steps=8000, clip=1.0, decay=0.0),
        "transformer": _steps(batch=16, rate=1e-3, steps=16000, clip=1.0, decay=0.999),
    },
    stored=STORED,
    evaluation=Evaluation(
        guidance=(0.5, 1.0, 1.5, 2.0, 3.0),
        agreement=0.6,
        n_images=432,
        n_tuning=360,
        n_held_out=450,
        batch=48,
        paired=True,
    ),
    noise=0.2,
)

SMOKE = Plan(
    name="smoke",
    images=90,
    held_out=0.1,
    judged=8,
    classifier=ClassifierConfig("residual", channels=3, width=4, num_features=8, classes=CLASSES, side=64),
    tokenizer=TokenizerConfig(
        SCALES, vocab=16, z_channels=4, ch=4, ch_mult=(1, 1, 2), res_blocks=1, image_channels=3, norm_groups=2
    ),
    transformer=VARConfig(
        SCALES, depth=2, width=32, heads=2, classes=CLASSES, vocab=16, z_channels=4, shared_adaln=True
    ),
    stages={
        "classifier": tiny(rate=0.05, steps=6),
        "tokenizer": tiny(rate=2e-3, steps=8),
        "transformer": tiny(rate=2e-3, steps=6),
    },
    stored=STORED,
    evaluation=Evaluation(
        guidance=(0.5, 1.0), agreement=0.0, n_images=18, n_tuning=18, n_held_out=18, batch=18, paired=True
    ),
    noise=0.2,
)
