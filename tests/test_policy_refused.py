"""Policies that are refused: when they are built, and for a model of another shape."""

from __future__ import annotations

import json

import pytest

from varsearch.errors import PolicyError
from varsearch.policy import KVCompression, LayerPolicy, Policy, Quantization, Weights
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
