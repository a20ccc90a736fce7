"""Policies that switch on one technique each, for the tiny model; every test matrix starts from here."""

from __future__ import annotations

from tests.conftest import build_small
from varsearch.policy import (
    Action,
    CrossScale,
    Decision,
    KVCompression,
    LayerPolicy,
    Policy,
    Quantization,
    Refiner,
    ScalePolicy,
    Selection,
    SparseAttention,
    TokenPruning,
    Weights,
)

DENSE = Policy.dense(3, 5)


def layers(**fields: object) -> Policy:
    return Policy(layers=(LayerPolicy(**fields),) * 3, scales=DENSE.scales)


def scales(changed: dict[int, ScalePolicy]) -> Policy:
    return Policy(layers=DENSE.layers, scales=tuple(changed.get(k, ScalePolicy()) for k in range(5)))


def asking(scales: tuple[ScalePolicy, ...], *decisions: Decision) -> Policy:
    return Policy(layers=DENSE.layers, scales=scales, decisions=decisions)


def refined(policy: Policy, first_scale: int) -> Policy:
    refiner = Refiner(model="small", fingerprint=build_small().spec.fingerprint, first_scale=first_scale)
    return Policy.model_validate(policy.model_dump() | {"refiner": refiner})


def stay(*weights: float, bias: float = 0.0, share: float = 0.5) -> Action:
    return Action(weights=weights, bias=bias, share=share)


def leave(*weights: float, scales: tuple[ScalePolicy, ...], bias: float = 0.0, share: float = 0.5) -> Action:
    return Action(weights=weights, bias=bias, share=share, scales=scales)


