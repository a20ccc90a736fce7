"""CoDe next to dense: `python -m benchmarks.code`.

Work and bytes are of one batch and exact; times are measured here, on one thread, dense and policy in turn. The first
pair has random weights and the proportions of the published one, and shows cost only. The second is the shipped one,
with the quality of its images.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.model import beside_dense
from varsearch.accel import apply, labels_for
from varsearch.evaluators.extractors import classifier_extractor
from varsearch.evaluators.fid import frechet_distance
from varsearch.evaluators.reference import zoo_reference
from varsearch.evaluators.speed import machine
from varsearch.models import ImageModel, zoo
from varsearch.models.image_model import Sibling
from varsearch.models.random_weights import random_model
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig
from varsearch.policy import Policy
from varsearch.space.presets.code import code
from varsearch.target import ModelSpec

SCALES = tuple((side, side) for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
ROUNDS, IMAGES = 5, 2000


def random_pair() -> tuple[ImageModel, ModelSpec]:
    """Depth 16 and width 512 with a refiner of depth 8 and width 256, the published scales of 256 x 256 images."""
    tokenizer = TokenizerConfig(SCALES, vocab=512, z_channels=8, ch=16, ch_mult=(1, 2, 4), res_blocks=1, norm_groups=8)
    large, small = (
        random_model(
            VARConfig(SCALES, depth, 32 * depth, depth, classes=10, vocab=512, z_channels=8), tokenizer, (64, 64)
        )
        for depth in (16, 8)
    )
    spec = small.spec.model_copy(update={"name": "half"})
    return replace(large, sibling=lambda name: Sibling(spec, small.transformer)), spec


def row(model: ImageModel, policy: Policy, batch: int) -> None:
    """One line: ratios to dense, and bytes."""
    cost, full, speedup = beside_dense(model, policy, batch, ROUNDS)
    ratios = {
        "FLOPs": cost.flops / full.flops,
        "weights": cost.weight_bytes / full.weight_bytes,
        "peak": cost.peak_bytes / full.peak_bytes,
    }
    columns = "  ".join(f"{label} {ratio:4.2f}" for label, ratio in ratios.items())
    kv = f"KV {cost.kv_bytes / 1e6:.2f} of {full.kv_bytes / 1e6:.2f} MB"
    first = policy.refiner.first_scale if policy.refiner else 0
    print(f"refiner from scale {first}  {columns}  {kv}  CPU {speedup:4.2f}x", flush=True)


def quality(model: ImageModel, policy: Policy) -> float:
    """Fréchet distance to the shipped reference, in the shipped classifier's features."""
    labels_N, extractor = labels_for(IMAGES, model.spec.classes), classifier_extractor(zoo.load_classifier("mnist"))
    with apply(model, policy) as applied:
        images = torch.cat([applied.images(labels_N[i : i + 100], 0, i) for i in range(0, IMAGES, 100)])
    return frechet_distance(extractor.features(images), zoo_reference("mnist"))


def main() -> None:
    torch.set_num_threads(1)
    model, small = random_pair()
    print(f"{machine(torch.device('cpu'))}; random weights, depth 16 with depth 8, 10 scales up to 16 x 16, batch 1")
    for first_scale in (9, 8, 7, 6):
        row(model, code(model.spec, small, first_scale), 1)
    model, (small,) = zoo.load("mnist"), zoo.siblings("mnist")
    dense = quality(model, Policy.dense(model.spec.n_layers, len(model.spec.scales)))
    print(f"mnist with mnist-small, batch 16; FID of {IMAGES} images, dense {dense:.2f}")
    for first_scale in (5, 4, 3):
        policy = code(model.spec, small, first_scale)
        row(model, policy, 16)
        print(f"  FID {quality(model, policy):.2f}", flush=True)


if __name__ == "__main__":
    main()
