"""Policies that switch on one technique each, for the tiny model; every test matrix starts from here."""

from __future__ import annotations

from varsearch.policy import (
    CrossScale,
    KVCompression,
    LayerPolicy,
    Policy,
    Quantization,
    ScalePolicy,
    SparseAttention,
    TokenPruning,
    Weights,
)

DENSE = Policy.dense(3, 5)


def layers(**fields: object) -> Policy:
    return Policy(layers=(LayerPolicy(**fields),) * 3, scales=DENSE.scales)


def scales(changed: dict[int, ScalePolicy]) -> Policy:
    return Policy(layers=DENSE.layers, scales=tuple(changed.get(k, ScalePolicy()) for k in range(5)))


NO_HEAD = (None,) * 4
W8 = Quantization(bits=8)
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
    "shared": scales({
        2: ScalePolicy(guidance="shared", shared_attention=(0, 2)),
        4: ScalePolicy(guidance="shared", shared_attention=(1,), shared_ffn=(1, 2)),
    }),
    "shared-first": scales({0: ScalePolicy(guidance="shared", shared_attention=(0, 1, 2), shared_ffn=(0,))}),
    "unguided-last": scales({4: ScalePolicy(guidance="off")}),
    "unguided": scales({k: ScalePolicy(guidance="off") for k in range(5)}),
    "skip-middle": scales({2: ScalePolicy(run=False)}),
    "skip-last": scales({4: ScalePolicy(run=False)}),
}  # fmt: skip
