from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varsearch.errors import PolicyError
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
from varsearch.target import ModelSpec

SPEC = ModelSpec(
    name="m", n_layers=3, n_heads=4, head_dim=16, scales=((1, 1), (2, 2), (4, 4)), classes=10, image_size=(16, 16)
)
DENSE = Policy.dense(3, 3)


def with_scale(k: int, **fields: object) -> dict[str, object]:
    scales = [{} for _ in range(3)]
    scales[k] = fields
    return {"layers": [{}] * 3, "scales": scales}


def with_layer(**fields: object) -> dict[str, object]:
    return {"layers": [fields, {}, {}], "scales": [{}] * 3}


def deciding(after: int = 0, feature: str = "low_entropy", **leave: object) -> dict[str, object]:
    actions = [{"weights": [0], "share": 0.5}, {"weights": [1], "share": 0.5, "scales": [{}] * (2 - after)} | leave]
    return {
        "layers": [{}] * 3,
        "scales": [{}] * 3,
        "decisions": [{"after": after, "feature": feature, "actions": actions}],
    }


def refined(first_scale: int = 1, parts: dict[str, object] | None = None, **fields: object) -> dict[str, object]:
    refiner = {"model": "small", "fingerprint": "0" * 64, "first_scale": first_scale} | fields
    return {"layers": [{}] * 3, "scales": [{}] * 3} | (parts or {}) | {"refiner": refiner}


