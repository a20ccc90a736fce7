"""A smaller model for the late scales: neutral with itself, equal to full recomputation, refused where it cannot be."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.accel.oracle import decided
from tests.accel.techniques import DENSE, FULL, PRUNED, SKIP, UNGUIDED, asking, leave, refined, scales, stay
from tests.accel.test_against_oracle import GUIDANCE, Recorder, difference, inputs
from tests.conftest import TOKENIZER, build_small
from tests.exact import exact
from varsearch.accel import apply
from varsearch.errors import ModelError, PolicyError
from varsearch.models.image_model import ImageModel, Sibling
from varsearch.models.random_weights import random_model
from varsearch.models.seams import LayerState
from varsearch.models.var import VARConfig
from varsearch.policy import Decision, KVCompression, LayerPolicy, Policy, Refiner, ScalePolicy, TokenPruning


def itself(model: ImageModel) -> ImageModel:
    """The model with itself beside it."""
    return replace(model, sibling=lambda name: Sibling(model.spec, model.transformer))


def by_itself(model: ImageModel, first_scale: int, policy: Policy = DENSE) -> Policy:
    refiner = Refiner(model="itself", fingerprint=model.spec.fingerprint, first_scale=first_scale)
    return Policy.model_validate(policy.model_dump() | {"refiner": refiner})


def logits(model: ImageModel, policy: Policy, guidance: float | None = GUIDANCE) -> dict[tuple[int, int], Tensor]:
    labels, tokens = inputs(model, 2, seed=3)
    recorder = Recorder(tokens)
    with apply(model, policy) as fast:
        fast.model.generate(labels, recorder, fast.plan, guidance)
    return recorder.logits


def spread(found: dict[tuple[int, int], Tensor], want: dict[tuple[int, int], Tensor]) -> float:
    assert found.keys() == want.keys()
    return max(((found[key] - t).abs().max() / t.std()).item() for key, t in want.items())


@pytest.mark.numerics
@pytest.mark.parametrize("changed", [{}, {2: SKIP}, {3: UNGUIDED, 4: UNGUIDED}, {3: SKIP, 4: UNGUIDED}])
@pytest.mark.parametrize("first_scale", range(1, 5))
def test_handing_over_to_itself_changes_nothing(first_scale: int, changed: dict[int, ScalePolicy]) -> None:
    model, policy = itself(exact()), scales(changed)
    assert spread(logits(model, by_itself(model, first_scale, policy)), logits(model, policy)) < 1e-10


@cache
def of_scales(sides: tuple[tuple[int, int], ...]) -> ImageModel:
    size = (2 * sides[-1][0], 2 * sides[-1][1])
    config = VARConfig(sides, depth=2, width=16, heads=2, classes=10, vocab=32, z_channels=8)
    model = random_model(config, replace(TOKENIZER, scales=sides), size)
    model.transformer.double()
    model.tokenizer.double()
    return itself(model)


@settings(max_examples=25)
@given(st.data())
def test_handing_over_to_itself_on_any_maps(data: st.DataObject) -> None:
    sides = tuple(sorted(data.draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=5))))
    tall = tuple((h, max(w for _, w in sides[: i + 1])) for i, (h, w) in enumerate(sides))
    model = of_scales(tall)
    run = [ScalePolicy(run=k == 0 or data.draw(st.booleans())) for k in range(len(tall))]
    policy = Policy(layers=(LayerPolicy(),) * 2, scales=tuple(run))
    first_scale = data.draw(st.integers(1, len(tall) - 1))
    assert spread(logits(model, by_itself(model, first_scale, policy)), logits(model, policy)) < 1e-10


HIGH = Decision(
    after=3, feature="high_frequency", actions=(stay(0, 0), leave(-1, 0, bias=0.3, scales=(UNGUIDED,), share=0.5))
)
STOP = Decision(
    after=1, feature="high_frequency", actions=(stay(0, 0), leave(-1, 0, bias=0.6, scales=(FULL, FULL, SKIP)))
)
ENTROPY = Decision(after=2, feature="low_entropy", actions=(stay(0), leave(1, bias=-0.47, scales=(PRUNED, UNGUIDED))))
BEFORE = {
    "pruned": refined(scales({2: ScalePolicy(tokens=TokenPruning(keep=0.5))}), 3),
    "shared": refined(scales({2: ScalePolicy(guidance="shared", shared_attention=(0, 1, 2), shared_ffn=(1,))}), 3),
    "asked, pruned, unguided": refined(asking(DENSE.scales, ENTROPY), 4),
    "asked where it runs": refined(asking(DENSE.scales, HIGH), 2),
    "asked, last scale skipped": refined(asking(DENSE.scales, STOP), 4),
    "asked, handed over later": refined(asking(DENSE.scales, STOP), 3),
    "its first scale skipped": refined(scales({3: SKIP}), 3),
    "all its scales skipped": refined(scales({4: SKIP}), 4),
    "unguided before": refined(scales(dict.fromkeys((2, 3, 4), UNGUIDED)), 3),
    "from the second scale on": refined(DENSE, 1),
}


@pytest.mark.parametrize("name", BEFORE)
def test_what_comes_before_the_refiner_equals_the_oracle(name: str) -> None:
    assert difference(exact(), BEFORE[name], n=4) < 1e-9


@pytest.mark.parametrize("name", [name for name in BEFORE if name.startswith("asked")])
def test_images_of_these_tests_part(name: str) -> None:
    labels, tokens = inputs(exact(), 4, seed=0)
    alone = ((labels[i : i + 1], [t[i : i + 1] for t in tokens]) for i in range(4))
    actions = [tuple(decided(exact(), BEFORE[name], *image, GUIDANCE)[1]) for image in alone]
    assert len(set(actions)) == 2


@pytest.mark.numerics
def test_the_likelihood_is_that_of_both_models(tiny: ImageModel) -> None:
    labels, tokens = inputs(tiny, 3, seed=0)
    small = replace(tiny, transformer=build_small().transformer, spec=build_small().spec)
    teacher = tiny.tokenizer.quantize.teacher_input(tokens)
    with torch.no_grad():
        large_NLV, small_NLV = (m.transformer(labels, teacher).log_softmax(-1) for m in (tiny, small))
    mixed_NLV = torch.cat((large_NLV[:, :14], small_NLV[:, 14:]), dim=1)
    want = -mixed_NLV.gather(2, torch.cat(tokens, dim=1)[..., None]).mean((1, 2))
    with apply(tiny, refined(DENSE, 3)) as fast:
        torch.testing.assert_close(fast.likelihood(labels, tokens).float(), want, rtol=1e-4, atol=1e-4)


def test_the_refiner_reads_what_it_must_once(tiny: ImageModel) -> None:
    """One pass over scales 0 to 3 and one over scale 4, rows of both halves, or one half where guidance ended."""
    seen: list[tuple[int, ...]] = []
    attn = tiny.sibling("small").transformer.layers[0].attn.proj
    handle = attn.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape[:2])))
    labels = inputs(tiny, 3, seed=0)[0]
    for policy in (DENSE, scales(dict.fromkeys((3, 4), UNGUIDED)), scales({1: SKIP, 4: SKIP})):
        with apply(tiny, refined(policy, 3)) as fast:
            fast.images(labels, seed=0)
    handle.remove()
    assert seen == [(6, 30), (6, 36), (3, 30), (3, 36), (6, 26)]


def test_the_drafters_memory_is_gone_when_the_refiner_starts(tiny: ImageModel) -> None:
    alive: list[int] = []
    small = tiny.sibling("small").transformer

    def count(module: object, args: object, out: object) -> None:
        gc.collect()
        alive.append(sum(type(found) is LayerState for found in gc.get_objects()))

    handle = small.layers[0].ffn.fc1.register_forward_hook(count)
    with apply(tiny, refined(DENSE, 3)) as fast:
        fast.images(inputs(tiny, 2, seed=0)[0], seed=0)
    handle.remove()
    assert alive == [2, 2], "one per layer of the refiner"


def test_quantized_layers_are_the_drafters(tiny: ImageModel) -> None:
    """KV settings of all layers, from scale 0 on, reach no later scale than the drafter's."""
    policy = Policy(layers=(LayerPolicy(kv=KVCompression(bits=4)),) * 3, scales=DENSE.scales)
    plain, small = (logits(tiny, refined(p, 1)) for p in (DENSE, policy))
    assert spread(small, plain) == 0, "nothing that the only drafted scale stored is read"


def test_other_weights_are_refused(tiny: ImageModel) -> None:
    policy = Policy.model_validate(
        DENSE.model_dump() | {"refiner": Refiner(model="small", fingerprint="0" * 64, first_scale=3)}
    )
    with (
        pytest.raises(
            PolicyError, match=r"refiner small has other weights than the policy's: \w{12}…, expected 0{12}…"
        ),
        apply(tiny, policy),
    ):
        pass


def test_a_model_without_neighbours_has_no_refiner(tiny: ImageModel) -> None:
    alone = random_model(tiny.transformer.config, TOKENIZER, (12, 12))
    with pytest.raises(ModelError, match="there is no model small beside this one"), apply(alone, refined(DENSE, 3)):
        pass
