"""The trace of tensors without content against real runs, seen through PyTorch's own counters."""

from __future__ import annotations

import math
import random
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tests.accel.techniques import DENSE, FULL, LOW_ENTROPY, PRUNED, TECHNIQUES, asking, leave, stay
from tests.conftest import SCALES, build_tiny
from tests.evaluators.held import CacheWatch, table_bytes, tensors_of
from varsearch.accel import Accelerated, apply
from varsearch.evaluators.decisions import listening, with_shares
from varsearch.evaluators.trace import Trace, record, trace
from varsearch.evaluators.workload import cast, default_sampler, parts_of, run_batch, skeleton
from varsearch.models.image_model import ImageModel, SamplingDefaults
from varsearch.models.manifest import Manifest
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig
from varsearch.policy import Decision, LayerPolicy, Policy, SparseAttention
from varsearch.space import SearchSpace
from varsearch.target import Target

MODEL = build_tiny()
N = 4
CPU = Target(device="cpu", dtype="float32", batch_size=N)
RANDOM = {f"random-{seed}": SearchSpace(MODEL.spec).random(random.Random(seed)) for seed in range(4)}


def settled(policy: Policy) -> Policy:
    """`policy` with the shares that the images of the real run have: costs are predicted for these."""
    with apply(MODEL, policy) as applied:
        ears, heard = listening(applied)
        run_batch(ears, N, default_sampler(MODEL))
    return with_shares(policy, heard)


def uneven(layer: int) -> LayerPolicy:
    """Bands that no other head of any layer has."""
    band = tuple(tuple((None,) + (3 * layer + head + 1,) * k if k > 2 else None for head in range(4)) for k in range(5))
    return LayerPolicy(attention=SparseAttention(band=band))


UNEVEN = Policy(layers=tuple(map(uneven, range(3))), scales=DENSE.scales)
POLICIES = {name: settled(policy) for name, policy in TECHNIQUES.items()} | RANDOM | {"band-uneven": UNEVEN}
each_policy = pytest.mark.parametrize("name", POLICIES)


@cache
def traced(name: str) -> Trace:
    return trace(MODEL, POLICIES[name], CPU)


@each_policy
def test_flops_equal_a_flop_counter(name: str) -> None:
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping = {attention: lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with apply(MODEL, POLICIES[name]) as applied, counter:
        run_batch(applied, N, default_sampler(MODEL))
    assert traced(name).flops == counter.get_total_flops()
    fused = counter.get_flop_counts()["Global"][attention]
    # Those of the tokenizer have keys that are not contiguous, so that no fused kernel takes them.
    assert traced(name).attention_flops == fused + scoring_flops(name)


def scoring_flops(name: str) -> int:
    return sum(op.flops for op in traced(name).ops if op.scoring)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("kv-half", 3 * (4 * 5 + 9 * (3 + 9) + 16 * (7 + 16))),  # all queries observe, half of the history is left
        ("kv-scalekv", 3 * 4 * (5 + (2 + 9) + (5 + 16))),  # 2 x 2 queries observe, three tenths are left
        ("cross-scale", 3 * 9 * 14),  # all queries of scale 2, all keys, in each layer
        ("prune-entropy", 2 * 9 * 14 + 16 * 30),  # two layers restore from scale 2, one from scale 3
        ("kv-none", 0),
        ("window", 0),
        ("prune-two", 0),
        ("decide-skip", 0),
    ],
)
def test_scoring_is_attention_too(name: str, pairs: int) -> None:
    assert scoring_flops(name) == pairs * 4 * 2 * (2 * N) * 16


def test_attention_flops_of_the_dense_model() -> None:
    seen = [sum(math.prod(s) for s in SCALES[: k + 1]) for k in range(len(SCALES))]
    pairs = sum(math.prod(size) * keys for size, keys in zip(SCALES, seen, strict=True))
    assert traced("dense").attention_flops == 3 * 2 * N * 4 * pairs * 16 * 2 * 2


@each_policy
def test_peak_is_what_the_allocator_saw(name: str) -> None:
    with (
        apply(MODEL, POLICIES[name]) as applied,
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run,
    ):
        run_batch(applied, N, default_sampler(MODEL))
    now = peak = 0
    for event in run.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    found = traced(name)
    assert found.peak_bytes == pytest.approx(found.weight_bytes + peak + table_bytes(applied), rel=0.02)


