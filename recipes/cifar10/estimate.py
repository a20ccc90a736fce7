"""What the plan takes, counted without a GPU: `python -m recipes.cifar10.estimate`.

Floating-point operations of a training step are counted, a multiply-add as two. Steps and epochs follow from an assumed
share of the device's peak: they are estimates.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recipes.cifar10.plan import FULL, PIECE_MINUTES, SHARES, SMOKE, STORED
from recipes.common.plan import Plan
from recipes.common.tokenizer import loss_of
from recipes.common.transformer import initialise
from varsearch.models.classifier import build_classifier
from varsearch.models.storage import packed
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE

MINUTES, PEAK_TFLOPS, TRAIN_IMAGES = 2 * PIECE_MINUTES, 989, 48_000
"""The planned time, the dense bf16 peak of an H200, and the images of an epoch."""

FEATURES = FULL.classifier.num_features
OTHERS = 8 * FEATURES**2 + 2 * 2000 * FEATURES + 2 * 680 * FULL.evaluation.n_held_out + 300_000
"""Bytes of covariance, kept features, held-out tokens and a grid of samples."""

ASSUMED = {"classifier": 0.04, "tokenizer": 0.03, "transformer": 0.25}
"""Share of the peak. Narrow convolutions wait for memory; no figure was measured."""


def losses(plan: Plan, n: int) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Each network with the loss of a training step on `n` grey images."""
    torch.manual_seed(0)
    classifier, tokenizer = build_classifier(plan.classifier), VQVAE(plan.tokenizer)
    transformer, c = VAR(plan.transformer), plan.transformer
    initialise(transformer)
    images, labels = torch.zeros(n, plan.classifier.channels, *plan.tokenizer.image_size), torch.zeros(n).long()
    tokens = torch.zeros(n, len(c.scale_of_token)).long()
    inputs = torch.zeros(n, tokens.shape[1] - 1, c.z_channels)
    return {
        "classifier": (classifier, lambda: F.cross_entropy(classifier(images), labels)),
        "tokenizer": (tokenizer, lambda: loss_of(tokenizer, images, quantized=True)[0]),
        "transformer": (transformer, lambda: F.cross_entropy(transformer(labels, inputs).mT, tokens)),
    }


def main() -> None:
    """Prints the estimate."""
    total = OTHERS
    for name, (network, loss) in losses(FULL, n=2).items():
        # The counter does not know the fused attention of CPUs.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            loss().backward()
        flops, seconds, batch = counter.get_total_flops() / 2, 60 * MINUTES * SHARES[name], FULL.stages[name].batch
        images = seconds * ASSUMED[name] * PEAK_TFLOPS * 1e12 / flops
        stored = sum(t.numel() * t.element_size() for t in packed(network.state_dict(), STORED[name]).values())
        total += stored
        print(
            f"{name}: {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters, {stored / 1e6:.1f} MB as "
            f"{STORED[name]}; {flops / 1e9:.2f} GFLOP per image, {flops * batch / 1e12:.2f} TFLOP per step of {batch}; "
            f"{seconds:.0f} s at {ASSUMED[name]:.0%} of {PEAK_TFLOPS} TFLOP/s: {images / batch:.0f} steps, "
            f"{images / TRAIN_IMAGES:.0f} epochs"
        )
    print(f"all files: {total / 1e6:.1f} MB")
    for name, (_, loss) in losses(SMOKE, n=8).items():
        loss().backward()
        start = time.process_time()
        loss().backward()
        print(f"{name}: {time.process_time() - start:.2f} CPU seconds per step of 8 images with --smoke")


if __name__ == "__main__":
    main()