CROSS: dict[str, object] = {"decision_scale": 1, "keys": 0.5, "sink_scales": 1, "radius": [0, 1]}
REFUSED = {
    "weights of another feature": (deciding(feature="high_frequency"), "has 1 weights, high_frequency gives 2"),
    "shares above 1": (deciding(share=1), "must add up to 1"),
    "an action without scales": (deciding(scales=[]), "first action keeps the policy's own scales"),
    "an action with too few scales": (deciding(scales=[{}]), "names 1 scales, 2 follow"),
    "a decision after the last scale": (deciding(after=2, scales=[{}]), "expected one of \\[0, 1\\]"),
    "two decisions at once": (
        deciding() | {"decisions": deciding()["decisions"] * 2},
        "ascending order of distinct scales",
    ),
    "an action that skips in the middle": (deciding(scales=[{"run": False}, {}]), "only leave out the last ones"),
    "an action that runs what the policy skips": (
        deciding() | {"scales": [{}, {}, {"run": False}]},
        "it may only leave out the last ones of \\[0, 1\\]",
    ),
    "guidance resumes in an action": (
        deciding() | {"scales": [{"guidance": "off"}] * 3},
        "actions\\[1\\]: guidance cannot resume",
    ),
    "entropies of pruned layers": (
        deciding(after=1) | {"scales": [{}, {"tokens": {"keep": 0.5}}, {}]},
        "every layer prunes scale 1",
    ),
    "a number beyond meaning": (deciding(bias=1e10), "bias"),
    "layers keep more than keep": (
        with_scale(2, tokens={"keep": 0.5, "layer_keep": [0.75, 0.75, 1]}),
        "least share of a layer is 0.75, and keep is 0.5",
    ),
    "shares for other layers": (
        with_scale(2, tokens={"keep": 0.5, "layer_keep": [0.5, 1]}),
        "layer_keep has 2 shares for 3 layers",
    ),
    "a layer that keeps nothing": (with_scale(2, tokens={"keep": 0.5, "layer_keep": [0.5, 0, 1]}), "layer_keep"),
    "a refiner for all scales": (refined(0), "first_scale"),
    "a refiner for none": (refined(3), "refiner.first_scale is 3, but the last scale is 2"),
    "a refiner elsewhere": (refined(model="../small"), "refiner.model"),
    "a refiner of any weights": (refined(fingerprint=""), "refiner.fingerprint"),
    "a refiner's scale prunes": (refined(2, with_scale(2, tokens={"keep": 0.5})), "the refiner runs this scale"),
    "a refiner's scale shares": (
        refined(1, with_scale(2, guidance="shared", shared_ffn=[0])),
        r"scales\[2\] names layers of the model",
    ),
    "an action prunes a refiner's scale": (
        refined(2, deciding(scales=[{}, {"tokens": {"keep": 0.5}}])),
        r"actions\[1\]: scales\[2\] names layers",
    ),
    "entropies of a refiner": (refined(1, deciding(after=1)), "asks for entropies, but the refiner runs scale 1"),
    "keys chosen by a refiner": (
        refined(1, with_layer(attention={"cross_scale": CROSS})),
        "decides at scale 1, which the refiner runs",
    ),
    "unknown field": ({"colour": 1, "layers": [{}], "scales": [{}]}, "colour: unknown field"),
    "unknown version": ({"schema_version": 2, "layers": [{}], "scales": [{}]}, "schema_version"),
    "no layers": ({"layers": [], "scales": [{}]}, "layers"),
    "first scale skipped": (with_scale(0, run=False), "scale 0 cannot be skipped"),
    "guidance resumes": (with_scale(1, guidance="off"), "guidance cannot resume"),
    "shared without layers": (with_scale(1, guidance="shared"), "go together"),
    "layers without shared": (with_scale(1, shared_ffn=[0]), "go together"),
    "shares a layer twice": (with_scale(1, guidance="shared", shared_ffn=[1, 1]), "each layer once"),
    "shares a missing layer": (with_scale(1, guidance="shared", shared_attention=[3]), "there are 3 layers"),
    "skipped scale prunes": (with_scale(2, run=False, tokens={"keep": 0.5}), "no other settings"),
    "prunes nothing": (with_scale(2, tokens={"keep": 1.0}), "tokens.keep"),
    "prunes everything": (with_scale(2, tokens={"keep": 0.0}), "tokens.keep"),
    "prunes missing layers": (with_scale(2, tokens={"keep": 0.5, "last_layer": 5}), "but there are 3"),
    "prunes an empty range": (with_scale(2, tokens={"keep": 0.5, "first_layer": 2, "last_layer": 1}), "prunes layers"),
    "prunes the first scale": (with_scale(0, tokens={"keep": 0.5}), "no earlier scale to restore"),
    "off the grid": (with_scale(2, tokens={"keep": 0.31}), "not a multiple of 1/80"),
    "bits": (with_layer(weights={"qkv": {"bits": 5}}), "bits"),
    "negative budget": (with_layer(kv={"keep": [-0.5]}), "keep"),
    "nan": (with_layer(kv={"keep": [float("nan")]}), "keep"),
    "heads disagree": (
        {"layers": [{"kv": {"keep": [0.5, 1]}}, {"kv": {"keep": [0.5]}}, {}], "scales": [{}] * 3},
        "number of heads",
    ),
    "cache budgets of other scales": (with_layer(kv={"cache_budget": [[0.5]]}), "cache_budget has 1 rows for 3 scales"),
    "ragged cache budgets": (with_layer(kv={"cache_budget": [[0.5], [1, 1], [1]]}), "different lengths"),
    "two cache budgets": (with_layer(kv={"keep": [0.5], "cache_budget": [[0.5]] * 3}), "set one of them"),
    "attends to nothing": (with_layer(kv={"attention_budget": [[0.0]] * 3}), "attention_budget"),
    "heads disagree within a layer": (
        with_layer(kv={"keep": [0.5, 0.5], "selection": [{"recent": True}]}),
        "number of heads",
    ),
    "grid that is not square": (with_layer(kv={"keep": [0.5], "selection": [{"grid": True, "queries": 8}]}), "square"),
    "prior of later scales": (
        with_layer(kv={"keep": [0.5], "selection": [{"prior": [[0, 1]]}]}),
        "one entry per scale",
    ),
    "prior of other scales": (
        with_layer(kv={"keep": [0.5], "selection": [{"prior": [[0]]}]}),
        "prior has 1 rows for 3 scales",
    ),
    "kernel without a middle": (with_layer(kv={"keep": [0.5], "selection": [{"kernel": 4}]}), "kernel"),
    "ragged window": (with_layer(attention={"window": [[1], [1, 2], [1]]}), "different lengths"),
    "window of other scales": (with_layer(attention={"window": [[1]]}), "rows for 3 scales"),
    "negative radius": (with_layer(attention={"window": [[-1]] * 3}), "window"),
    "band of other scales": (with_layer(attention={"band": [[1]]}), "rows for 3 scales"),
    "map of a later scale": (with_layer(attention={"band": [[None], [None], [[1, 2]]]}), r"maps of scales 0\.\.2"),
    "decides nowhere": (with_layer(attention={"cross_scale": CROSS | {"decision_scale": 3}}), "does not run"),
    "radii of other scales": (with_layer(attention={"cross_scale": CROSS | {"radius": [1]}}), r"for scales 1\.\.2"),
    "no sinks": (with_layer(attention={"cross_scale": CROSS | {"sink_scales": 0}}), "sink_scales"),
    "window and cross scale": (
        with_layer(attention={"cross_scale": CROSS, "window": [[None], [1], [None]]}),
        "scales from 1 on see: choose one",
    ),
    "decides on pruned queries": (
        {"layers": [{"attention": {"cross_scale": CROSS}}, {}, {}], "scales": [{}, {"tokens": {"keep": 0.5}}, {}]},
        "needs all queries",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_policies_are_refused_when_built(name: str) -> None:
    fields, reason = REFUSED[name]
    with pytest.raises(PolicyError, match=reason) as caught:
        Policy.parse(json.dumps(fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"layers": 3}', "\x00"])
def test_text_that_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        Policy.parse(text)


MISFITS = {
    "layers": (Policy.dense(2, 3), "has 2 layers, model m has 3"),
    "scales": (Policy.dense(3, 4), "has 4 scales, model m has 3"),
    "heads": (
        Policy(layers=(LayerPolicy(kv=KVCompression(keep=(0.5, 1))),) * 3, scales=DENSE.scales),
        "names 2 heads, model m has 4",
    ),
    "groups of queries": (
        Policy(layers=(LayerPolicy(attention={"cross_scale": CROSS}),) * 3, scales=DENSE.scales),
        "has 8 groups of queries, scale 1 has 4",
    ),
    "groups": (
        Policy(layers=(LayerPolicy(weights=Weights(qkv=Quantization(bits=8, group=128))),) * 3, scales=DENSE.scales),
        "groups of 128 do not divide 64 inputs",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_policies_for_other_shapes_are_refused(name: str) -> None:
    policy, reason = MISFITS[name]
    with pytest.raises(PolicyError, match=reason):
        policy.check(SPEC)


def test_ada_of_a_model_with_shared_adaln_is_refused() -> None:
    policy = Policy(layers=(LayerPolicy(weights=Weights(ada=Quantization(bits=8))),) * 3, scales=DENSE.scales)
    policy.check(SPEC)
    with pytest.raises(PolicyError, match="share one AdaLN"):
        policy.check(SPEC.model_copy(update={"shared_adaln": True}))


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
