"""The shipped pair: `mnist-small` is what its card says, shares the files of `mnist`, and refines its images."""

from __future__ import annotations

import pytest
import torch

from varsearch.accel import apply, labels_for
from varsearch.models import ImageModel, zoo
from varsearch.policy import Policy
from varsearch.space.presets.code import code

N = 200


def agreement(model: ImageModel, policy: Policy) -> float:
    """Share of images that the shipped classifier gives their label."""
    classifier, labels_N = zoo.load_classifier("mnist"), labels_for(N, 10)
    with apply(model, policy) as applied, torch.no_grad():
        images = torch.cat([applied.images(labels_N[i : i + 50], 2, i) for i in range(0, N, 50)])
        return (classifier(images * 2 - 1).argmax(1) == labels_N).float().mean().item()


def dense(model: ImageModel) -> Policy:
    return Policy.dense(model.spec.n_layers, len(model.spec.scales))


def test_the_weights_of_both_are_small_and_shared() -> None:
    assert sum(path.stat().st_size for path in zoo.WEIGHTS.rglob("*") if path.is_file()) < 15e6
    own, shared = zoo.manifest("mnist").files, zoo.manifest("mnist-small").files
    assert {part for part in own if own[part][1] != shared[part][1]} == {"transformer"}
    assert [path.name for path in (zoo.WEIGHTS / "mnist-small").glob("*.safetensors")] == ["transformer.safetensors"]
    assert [spec.name for spec in zoo.siblings("mnist")] == ["mnist-small"]
    assert zoo.siblings("mnist-small") == []


def test_the_small_models_card() -> None:
    model, card = zoo.load("mnist-small"), zoo.card("mnist-small")["numbers"]
    assert sum(p.numel() for p in model.transformer.parameters()) == card["parameters_transformer"] < 400_000
    tokens, labels = zoo.held_out("mnist-small")
    nll = model.likelihood(labels, tokens).mean().item()
    assert nll == pytest.approx(card["nll_test"], abs=0.03), "the first 1,000 of 10,000 images"
    assert zoo.card("mnist")["numbers"]["nll_test"] < nll
    assert model.sampling.guidance == card["guidance"]
    # Three standard errors of 200 images.
    expected = card["label_agreement_samples"]
    assert abs(agreement(model, dense(model)) - expected) < 3 * (expected * (1 - expected) / N) ** 0.5 + 1e-3


def test_the_small_model_refines_the_large_ones_images() -> None:
    model, (small,) = zoo.load("mnist"), zoo.siblings("mnist")
    tokens, labels = (zoo.held_out("mnist")[0], zoo.held_out("mnist")[1][:100])
    tokens = [t[:100] for t in tokens]
    found = []
    for policy in (dense(model), *(code(model.spec, small, k) for k in (5, 4, 3))):
        with apply(model, policy) as applied:
            found.append(applied.likelihood(labels, tokens).mean().item())
    assert found == sorted(found), "the earlier the small model starts, the less likely"
    assert agreement(model, code(model.spec, small, 5)) > 0.95
