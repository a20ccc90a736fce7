"""Passes go in parts that there is memory for: by the trace, for every published model on every device."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from tests.accel.techniques import DENSE
from tests.conftest import build_tiny
from varsearch.errors import EvaluationError
from varsearch.evaluators.batches import (
    PLENTY,
    SLACK,
    Batches,
    Pass,
    drawing,
    free_bytes,
    largest,
    needed_bytes,
    reading,
)
from varsearch.evaluators.calibrate import BATCH as WATCHED
from varsearch.evaluators.calibrate import watching
from varsearch.evaluators.draws import BATCH
from varsearch.evaluators.memory import StorageTracker
from varsearch.evaluators.workload import default_sampler, run_batch, zoo_skeleton
from varsearch.models import registry
from varsearch.models.image_model import ImageModel
from varsearch.models.published import PUBLISHED
from varsearch.policy import Policy
from varsearch.target import default_target, devices

MODEL = build_tiny()


def test_the_trace_is_what_a_run_holds() -> None:
    parts = (MODEL.transformer, MODEL.tokenizer)
    weights = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    with StorageTracker(weights) as seen:
        run_batch(_applied(), 4, default_sampler(MODEL))
    assert needed_bytes(MODEL, DENSE, 4) == pytest.approx(seen.peak_bytes - seen.weight_bytes, rel=0.02)


def _applied() -> object:
    from varsearch.accel import Accelerated

    return Accelerated(MODEL, MODEL.dense_plan())


@pytest.mark.parametrize("run", [drawing, reading, watching])
def test_the_largest_batch_fits_and_the_next_does_not(run: Pass) -> None:
    one, eight = (needed_bytes(MODEL, DENSE, n, run) for n in (1, 8))
    for free in (one, 3 * one, eight):
        n = largest(one, eight, 8, free)
        assert needed_bytes(MODEL, DENSE, n, run) <= free, "no more than there is"
        assert needed_bytes(MODEL, DENSE, n + 2, run) > free, "and not far less"
    assert largest(one, eight, 8, one - 1) == 0


def test_with_plenty_of_memory_batches_are_the_usual_ones() -> None:
    plenty = needed_bytes(MODEL, DENSE, PLENTY * 8)
    assert Batches(MODEL, 8, free=int(SLACK * plenty) + SLACK).of(DENSE) == 8  # type: ignore[arg-type]


def test_with_little_memory_they_are_smaller() -> None:
    found = Batches(MODEL, 8, free=int(SLACK * needed_bytes(MODEL, DENSE, 3)) + 2).of(DENSE)
    assert found == 3


def test_without_memory_for_one_image_nothing_is_drawn() -> None:
    with pytest.raises(EvaluationError, match=r"one image needs .* GB besides the weights, and 0\.0 GB are free"):
        Batches(MODEL, 8, free=1000).of(DENSE)


def test_some_memory_is_free() -> None:
    assert free_bytes(torch.device("cpu")) > 2**20


@cache
def bones(name: str) -> ImageModel:
    return zoo_skeleton(registry.join(name, registry.RANDOM, None))


@cache
def held(name: str, run: Pass, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes besides the weights with one image and with two."""
    model = bones(name)
    dense = Policy.dense(model.spec.n_layers, len(model.spec.scales))
    one, two = (needed_bytes(model, dense, n, run, dtype) for n in (1, 2))
    return one, two


def weight_bytes(model: ImageModel) -> int:
    """Of transformer and tokenizer in 16 bits."""
    return sum(2 * t.numel() for part in (model.transformer, model.tokenizer) for t in part.parameters())


TOO_LARGE = {("infinity-8b", name) for name in ("3090", "4090", "4090d", "4090-laptop")}
"""16.9 GB of weights in 16 bits, and 8.3 GB for one image: 24 GB are too little for anything but smaller policies."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_pass_of_every_model_fits_every_gpu_or_is_cut(name: str) -> None:
    model = bones(name)
    passes: list[tuple[str, Pass, int]] = [("images", drawing, BATCH)]
    if model.spec.family != "infinity":
        passes.append(("likelihood", reading, BATCH))
    if model.spec.family != "mvar":
        passes.append(("calibration", watching, WATCHED))
    for row in devices().values():
        if row.kind == "cpu":
            continue
        dtype: torch.dtype = getattr(torch, default_target(row, spec=model.spec).dtype)
        # 5 % of a GPU's memory is the driver's and the context's.
        room = int((0.95 * row.memory_gb * 1e9 - weight_bytes(model)) / SLACK)
        if (name, row.name) in TOO_LARGE:
            assert room < held(name, drawing, dtype)[0], "it fits: take it off the list"
            continue
        for label, run, usual in passes:
            one, two = held(name, run, dtype)
            n = min(usual, largest(one, two, 2, room))
            assert n >= 1, (
                f"{label} of {name} on {row.name}: {one / 1e9:.1f} GB for one image, {room / 1e9:.1f} GB free"
            )
            assert one + (n - 1) * (two - one) <= room
