"""Policies as values: equal ones have one text and one digest, and what they say of scales and layers."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_policy_refused import DENSE, deciding, refined
from varsearch.policy import (
    Action,
    Decision,
    KVCompression,
    LayerPolicy,
    Policy,
    Quantization,
    ScalePolicy,
    Selection,
    SparseAttention,
    TokenPruning,
    Weights,
)

quantizations = st.builds(
    Quantization,
    bits=st.sampled_from([8, 6, 4, 3]),
    group=st.sampled_from([None, 32]),
    activation_bits=st.sampled_from([None, 8]),
)
shares = st.integers(0, 16).map(lambda i: i / 16)


def reach(scale: int) -> st.SearchStrategy[object]:
    one = st.none() | st.integers(0, 9)
    return one | st.tuples(*[one] * (scale + 1))


layer_policies = st.builds(
    LayerPolicy,
    weights=st.builds(Weights, qkv=st.none() | quantizations, fc2=st.none() | quantizations),
    kv=st.builds(KVCompression, keep=st.just(()) | st.tuples(*[shares] * 4), bits=st.sampled_from([None, 8, 4]))
    | st.builds(
        KVCompression,
        cache_budget=st.just(()) | st.tuples(*[st.tuples(*[shares] * 4)] * 3),
        selection=st.just(()) | st.tuples(*[st.builds(Selection, queries=st.integers(1, 3), recent=st.booleans())] * 4),
    ),
    attention=st.builds(
        SparseAttention,
        window=st.just(()) | st.tuples(*[st.tuples(*[st.none() | st.integers(0, 3)] * 4)] * 3),
        band=st.just(()) | st.tuples(*[st.tuples(*[reach(k)] * 4) for k in range(3)]),
        cross_scale=st.none(),
    ),
)
steps = st.integers(1, 79).map(lambda i: i / 80)
scale_policies = st.builds(
    ScalePolicy,
    tokens=st.none()
    | st.builds(TokenPruning, keep=steps, first_layer=st.just(1), score=st.sampled_from(["distance", "entropy"]))
    | st.tuples(steps, steps, steps).map(lambda keep: TokenPruning(keep=min(keep), layer_keep=keep)),
)
decision = st.builds(
    lambda tail, weight, bias, share: Decision(after=1, feature="low_entropy", actions=(
        Action(weights=(0,), share=1 - share), Action(weights=(weight,), bias=bias, share=share, scales=(tail,))
    )),
    scale_policies, st.floats(-9, 9), st.floats(-9, 9), steps,
)  # fmt: skip
policies = st.builds(
    lambda layers, last, decisions: Policy(
        layers=layers, scales=(ScalePolicy(), ScalePolicy(), last), decisions=decisions
    ),
    st.tuples(*[layer_policies] * 3),
    scale_policies,
    st.just(()) | st.tuples(decision),
)


@settings(max_examples=200)
@given(policies)
def test_json_round_trip_keeps_value_and_digest(policy: Policy) -> None:
    for text in (policy.canonical(), policy.model_dump_json(), policy.model_dump_json(indent=3)):
        again = Policy.parse(text)
        assert again == policy and again.digest == policy.digest


@settings(max_examples=200)
@given(policies, policies)
def test_digests_are_equal_exactly_for_equal_policies(a: Policy, b: Policy) -> None:
    assert (a == b) == (a.digest == b.digest)


def test_settings_without_effect_are_the_dense_policy() -> None:
    spelled_out = LayerPolicy(
        weights=Weights(), kv=KVCompression(keep=(1.0,) * 4), attention=SparseAttention(window=((None,) * 4,) * 3)
    )
    assert Policy(layers=(spelled_out,) * 3, scales=DENSE.scales) == DENSE
    full = ((1.0,) * 4,) * 3
    rules = (Selection(recent=True),) * 4
    assert KVCompression(cache_budget=full, attention_budget=full, selection=rules) == KVCompression()
    assert KVCompression(keep=(0.5,) * 4, selection=(Selection(),) * 4) == KVCompression(keep=(0.5,) * 4)


def test_the_digest_of_a_policy_with_budgets_never_changes() -> None:
    policy = Policy(layers=(LayerPolicy(kv=KVCompression(keep=(0.5, 1, 0, 1), bits=8)),) * 3, scales=DENSE.scales)
    assert policy.canonical() == (
        '{"layers":[' + ",".join(['{"kv":{"bits":8,"keep":[0.5,1.0,0.0,1.0]}}'] * 3) + '],"scales":[{},{},{}]}'
    )


def test_one_reach_for_all_maps_is_written_as_one() -> None:
    listed = SparseAttention(window=((0,), (1,), ((2, 2, 2),)), band=((None,), (3,), ((None, None, None),)))
    assert listed == SparseAttention(window=((0,), (1,), (2,)), band=((None,), (3,), (None,)))


def test_a_refiner_is_part_of_the_digest_and_of_every_path() -> None:
    policy = Policy.model_validate(refined(2, deciding(scales=[{}, {"guidance": "off"}])))
    assert {path.refiner for path in policy.paths()} == {policy.refiner}
    other = Policy.model_validate(refined(1, deciding(scales=[{}, {"guidance": "off"}])))
    assert len({policy.digest, other.digest, policy.model_copy(update={"refiner": None}).digest}) == 3


def test_the_digest_of_the_dense_policy_never_changes() -> None:
    # Stored evaluations are found by it: a new technique must be off by default and leave it as it is.
    assert DENSE.canonical() == '{"layers":[{},{},{}],"scales":[{},{},{}]}'
    assert DENSE.digest == "5ac68ac7c10a65c7c87b2ac835da2f28a7f608f87b78d6cdcd6b6deb9192f9f8"


def test_equal_shares_of_all_layers_are_one_share() -> None:
    assert TokenPruning(keep=0.5, layer_keep=(0.5, 0.5)) == TokenPruning(keep=0.5)


def test_a_layer_that_keeps_all_is_not_pruned() -> None:
    pruned = ScalePolicy(tokens=TokenPruning(keep=0.5, first_layer=1, layer_keep=(1, 0.5)))
    policy = Policy(layers=(LayerPolicy(),) * 3, scales=(ScalePolicy(), pruned, pruned))
    assert [policy.prunes(2, layer) for layer in range(3)] == [False, False, True]
    assert [policy.restore_scale(2, layer) for layer in range(3)] == [1, 1, 0]


def test_pruning_restores_from_the_nearest_dense_scale() -> None:
    pruned = ScalePolicy(tokens=TokenPruning(keep=0.5, first_layer=1, last_layer=1))
    policy = Policy(layers=(LayerPolicy(),) * 3, scales=(ScalePolicy(), ScalePolicy(), pruned, pruned))
    assert [policy.prunes(3, layer) for layer in range(3)] == [False, True, False]
    assert policy.restore_scale(3, 1) == 1
    skipped = Policy(layers=policy.layers, scales=(ScalePolicy(), ScalePolicy(run=False), pruned, pruned))
    assert skipped.restore_scale(3, 1) == 0


def test_describing_policies_does_not_import_torch() -> None:
    code = (
        "import sys, varsearch, varsearch.space.presets, varsearch.library, varsearch.measurement\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