NO_HEAD = (None,) * 4
W8 = Quantization(bits=8)
SKIP, UNGUIDED, FULL = ScalePolicy(run=False), ScalePolicy(guidance="off"), ScalePolicy()
PRUNED = ScalePolicy(tokens=TokenPruning(keep=0.5, score="entropy"))
# The thresholds part the tests' images; shares of few tokens are fractions, and none of them lies on a threshold.
HIGH_FREQUENCY = Decision(
    after=2,
    feature="high_frequency",
    actions=(
        stay(0, 0),
        leave(-1, 0, bias=0.6, scales=(FULL, UNGUIDED), share=0.25),
        leave(-2, 0, bias=1, scales=(FULL, SKIP), share=0.25),
    ),
)
LOW_ENTROPY = tuple(
    Decision(after=k, feature="low_entropy", actions=(stay(0), leave(1, bias=-0.47, scales=(PRUNED,) * (4 - k))))
    for k in (2, 3)
)
FALLING = tuple((1 - k / 10, 0.5, (4 - k) / 10 + 0.1, max(0.0, 0.6 - k / 5)) for k in range(5))
HACK = (Selection(queries=32, sinks=2, recent=True), Selection(queries=32)) * 2
PRIOR = tuple(tuple(3 * abs(k - j) for j in range(k + 1)) for k in range(5))
FLIPPED = tuple(row[::-1] for row in PRIOR)
HACKPP = (Selection(pool="max"), Selection(prior=PRIOR), Selection(prior=FLIPPED), Selection())
SCALEKV = (Selection(queries=4, grid=True, pool="mean"),) * 4
TECHNIQUES: dict[str, Policy] = {
    "dense": DENSE,
    "w8": layers(weights=Weights.uniform(W8)),
    "w6": layers(weights=Weights.uniform(Quantization(bits=6))),
    "w4-group": layers(weights=Weights.uniform(Quantization(bits=4, group=32))),
    "w3-ada": layers(weights=Weights(fc1=Quantization(bits=3), ada=Quantization(bits=3))),
    "w8a8": layers(weights=Weights.uniform(Quantization(bits=8, activation_bits=8))),
    "kv-half": layers(kv=KVCompression(keep=(0.5,) * 4)),
    "kv-ragged": layers(kv=KVCompression(keep=(1, 0.5, 0.25, 0))),
    "kv-none": layers(kv=KVCompression(keep=(0.0,) * 4)),
    "kv8": layers(kv=KVCompression(bits=8)),
    "kv-by-scale": layers(kv=KVCompression(cache_budget=FALLING)),
    "kv-hack": layers(
        kv=KVCompression(cache_budget=((0.5, 0.25) * 2,) * 5, attention_budget=((0.5, 0.25) * 2,) * 5, selection=HACK)
    ),
    "kv-hackpp": layers(
        kv=KVCompression(
            cache_budget=((0.1,) * 4, (0.4, 0.1, 0.2, 0.3)) + ((0.2, 0.1, 0.1, 0.15),) * 3,
            attention_budget=((1.0,) * 4,) + ((0.4, 0.4, 0.3, 0.5),) * 4,
            selection=HACKPP,
        )
    ),
    "kv-scalekv": layers(kv=KVCompression(cache_budget=((0.3,) * 4,) * 5, selection=SCALEKV)),
    "kv8-hackpp": layers(
        kv=KVCompression(keep=(0.2,) * 4, attention_budget=((0.6, 1.0, 0.3, 0.5),) * 5, selection=HACKPP, bits=8)
    ),
    "kv4-ragged": layers(kv=KVCompression(keep=(0.75, 0.5, 0.5, 0.125), bits=4)),
    "window": layers(attention=SparseAttention(window=((1,) * 4,) * 5)),
    "window-ragged": layers(attention=SparseAttention(window=((None, 0, 1, 2),) * 5)),
    "sinks": layers(attention=SparseAttention(window=(NO_HEAD,) * 3 + (
        ((None, None, 0, 1),) * 4,
        ((None, None, 0, 0, 1),) * 4,
    ))),
    "band": layers(attention=SparseAttention(band=((2,) * 4,) * 5)),
    "band-ragged": layers(attention=SparseAttention(band=(NO_HEAD,) * 3 + (
        (None, (None, None, 2, 3), (None, 0, 0, 2), 1),
        ((None, None, 0, 4, 9), 5, None, (None, 1, 2, 3, 0)),
    ))),
    "band-drop": layers(attention=SparseAttention(band=(NO_HEAD,) * 4 + ((None, 0, 0, 3),))),
    "cross-scale": layers(attention=SparseAttention(cross_scale=CrossScale(
        decision_scale=2, keys=0.25, sink_scales=2, radius=(0, 0, 1), groups=4,
    ))),
    "cross-scale-plain": layers(attention=SparseAttention(cross_scale=CrossScale(
        decision_scale=3, keys=0.75, sink_scales=1, radius=(1, 1), groups=3, residual=False,
    ))),
    "prune-last": scales({4: ScalePolicy(tokens=TokenPruning(keep=0.5))}),
    "prune-two": scales({
        3: ScalePolicy(tokens=TokenPruning(keep=0.75, first_layer=1)),
        4: ScalePolicy(tokens=TokenPruning(keep=0.25, first_layer=0, last_layer=1)),
    }),
    "prune-layers": scales({4: ScalePolicy(tokens=TokenPruning(keep=0.25, layer_keep=(0.5, 1, 0.25)))}),
    "prune-entropy": scales({
        3: ScalePolicy(tokens=TokenPruning(keep=0.5, first_layer=1, score="entropy")),
        4: ScalePolicy(tokens=TokenPruning(keep=0.25, last_layer=1, layer_keep=(0.25, 0.75), score="entropy")),
    }),
    "shared": scales({
        2: ScalePolicy(guidance="shared", shared_attention=(0, 2)),
        4: ScalePolicy(guidance="shared", shared_attention=(1,), shared_ffn=(1, 2)),
    }),
    "shared-first": scales({0: ScalePolicy(guidance="shared", shared_attention=(0, 1, 2), shared_ffn=(0,))}),
    "unguided-last": scales({4: ScalePolicy(guidance="off")}),
    "unguided": scales({k: ScalePolicy(guidance="off") for k in range(5)}),
    "skip-middle": scales({2: ScalePolicy(run=False)}),
    "skip-last": scales({4: ScalePolicy(run=False)}),
    "refined": refined(DENSE, 3),
    "refined-last": refined(DENSE, 4),
    "decide-skip": asking(DENSE.scales, HIGH_FREQUENCY),
    "decide-prune": asking(DENSE.scales, *LOW_ENTROPY),
}  # fmt: skip
