"""Single settings, put into any policy and found again."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as configured
from hypothesis import strategies as st

from tests.space.policies import random_policy
from varsearch.errors import PolicyError
from varsearch.policy import (
    CrossScale,
    KVCompression,
    LayerPolicy,
    Policy,
    Quantization,
    Refiner,
    ScalePolicy,
    Selection,
    SparseAttention,
)
from varsearch.policy import TokenPruning as Pruning
from varsearch.space import SearchSpace
from varsearch.space.settings import KINDS, HeadBudget, Setting, candidates, compose, effective, settings_of
from varsearch.target import ModelSpec

MNIST = ModelSpec(
    name="small",
    n_layers=6,
    n_heads=4,
    head_dim=32,
    scales=((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)),
    classes=10,
    image_size=(32, 32),
)
SHARED_ADALN = MNIST.model_copy(update={"name": "shared-adaln", "shared_adaln": True, "n_layers": 2})
SIBLING = MNIST.model_copy(update={"name": "little", "n_layers": 2, "fingerprint": "f" * 64})
DENSE = Policy.dense(6, 6)
ALL = candidates(MNIST, [SIBLING])
BY_NAME = {setting.name: setting for setting in ALL}


def test_settings_cover_every_place() -> None:
    by_kind = {kind: [s for s in ALL if s.kind == kind] for kind in {s.kind for s in ALL}}
    assert {kind: len(found) for kind, found in by_kind.items()} == {
        "bits": 6 * 5 * 4,
        "keep": 6 * 4 * 5,
        "kv_bits": 6 * 2,
        "window": 6 * (1 + 2 + 3 + 3),
        "tokens": 6 * 5 * 3,
        "sharing": 6 * 6 * 2,
        "skip": 5,
        "guidance": 6,
        "refiner": 5,
    }
    assert len(BY_NAME) == len(ALL) == len({s.apply(DENSE).digest for s in ALL})
    assert {"L3.fc1=4bit", "L3H1.keep=0.5", "L0.kv_bits=8bit", "L2S5.window=3", "L5S4.tokens=0.25"} < BY_NAME.keys()
    assert {"L0S5.ffn=shared", "S5.skip=yes", "guidance=off from 4", "refiner=little from 2"} < BY_NAME.keys()


def test_settings_that_validation_refuses_are_left_out() -> None:
    names = {s.name for s in candidates(SHARED_ADALN)}
    assert "L0.fc2=8bit" in names and "L0.ada=8bit" not in names  # the layers share one AdaLN
    assert not {"S0.skip=yes", "L0S0.tokens=0.5", "refiner=little from 2"} & names


def test_each_setting_is_found_again() -> None:
    for setting in ALL:
        assert settings_of(setting.apply(DENSE)) == (setting,)


@configured(max_examples=150)
@given(st.integers(0, 2**32), st.floats(0, 1))
def test_policies_of_the_space_are_their_settings(seed: int, density: float) -> None:
    policy = SearchSpace(MNIST).random(random.Random(seed), density)
    found = settings_of(policy)
    assert compose(MNIST, found) == policy
    assert len({s.unit for s in found}) == len(found)


@configured(max_examples=100)
@given(st.lists(st.sampled_from(ALL), max_size=40, unique_by=lambda s: s.unit), st.randoms())
def test_the_order_of_edits_does_not_matter(chosen: list[Setting], rng: random.Random) -> None:
    policy = compose(MNIST, chosen)
    policy.check(MNIST)
    rng.shuffle(chosen)
    assert compose(MNIST, chosen) == policy
    found = settings_of(policy)
    assert compose(MNIST, found) == policy
    # Less what has no effect behind a skipped scale, dropped guidance or a refiner; a skipped scale has no guidance.
    assert {s for s in found if s.kind != "guidance"} <= set(chosen)


def test_guidance_is_off_from_the_first_scale_that_runs() -> None:
    policy = compose(MNIST, [BY_NAME["guidance=off from 3"], BY_NAME["S3.skip=yes"]])
    assert {*settings_of(policy)} == {BY_NAME["guidance=off from 4"], BY_NAME["S3.skip=yes"]}


@given(st.sampled_from(ALL), st.sampled_from(ALL))
def test_a_unit_has_one_setting(first: Setting, second: Setting) -> None:
    both = second.apply(first.apply(DENSE))
    if first.unit == second.unit:
        assert both == second.apply(DENSE)
    elif first.kind == second.kind != "skip":
        assert {*settings_of(both)} == {first, second}


def test_what_would_have_no_effect_is_not_written() -> None:
    unguided, skipped = BY_NAME["guidance=off from 4"], BY_NAME["S5.skip=yes"]
    refined = BY_NAME["refiner=little from 5"]
    for behind in ("L0S5.ffn=shared", "L2S5.window=3", "L5S5.tokens=0.25"):
        assert compose(MNIST, [skipped, BY_NAME[behind]]) == compose(MNIST, [BY_NAME[behind], skipped])
        assert effective([BY_NAME[behind], skipped]) == (skipped,)
    for behind in ("L0S5.ffn=shared", "L5S5.tokens=0.25"):
        assert compose(MNIST, [skipped, BY_NAME[behind]]) == skipped.apply(DENSE)
    assert compose(MNIST, [BY_NAME["L0S5.ffn=shared"], unguided]) == unguided.apply(DENSE)
    assert compose(MNIST, [BY_NAME["L5S5.tokens=0.25"], refined]) == refined.apply(DENSE)
    # What comes earlier stays.
    kept = compose(MNIST, [BY_NAME["L0S3.ffn=shared"], BY_NAME["L1S4.tokens=0.5"], unguided, refined])
    assert len(settings_of(kept)) == 4


def test_guidance_that_ends_later_is_back_before() -> None:
    early, late = BY_NAME["guidance=off from 2"], BY_NAME["guidance=off from 5"]
    assert compose(MNIST, [early, late]) == late.apply(DENSE)


def test_what_differs_between_heads_scales_and_scores_has_settings_of_its_own() -> None:
    heads = SparseAttention(window=((None,) * 4,) * 5 + ((1, 2, 2, 2),), band=((None,) * 4,) * 5 + ((7,) * 4,))
    chosen = SparseAttention(cross_scale=CrossScale(decision_scale=4, keys=0.25, sink_scales=2, radius=(1, 1)))
    kv = KVCompression(cache_budget=((1, 1, 1, 1), *((0.5, 1, 1, 0.25),) * 5), attention_budget=((1, 1, 0.5, 1),) * 6)
    layers = (LayerPolicy(attention=heads, kv=kv), LayerPolicy(attention=chosen), *DENSE.layers[2:])
    tokens = Pruning(keep=0.5, last_layer=2, layer_keep=(1, 1, 0.5), score="entropy")
    policy = Policy(layers=layers, scales=(*DENSE.scales[:5], ScalePolicy(tokens=tokens)))
    found = settings_of(policy)
    assert [s.name for s in found] == [
        "L0H0.keep=kept 50% at 1,2,3,4",
        "L0H2.keep=attended 50%",
        "L0H3.keep=kept 25% at 1,2,3,4",
        "L0S5.window=1 for heads 0, 2 for heads 1,2,3",
        "L0S5.band=7",
        "L1.cross_scale=25.0% from scale 4",
        "L2S5.tokens=0.5 by entropy",
        "S5.token_layers=0..2",
    ]
    assert compose(MNIST, found) == policy
    assert [s.describe() for s in found[-2:]] == [
        ("scale 5 layer 2", "tokens", "50% of them, by entropy"),
        ("scale 5", "tokens", "pruning names layers 0..2, without effect"),
    ]
    assert found[-1] not in effective(found) and {*effective(found)} == {*found[:-1]}


def test_budgets_for_each_scale_and_for_all_share_a_layer() -> None:
    by_scale = Setting("keep", HeadBudget((1.0, 1.0, 0.5, 0.5, 0.25, 1.0)), layer=0, head=1, heads=4)
    for_all = BY_NAME["L0H2.keep=0.5"]
    policy = compose(MNIST, [by_scale, for_all])
    assert policy.layers[0].kv.cache_budget[2] == (1, 0.5, 0.5, 1) and not policy.layers[0].kv.keep
    assert settings_of(policy) == (by_scale, for_all)
    assert by_scale.remove(policy) == for_all.apply(DENSE)


@configured(max_examples=300)
@given(st.integers(0, 2**32))
def test_every_policy_is_exactly_its_settings(seed: int) -> None:
    policy = random_policy(MNIST, random.Random(seed))
    found = settings_of(policy)
    rebuilt = compose(MNIST, random.Random(seed).sample(found, len(found)))
    assert rebuilt == policy and rebuilt.digest == policy.digest
    assert len({s.unit for s in found}) == len(found)
    assert all(s.name and all(s.describe()) for s in found)


@configured(max_examples=100)
@given(st.integers(0, 2**32))
def test_a_setting_is_removed_and_applied_again(seed: int) -> None:
    rng = random.Random(seed)
    policy = random_policy(MNIST, rng)
    setting = rng.choice(settings_of(policy) or [BY_NAME["L0.qkv=8bit"]])
    try:
        less = setting.remove(policy)
    except PolicyError:
        return  # others rest on it
    assert setting.unit not in {s.unit for s in settings_of(less)}
    if not setting.is_frame and not KINDS[setting.kind].spelling and less.digest != policy.digest:
        again = setting.apply(less)
        assert {*effective(settings_of(again))} == {*effective(settings_of(policy))}


def test_a_head_that_keeps_everything_has_no_effect_however_it_would_select() -> None:
    budget = HeadBudget(selection=Selection(queries=16))
    assert effective([Setting("keep", budget, layer=0, head=1, heads=4)]) == ()
    half = Setting("keep", replace(budget, cached=0.5), layer=0, head=1, heads=4)
    assert effective([half]) == (half,)


def test_contradictions_are_refused_with_the_reason() -> None:
    by_entropy = Policy(
        layers=DENSE.layers, scales=(*DENSE.scales[:5], ScalePolicy(tokens=Pruning(keep=0.5, score="entropy")))
    )
    refusal = r"L5S5\.tokens=0\.25 contradicts the policy: .* prune by distance and by entropy"
    with pytest.raises(PolicyError, match=refusal):
        BY_NAME["L5S5.tokens=0.25"].apply(by_entropy)
    chosen = CrossScale(decision_scale=5, keys=0.25, sink_scales=2, radius=(1,))
    deciding = Policy(
        layers=(LayerPolicy(attention=SparseAttention(cross_scale=chosen)), *DENSE.layers[1:]), scales=DENSE.scales
    )
    with pytest.raises(PolicyError, match=r"S5\.skip=yes contradicts .* decides at scale 5, which does not run"):
        BY_NAME["S5.skip=yes"].apply(deciding)
    with pytest.raises(PolicyError, match=r"L0S5\.window=2 contradicts .* choose one"):
        BY_NAME["L0S5.window=2"].apply(deciding)


def test_names_tell_groups_and_activations() -> None:
    how = Quantization(bits=4, group=32, activation_bits=8)
    assert Setting("bits", how, layer=1, part="qkv").name == "L1.qkv=4bit/32+a8"
    refiner = Refiner(model="little", fingerprint="f" * 64, first_scale=2)
    assert Setting("refiner", refiner).name == "refiner=little from 2"
    twice = compose(MNIST, [BY_NAME["L0.qkv=3bit"], BY_NAME["L0.qkv=8bit"]])
    assert twice.layers[0].weights.qkv == Quantization(bits=8)
