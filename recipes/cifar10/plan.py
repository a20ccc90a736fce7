"""The sizes of everything and how long each stage trains: `FULL` for a CUDA device, `SMOKE` for a test on a CPU."""

from __future__ import annotations

import math

from recipes.common.package import Evaluation
from recipes.common.plan import Plan, timed, tiny
from varsearch.models.classifier import ClassifierConfig
from varsearch.models.storage import Storage
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig

SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
"""Of the token maps: those of VAR at 256x256."""

SCALES = tuple((side, side) for side in SIDES)
PIECE_MINUTES = 12
"""The longest that one process is meant to run: the first trains classifier and tokenizer, the second does the rest."""

SHARES = {"classifier": 0.13, "tokenizer": 0.30, "transformer": 0.38}
"""Of the minutes of both pieces; the rest is for reading the data, choosing the guidance and measuring."""

STORED: dict[str, Storage] = {"classifier": "int8", "tokenizer": "bfloat16", "transformer": "int8"}
"""How weights are stored, so that all files stay under 40 MB. What a tokenizer rounds is seen in every image."""

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
        "classifier": timed(batch=512, rate=0.4, warm_up=500, clip=math.inf, decay=0.998),
        "tokenizer": timed(batch=128, rate=1e-3, warm_up=200, clip=1.0, decay=0.0),
        "transformer": timed(batch=128, rate=8e-4, warm_up=300, clip=1.0, decay=0.998),
    },
    stored=STORED,
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
        "classifier": tiny(rate=0.1, steps=6),
        "tokenizer": tiny(rate=2e-3, steps=12),
        "transformer": tiny(rate=2e-3, steps=6),
    },
    stored=STORED,
    evaluation=Evaluation(
        guidance=(0.0, 1.0), agreement=0.0, n_images=32, n_tuning=16, n_held_out=16, batch=16, paired=False
    ),
)