def test_tables_are_held_once_for_all_layers_and_heads_that_see_the_same() -> None:
    def held(policy: Policy) -> int:
        with apply(MODEL, policy) as applied:
            run_batch(applied, N, default_sampler(MODEL))
        tables = list(tensors_of(applied.plan, set()))
        assert sum(t.untyped_storage().nbytes() for t in tables) == table_bytes(applied)
        return table_bytes(applied)

    swapped = [rows[::-1] for rows in uneven(0).attention.band]
    mirrored = Policy(
        layers=(uneven(0), LayerPolicy(attention=SparseAttention(band=swapped)), LayerPolicy()), scales=DENSE.scales
    )
    alone = held(Policy(layers=(uneven(0), LayerPolicy(), LayerPolicy()), scales=DENSE.scales))
    assert alone == held(mirrored) > 0
    assert held(UNEVEN) > 2 * alone
    one_layer = Policy(layers=(TECHNIQUES["cross-scale"].layers[0], *DENSE.layers[1:]), scales=DENSE.scales)
    assert held(TECHNIQUES["cross-scale"]) == held(one_layer) > 0


@each_policy
def test_fake_tensors_cost_what_real_ones_do(name: str) -> None:
    with apply(MODEL, POLICIES[name]) as applied:
        assert record(applied, N) == traced(name)


@each_policy
def test_weights_are_those_that_the_run_reads(name: str) -> None:
    with apply(MODEL, POLICIES[name]) as applied:
        assert traced(name).weight_bytes == used_weight_bytes(applied)


def used_weight_bytes(applied: Accelerated) -> int:
    model = applied.model
    refiners = model.tokenizer.quantize.quant_resi
    used_refiners = {refiners.index[k] for k, scale in enumerate(applied.plan.scales) if scale.run}
    unused = ("encoder.", "quant_conv.", "quantize.ema_vocab_hit", "lvl_1L", "attn_bias_for_masking")
    unused += tuple(f"quantize.quant_resi.qresi_ls.{i}." for i in {*range(4)} - used_refiners)
    named = [item for part in parts_of(model) for item in part.state_dict().items()]
    return sum(t.nbytes for name, t in named if not name.startswith(unused))


@each_policy
def test_kv_bytes_are_what_the_caches_keep_alive(name: str) -> None:
    with apply(MODEL, POLICIES[name]) as applied:
        watch = CacheWatch(applied)
        run_batch(applied, N, watch)
    assert traced(name).kv_bytes == watch.most_bytes


def test_kv_bytes_of_the_dense_model() -> None:
    stored = sum(math.prod(size) for size in SCALES[:-1])
    assert traced("dense").kv_bytes == 3 * 2 * (2 * N) * 4 * stored * 16 * 4
    assert traced("kv-none").kv_bytes == 0
    assert traced("unguided").kv_bytes == traced("dense").kv_bytes // 2


ENTRY = 2 * 4 * 16 * 4
"""Bytes of one key and value of all heads."""


def test_only_kept_tokens_are_held() -> None:
    # Layers 1 and 2 prune scale 3 to 12 of 16 tokens; the last scale is never stored.
    assert traced("prune-two").kv_bytes == 2 * N * ENTRY * (30 + 2 * 26)
    assert traced("prune-last").kv_bytes == traced("dense").kv_bytes


def test_images_that_parted_hold_what_their_own_scales_store() -> None:
    # Half of the images go on in full, while the others, which will prune, wait with what all stored up to scale 2.
    found = trace(MODEL, asking(DENSE.scales, LOW_ENTROPY[0]), CPU)
    assert found.kv_bytes == 3 * N * ENTRY * (30 + 14)
    # All leave for scales that store more than the policy's own.
    pruned = (FULL, FULL, FULL, PRUNED, PRUNED)
    everyone = Decision(
        after=2, feature="low_entropy", actions=(stay(0, share=0), leave(0, bias=1, scales=(FULL, FULL), share=1))
    )
    assert trace(MODEL, asking(pruned, everyone), CPU).kv_bytes == traced("dense").kv_bytes
    with apply(MODEL, asking(pruned, everyone)) as applied, apply(MODEL, DENSE) as dense:
        assert torch.equal(run_batch(applied, N, default_sampler(MODEL)), run_batch(dense, N, default_sampler(MODEL)))


