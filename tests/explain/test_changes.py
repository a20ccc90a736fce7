"""Taking back the changes of a policy, one or all of them."""

from __future__ import annotations

import random

import pytest

from tests.space.calibrations import random_calibration
from varsearch.explain.contributions import Change, changes_of
from varsearch.policy import Decision, KVCompression, LayerPolicy, Policy, Quantization, ScalePolicy, Weights
from varsearch.policy.decision import Action
from varsearch.space import SearchSpace
from varsearch.space.presets import presets, seeds
from varsearch.target import ModelSpec

SPEC = ModelSpec(
    name="x", n_layers=4, n_heads=2, head_dim=32, scales=((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)), classes=10,
    image_size=(32, 32), fingerprint="0" * 64,
)  # fmt: skip
REFINER = SPEC.model_copy(update={"name": "small", "n_layers": 2, "fingerprint": "1" * 64})
DENSE = Policy.dense(SPEC.n_layers, len(SPEC.scales))
FOUND, _ = presets(SPEC, random_calibration(SPEC), [REFINER])


def everything() -> dict[str, Policy]:
    """Published systems, hand-made policies and random mixtures of them all."""
    space, rng = SearchSpace(SPEC, FOUND), random.Random(0)
    mixed = (
        space.decode({name: rng.randrange(n) * (rng.random() < 0.2) for name, n in space.knobs.items()})
        for _ in range(6)
    )
    return {**FOUND, **seeds(SPEC), **{f"mixed{i}": policy for i, policy in enumerate(mixed)}}


def identities(found: list[Change]) -> set[tuple[str, str]]:
    return {(change.unit, change.kind) for change in found}


def test_dense_has_no_changes() -> None:
    assert changes_of(DENSE) == []


@pytest.mark.parametrize(("name", "policy"), everything().items())
def test_each_change_is_one_unit_and_all_together_are_the_policy(name: str, policy: Policy) -> None:
    found = changes_of(policy)
    assert (policy == DENSE) == (not found)
    units = identities(found)
    assert len(units) == len(found)
    for change in found[:: max(1, len(found) // 8)]:
        assert change.without is not None and change.setting
        assert identities(changes_of(change.without)) == units - {(change.unit, change.kind)}
    for _ in found:
        rest = changes_of(policy)[-1].without
        assert rest is not None
        policy = rest
    assert policy == DENSE


def test_units_are_named_by_layer_head_and_scale() -> None:
    kv = KVCompression(cache_budget=((1.0, 1.0), (1.0, 0.5), (1.0, 0.5), (1.0, 0.25), (1.0, 0.0), (1.0, 1.0)))
    first = LayerPolicy(weights=Weights(fc1=Quantization(bits=4, activation_bits=8)), kv=kv)
    scales = (*DENSE.scales[:3], ScalePolicy(guidance="shared", shared_ffn=(1,)), ScalePolicy(run=False))
    policy = Policy(layers=(first, *DENSE.layers[1:]), scales=(*scales, ScalePolicy(guidance="off")))
    told = [(change.unit, change.kind, change.setting) for change in changes_of(policy)]
    assert told == [
        ("layer 0 fc1", "weights", "4-bit, 8-bit inputs"),
        ("layer 0 head 1", "KV budget", "kept 50% at 1,2, 25% at 3, 0% at 4"),
        ("scale 3 layer 1", "guidance", "FFN shared"),
        ("scale 4", "scale", "skipped"),
        ("scale 5 on", "guidance", "off"),
    ]


def test_a_scale_that_runs_again_has_no_guidance_where_it_was_dropped_before() -> None:
    scales = (*DENSE.scales[:4], ScalePolicy(guidance="off"), ScalePolicy(run=False))
    skipped = changes_of(Policy(layers=DENSE.layers, scales=scales))[0]
    assert skipped.without is not None and skipped.without.scales[5] == ScalePolicy(guidance="off")


def test_what_others_rest_on_cannot_be_taken_back_alone() -> None:
    """Images that part may leave out the last scales only, so the scale that both skip cannot run for some."""
    skipped, off = ScalePolicy(run=False), ScalePolicy(guidance="off")
    actions = Action(weights=(0.0,), share=0.5), Action(weights=(1.0,), share=0.5, scales=(skipped, off))
    decision = Decision(after=3, feature="low_entropy", actions=actions)
    scales = (*DENSE.scales[:4], skipped, DENSE.scales[5])
    found = changes_of(Policy(layers=DENSE.layers, scales=scales, decisions=(decision,)))
    assert [(change.kind, change.without is None) for change in found] == [("scale", True), ("decision", False)]
    assert found[1].without == Policy(layers=DENSE.layers, scales=scales)
