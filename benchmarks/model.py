"""The models that benchmarks run, and a policy beside dense."""

from __future__ import annotations

from dataclasses import replace

from varsearch.accel import apply
from varsearch.evaluators.speed import dense_twin, interleaved
from varsearch.evaluators.trace import Trace, trace
from varsearch.models import ImageModel, zoo
from varsearch.models.image_model import Sibling
from varsearch.models.random_weights import random_model
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig
from varsearch.policy import Policy
from varsearch.target import DType, Target

SCALES = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8))

SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
"""Maps of Infinity's 1024-pixel schedule; its 512-pixel schedule is the first ten."""


def small_model() -> ImageModel:
    """The `mnist` model; while it is not installed its shape with random weights, which is as fast."""
    if "mnist" in zoo.names():
        return zoo.load("mnist")
    transformer = VARConfig(SCALES, depth=6, width=128, heads=4, classes=10, vocab=128, z_channels=8)
    tokenizer = TokenizerConfig(
        SCALES, vocab=128, z_channels=8, ch=16, ch_mult=(1, 2, 4), res_blocks=1, image_channels=1, norm_groups=8
    )
    return random_model(transformer, tokenizer, (32, 32))


def large_model() -> ImageModel:
    """Random weights, Infinity's 512-pixel schedule: 2,521 tokens, 1,024 of them in the last map of 32 x 32.

    Attention and linears do about the same work, as in the published models at 1024 pixels. Its sibling has half the
    depth and half the width, about as VAR-d16 next to VAR-d30.
    """
    half = _large(3, 128)
    spec = half.spec.model_copy(update={"name": "half"})
    return replace(_large(6, 256), sibling=lambda name: Sibling(spec, half.transformer))


def _large(depth: int, width: int) -> ImageModel:
    scales = tuple((side, side) for side in SIDES[:10])
    transformer = VARConfig(scales, depth, width, width // 32, classes=10, vocab=512, z_channels=8)
    tokenizer = TokenizerConfig(
        scales, vocab=512, z_channels=8, ch=16, ch_mult=(1, 2, 4), res_blocks=1, image_channels=3, norm_groups=8
    )
    return random_model(transformer, tokenizer, (128, 128))


def random(name: str, device: str = "cpu", dtype: DType = "float32") -> ImageModel:
    """A published model with random weights, sampled as its authors did."""
    return zoo.load(f"{name}@random", device, dtype)


def beside_dense(model: ImageModel, policy: Policy, batch: int, rounds: int) -> tuple[Trace, Trace, float]:
    """Cost of a policy and of dense for one batch on this CPU, and the speed-up, timed in turn."""
    target = Target(device="cpu", dtype="float32", batch_size=batch)
    dense = Policy.dense(model.spec.n_layers, len(model.spec.scales))
    with apply(model, policy) as applied:
        speedup = interleaved(dense_twin(model), applied, batch, rounds).speedup
    return trace(model, policy, target), trace(model, dense, target), speedup