def test_kv_bytes_of_drafter_and_refiner() -> None:
    """Neither stores the last scale that it runs, and one is gone when the other begins."""
    layers, width = 3 * 2 * (2 * N) * 4, 64
    assert traced("refined-last").kv_bytes == layers * width * (1 + 4 + 9), "the refiner only runs the last"
    assert traced("refined").kv_bytes == 2 * 2 * (2 * N) * 4 * 24 * (1 + 4 + 9 + 16)
    assert traced("refined").kv_bytes > layers * width * (1 + 4)


def test_half_precision_halves_memory_and_nothing_else() -> None:
    half = trace(MODEL, DENSE, Target(device="4090", dtype="float16", batch_size=N))
    with apply(cast(MODEL, "cpu", torch.float16), DENSE) as applied:
        kept = 2 * MODEL.spec.n_layers * MODEL.spec.n_heads  # the exponents of cosine attention stay fp32
        assert half.weight_bytes == used_weight_bytes(applied) == traced("dense").weight_bytes // 2 + kept
    assert half.kv_bytes == traced("dense").kv_bytes // 2
    assert half.flops == traced("dense").flops
    assert {op.dtype for op in half.ops if op.flops and not op.attention} == {"float16"}


def test_operators_say_where_they_belong() -> None:
    ops = [op for op in traced("skip-middle").ops if op.module == "VAR.blocks.1.ffn.fc1"]
    assert [(op.name, op.scale) for op in ops] == [("addmm", k) for k in (0, 1, 3, 4)]
    for op in ops:
        rows = 2 * N * math.prod(SCALES[op.scale])
        assert op.flops == 2 * rows * 64 * 256
        assert op.bytes == 4 * (rows * 64 + 64 * 256 + 256 + rows * 256)
    assert {op.scale for op in traced("skip-middle").ops} == {0, 1, 3, 4, None}
    decoding = [op for op in traced("skip-middle").ops if op.module.startswith("VQVAE.decoder")]
    assert decoding and {op.scale for op in decoding} == {None}


def test_tracing_leaves_no_residue() -> None:
    model = build_tiny(seed=3)
    before = generated(model)
    for name in ("w4-group", "window-ragged", "kv4-ragged"):
        trace(model, TECHNIQUES[name], CPU)
        with apply(model, TECHNIQUES[name]) as applied:
            record(applied, N)
    assert torch.equal(generated(model), before)
    modules = [*model.transformer.modules(), *model.tokenizer.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def generated(model: ImageModel) -> Tensor:
    return run_batch(Accelerated(model, model.dense_plan()), N, default_sampler(model))


def manifest(transformer: VARConfig, tokenizer: TokenizerConfig, image_size: tuple[int, int]) -> Manifest:
    return Manifest(
        name="shape", description="", licence="", data="", image_size=image_size, classifier={},
        transformer=transformer, tokenizer=tokenizer, sampling=SamplingDefaults(guidance=1.5),
        files={"transformer": ("a.safetensors", "0" * 64), "tokenizer": ("b.safetensors", "0" * 64)},
    )  # fmt: skip


def test_a_skeleton_has_the_cost_of_the_model() -> None:
    bones = skeleton(manifest(MODEL.transformer.config, MODEL.tokenizer.config, MODEL.spec.image_size))
    assert bones.transformer.head.weight.is_meta
    assert trace(bones, TECHNIQUES["w8"], CPU) == traced("w8")


@pytest.mark.slow
def test_a_published_size_is_traced_without_its_memory() -> None:
    scales = tuple((side, side) for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    shape = manifest(VARConfig(scales, depth=16, width=1024, heads=16), TokenizerConfig(scales), (256, 256))
    bones = skeleton(shape)
    found = trace(bones, Policy.dense(16, 10), Target(device="4090", dtype="float16", batch_size=64))
    # Matrix products of the blocks alone: 12 D^2 weights each, over all tokens of both halves.
    assert found.flops > 2 * 64 * 2 * 680 * 16 * 12 * 1024**2
    stored = 680 - 256
    assert found.kv_bytes == 16 * 2 * (2 * 64) * stored * 1024 * 2
    assert found.weight_bytes == pytest.approx(2 * sum(p.numel() for p in bones.transformer.parameters()), rel=0.25)
