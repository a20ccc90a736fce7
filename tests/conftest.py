from __future__ import annotations

import signal
from dataclasses import replace
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from varsearch.calibration import Calibration
from varsearch.evaluators.calibrate import calibrate, protocol_of
from varsearch.models import zoo
from varsearch.models.image_model import ImageModel, Sibling
from varsearch.models.random_weights import random_model
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig

# A shell's background job ignores Ctrl-C, and so would the processes that tests start to interrupt them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline would be a timed test: slow machines would fail it.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")

SCALES = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6))
TOKENIZER = TokenizerConfig(
    SCALES, vocab=32, z_channels=8, ch=16, ch_mult=(1, 2), res_blocks=1, image_channels=1, norm_groups=8
)
ROUNDING = pytest.StashKey[object]()
SHARED = Path(__file__).parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounding", type=int, metavar="SEED", help="round as another processor might")


def pytest_configure(config: pytest.Config) -> None:
    if (seed := config.getoption("--rounding")) is not None:
        from tests import rounding

        config.stash[ROUNDING] = rounding.install(seed)


def build_tiny(shared_adaln: bool = False, cosine: bool = True, seed: int = 0) -> ImageModel:
    """Random weights, 5 scales, 3 layers of 4 heads, 12x12 images; whatever is asked for beside it is `build_small`."""
    transformer = VARConfig(
        SCALES, depth=3, width=64, heads=4, classes=10, vocab=32, z_channels=8,
        shared_adaln=shared_adaln, cosine_attention=cosine,
    )  # fmt: skip
    return replace(random_model(transformer, TOKENIZER, (12, 12), seed), sibling=cache(lambda name: build_small()))


def build_small() -> Sibling:
    """A transformer for the same tokens: 2 layers of 2 heads."""
    config = VARConfig(SCALES, depth=2, width=24, heads=2, classes=10, vocab=32, z_channels=8)
    model = random_model(config, TOKENIZER, (12, 12), seed=7)
    return Sibling(model.spec, model.transformer)


@pytest.fixture(scope="session")
def tiny() -> ImageModel:
    return build_tiny()


@pytest.fixture(scope="session")
def mnist_calibration() -> Calibration:
    """What a calibration pass learns about the shipped model; the pass takes a while."""
    model = zoo.load("mnist")
    return calibrate(model, protocol_of(model))


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Folder with published outputs and images; it is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip("the folder with published outputs and data sets is not here")
    return SHARED
