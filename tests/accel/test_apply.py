"""Applying a policy: dense is the plain model, the model comes back untouched, and images stay independent."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch

from tests.accel.techniques import DENSE, TECHNIQUES, layers, scales
from tests.conftest import build_tiny
from tests.exact import exact, same_images
from varsearch.accel import apply, labels_for
from varsearch.errors import PolicyError
from varsearch.models.image_model import ImageModel
from varsearch.models.sampling import PairedSampler
from varsearch.policy import KVCompression, Policy, Quantization, ScalePolicy, TokenPruning, Weights
from varsearch.space import SearchSpace

LABELS = labels_for(4, 10)


def weights_hash(model: ImageModel) -> str:
    state = model.transformer.state_dict() | {f"vae.{k}": v for k, v in model.tokenizer.state_dict().items()}
    return hashlib.sha256(b"".join(name.encode() + t.numpy().tobytes() for name, t in state.items())).hexdigest()


def test_dense_is_bit_exact_with_a_policy_free_forward(tiny: ImageModel) -> None:
    with apply(tiny, DENSE) as fast:
        assert torch.equal(fast.images(LABELS, seed=1), tiny.generate(LABELS, PairedSampler(1, range(4))))


@pytest.mark.parametrize("name", [name for name in TECHNIQUES if name != "dense"])
def test_every_technique_acts_and_leaves_no_trace(name: str) -> None:
    model = build_tiny()
    before, dense = weights_hash(model), model.generate(LABELS, PairedSampler(1, range(4)))
    tokens = [torch.randint(32, (4, n), generator=torch.Generator().manual_seed(0)) for n in model.spec.tokens]
    likelihood = model.likelihood(LABELS, tokens)
    with apply(model, TECHNIQUES[name]) as fast:
        images = fast.images(LABELS, seed=1)
        # Eight bits may flip no token of four images, but they move the likelihood.
        assert not torch.equal(images, dense) or not torch.equal(fast.likelihood(LABELS, tokens), likelihood)
    assert images.isfinite().all()
    assert weights_hash(model) == before
    assert torch.equal(model.generate(LABELS, PairedSampler(1, range(4))), dense)


def test_an_error_inside_restores_the_model() -> None:
    model = build_tiny()
    modules = [type(m) for m in model.transformer.modules()]
    with pytest.raises(RuntimeError, match="stop"), apply(model, TECHNIQUES["w4-group"]):
        assert [type(m) for m in model.transformer.modules()] != modules
        raise RuntimeError("stop")
    assert [type(m) for m in model.transformer.modules()] == modules


@pytest.mark.slow
def test_a_thousand_random_policies_leave_the_weights_as_they_were() -> None:
    model, rng = build_tiny(), random.Random(0)
    before, space = weights_hash(model), SearchSpace(model.spec)
    dense = model.generate(LABELS, PairedSampler(1, range(4)))
    for _ in range(1000):
        with apply(model, space.random(rng, rng.random())) as fast:
            assert fast.images(LABELS[:1], seed=1).isfinite().all()
    assert weights_hash(model) == before
    assert torch.equal(model.generate(LABELS, PairedSampler(1, range(4))), dense)


@pytest.mark.numerics
@pytest.mark.parametrize("name", TECHNIQUES)
def test_an_image_does_not_depend_on_its_neighbours(name: str) -> None:
    with apply(exact(), TECHNIQUES[name]) as fast:
        together = fast.images(LABELS, seed=2)
        alone = torch.cat([fast.images(LABELS[i : i + 1], seed=2, first=i) for i in range(4)])
    same_images(together, alone)


@pytest.mark.numerics
def test_guidance_settings_do_not_touch_the_likelihood() -> None:
    tiny = exact()
    tokens = [torch.randint(32, (4, n), generator=torch.Generator().manual_seed(0)) for n in tiny.spec.tokens]
    want = tiny.likelihood(LABELS, tokens)
    for name in ("shared", "shared-first", "unguided-last", "unguided"):
        with apply(tiny, TECHNIQUES[name]) as fast:
            torch.testing.assert_close(fast.likelihood(LABELS, tokens), want)
    for name in ("kv-half", "prune-last", "window", "w4-group"):
        with apply(tiny, TECHNIQUES[name]) as fast:
            assert not torch.equal(fast.likelihood(LABELS, tokens), want)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Policy.dense(2, 5), "has 2 layers"),
        (layers(kv=KVCompression(keep=(0.5, 0.5))), "names 2 heads"),
        (layers(weights=Weights(fc1=Quantization(bits=4, group=128))), "do not divide"),
    ],
)
def test_policies_of_other_models_are_refused(tiny: ImageModel, policy: Policy, reason: str) -> None:
    with pytest.raises(PolicyError, match=reason), apply(tiny, policy):
        pass


def test_labels_are_balanced() -> None:
    assert labels_for(25, 10).bincount().tolist() == [3] * 5 + [2] * 5


def test_pruning_runs_only_the_kept_tokens(tiny: ImageModel) -> None:
    seen: list[tuple[int, ...]] = []
    fc1 = tiny.transformer.layers[0].ffn.fc1
    handle = fc1.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape)))
    with apply(tiny, scales({4: ScalePolicy(tokens=TokenPruning(keep=0.25))})) as fast:
        fast.images(LABELS, seed=0)
    handle.remove()
    assert [shape[1] for shape in seen] == [1, 4, 9, 16, 9]


def test_guidance_settings_run_only_the_rows_they_say(tiny: ImageModel) -> None:
    rows: list[int] = []
    handle = tiny.transformer.layers[1].attn.proj.register_forward_hook(lambda m, args, out: rows.append(len(args[0])))
    chosen = {1: ScalePolicy(guidance="shared", shared_attention=(1,)), 3: ScalePolicy(guidance="off")}
    with apply(tiny, scales(chosen | {4: ScalePolicy(guidance="off")})) as fast:
        fast.images(LABELS, seed=0)
    handle.remove()
    assert rows == [8, 4, 8, 4, 4]
