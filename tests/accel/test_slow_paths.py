"""Neutral settings through each technique's real code, and seeded faults that must show.

A neutral setting that takes a shortcut proves nothing, so these tests build the technique's objects by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.accel.techniques import layers
from tests.exact import exact, same_images
from varsearch.accel import apply, kv_compression, kv_selection, labels_for
from varsearch.accel.attention_entropy import note_entropy
from varsearch.accel.guidance import Shared
from varsearch.accel.kv_compression import Budget, CompressedKV, Head, grouped
from varsearch.accel.quantization import QuantizedLinear
from varsearch.accel.sparse_attention import LocalAttention, RaggedHeads, Window, tile_tensors, tiles, visible
from varsearch.accel.token_maps import Maps
from varsearch.accel.token_pruning import SELECT, Pruned, Remembered, Select
from varsearch.kernels.attention import tiled_attention
from varsearch.kernels.attention_backends import reference
from varsearch.kernels.packing import pack, quantize, unpack
from varsearch.models.image_model import ImageModel
from varsearch.models.sampling import PairedSampler
from varsearch.models.seams import BranchMemory, LayerPlan, Plan
from varsearch.policy import KVCompression, Quantization

pytestmark = pytest.mark.numerics

LABELS = labels_for(3, 10)
SIZES = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6))
TOKENS = [h * w for h, w in SIZES]
SEEN = [sum(TOKENS[: k + 1]) for k in range(5)]


def edited(model: ImageModel, edit: Callable[[int, LayerPlan], LayerPlan]) -> Plan:
    dense = model.dense_plan()
    scales = tuple(
        replace(scale, layers=tuple(edit(k, layer) for layer in scale.layers)) for k, scale in enumerate(dense.scales)
    )
    return replace(dense, scales=scales)


def images(model: ImageModel, plan: Plan | None = None) -> Tensor:
    return model.generate(LABELS, PairedSampler(5, range(3)), plan)


def maps_at(k: int) -> Maps:
    return Maps(SIZES, tuple(range(5)), k)


def prune_all(k: int, layer: LayerPlan, select: Select = SELECT["distance"]) -> LayerPlan:
    branch = Pruned(TOKENS[k], SIZES[k], select) if k == 4 else Remembered(SIZES[k])
    return replace(layer, attn=branch, ffn=branch, observe=note_entropy if k == 3 else None)


def window_all(k: int, layer: LayerPlan) -> LayerPlan:
    return replace(layer, attend=RaggedHeads([LocalAttention((Window(6),), maps_at(k))] * 4))


def window_masked(k: int, layer: LayerPlan) -> LayerPlan:
    """The path for incomplete maps, although the maps are complete."""
    return replace(layer, attend=RaggedHeads([LocalAttention((Window(6),), maps_at(k)._replace(run=()))] * 4))


def cache(
    cached_HK: list[list[int]], attended_HK: list[list[int]] | None = None, bits: int | None = None
) -> CompressedKV:
    """A cache of heads with so many entries after each scale."""
    budgets = zip(attended_HK or [[99] * len(cached_HK[0])] * len(cached_HK), cached_HK, strict=True)
    heads = [Head(tuple(Budget(k, *n) for k, n in enumerate(zip(*pair, strict=True)))) for pair in budgets]
    return CompressedKV(grouped(heads, SIZES), bits)


NEUTRAL = {
    "prune nothing": lambda m: edited(m, prune_all),
    "prune nothing by entropy": lambda m: edited(m, partial(prune_all, select=SELECT["entropy"])),
    "window over everything, tiled": lambda m: edited(m, window_all),
    "window over everything, masked": lambda m: edited(m, window_masked),
    "budgets of everything": lambda m: replace(m.dense_plan(), new_cache=(lambda: cache([SEEN] * 4),) * 3),
    "budgets of everything, ragged": lambda m: replace(
        m.dense_plan(), new_cache=(lambda: cache([[s + h for s in SEEN] for h in range(4)]),) * 3
    ),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_through_the_slow_path(name: str) -> None:
    same_images(images(exact(), NEUTRAL[name](exact())), images(exact()))


def test_sharing_a_branch_without_guidance_is_neutral() -> None:
    tiny = exact()
    plan = edited(tiny, lambda k, layer: replace(layer, attn=Shared(layer.attn), ffn=Shared(layer.ffn)))
    tokens = [torch.randint(32, (3, n), generator=torch.Generator().manual_seed(0)) for n in TOKENS]
    torch.testing.assert_close(tiny.likelihood(LABELS, tokens, plan), tiny.likelihood(LABELS, tokens))


def test_a_wrong_order_of_kept_tokens_is_noticed() -> None:
    tiny, dense = exact(), images(exact())

    def rolled(x_BLD: Tensor, memory: BranchMemory, size: tuple[int, int], count: int) -> Tensor:
        return SELECT["distance"](x_BLD, memory, size, count).roll(1, dims=1)

    class Misplaced(Pruned):
        def __call__(self, fn, x_BLD, pos_BL, memory, n_images):  # noqa: ANN001, ANN204
            y_BLD = super().__call__(fn, x_BLD, pos_BL, memory, n_images)
            return y_BLD.roll(1, dims=1)

    def misplace(k: int, layer: LayerPlan) -> LayerPlan:
        branch = Misplaced(TOKENS[k], SIZES[k], SELECT["distance"]) if k == 4 else Remembered(SIZES[k])
        return replace(layer, attn=branch)

    assert (images(tiny, edited(tiny, misplace)) - dense).abs().max() > 1e-3
    same_images(images(tiny, edited(tiny, partial(prune_all, select=rolled))), dense)


def test_keeping_the_least_attended_entries_is_noticed(tiny: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = layers(kv=KVCompression(keep=(0.5,) * 4))

    def change() -> float:
        tokens = [torch.randint(32, (3, n), generator=torch.Generator().manual_seed(0)) for n in TOKENS]
        with apply(tiny, policy) as fast:
            return (fast.likelihood(LABELS, tokens) - tiny.likelihood(LABELS, tokens)).abs().mean().item()

    right = change()
    monkeypatch.setattr(kv_compression, "best", lambda score, counts: kv_selection.best(-score, counts))
    assert change() != right


def test_budgets_bound_the_memory_of_each_head() -> None:
    budgets = [[1, 4, 10, 20], [1, 2, 5, 10], [1, 1, 1, 1], [0, 0, 0, 0]]
    kv = cache(budgets)
    for k in range(4):
        q = torch.randn(2, 4, TOKENS[k], 8)
        pos = torch.arange(SEEN[k] - TOKENS[k], SEEN[k])[None]
        views = kv.extend(q, q, q, pos, room=1)
        sizes = {view.heads[0]: view.k_BHSC.shape[2] for view in views if view.heads}
        history = [0, 0, 0, 0] if k == 0 else [b[k - 1] for b in budgets]
        assert sizes == {h: history[h] + TOKENS[k] for h in range(4)}
        entries = sum(b[k] for b in budgets)
        # keys and values of 8 floats, and a position of 2 bytes shared by rows and heads until entries were selected
        assert 2 * entries * 64 <= kv.nbytes <= 2 * entries * (64 + 2)


@pytest.mark.parametrize(("bits", "per_value"), [(8, 8), (4, 4)])
def test_low_bit_entries_take_the_bytes_they_say(bits: int, per_value: int) -> None:
    kv = cache([[9]] * 4, bits=bits)
    q = torch.randn(2, 4, 9, 32)
    kv.extend(q, q, q, torch.arange(9)[None], room=1)
    entries = 2 * 4 * 9
    assert kv.nbytes == entries * 2 * (32 * per_value // 8 + 4) + 9 * 2


@settings(max_examples=60)
@given(st.sampled_from([3, 4, 6, 8]), st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**31))
def test_packing_is_lossless_and_dense(bits: int, n: int, rows: int, seed: int) -> None:
    limit = 2 ** (bits - 1) - 1
    q = torch.randint(-limit, limit + 1, (rows, n), generator=torch.Generator().manual_seed(seed))
    packed = pack(q, bits)
    assert torch.equal(unpack(packed, bits, n, torch.float32).long(), q)
    assert packed.dtype == torch.uint8 and packed.shape[1] <= (n * bits + 7) // 8 + 2


@settings(max_examples=60)
@given(st.sampled_from([3, 4, 6, 8]), st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_rounding_is_within_half_a_step(bits: int, seed: int, size: float) -> None:
    x = size * torch.randn(4, 33, generator=torch.Generator().manual_seed(seed))
    q, scale = quantize(x, bits)
    assert (q * scale - x).abs().max() <= scale.max() * 0.5001
    assert torch.equal(q, q.round()) and q.abs().max() <= 2 ** (bits - 1) - 1


def test_zeros_stay_zeros() -> None:
    q, scale = quantize(torch.zeros(2, 5), 4)
    assert not (q * scale).any() and scale.isfinite().all()


@pytest.mark.parametrize("bits", [8, 6, 4, 3])
@pytest.mark.parametrize("group", [None, 32])
def test_a_quantized_linear_is_close_and_small(bits: int, group: int | None) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(128, 96), torch.randn(50, 128)
    small = QuantizedLinear(linear, Quantization(bits=bits, group=group))
    error = (small(x) - linear(x)).std() / linear(x).std()
    assert 0 < error < 1.2 * 2.0 ** (1 - bits)
    assert small.packed.nbytes == 96 * 128 * bits // 8
    assert small.scale.numel() == 96 * (128 // (group or 128))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4),
    st.integers(0, 4),
    st.integers(0, 2**31),
)
def test_tiles_equal_the_mask_on_any_maps(sizes: list[tuple[int, int]], radius: int, seed: int) -> None:
    maps = Maps(tuple(sizes), tuple(range(len(sizes))), len(sizes) - 1)
    n_keys, length = maps.n_keys, sizes[-1][0] * sizes[-1][1]
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 2, n, 4, generator=generator, dtype=torch.float64) for n in (length, n_keys, n_keys))
    keys = torch.arange(n_keys)[None, None]
    seen = visible(maps, (Window(radius),), keys[:, :, n_keys - length :], keys)
    parts = tuple(tile_tensors(*tile, like=q) for tile in tiles(maps, (Window(radius),)))
    want = reference(q, k, v, seen)
    torch.testing.assert_close(tiled_attention(q, k, v, parts), want)
    assert seen[0, 0, torch.arange(length), torch.arange(n_keys - length, n_keys)].all(), "a token always sees itself"
    assert sum(len(t.query_L) * len(t.key_S) for t in parts) <= length * n_keys


def test_small_windows_skip_most_of_a_large_map() -> None:
    maps = Maps(((1, 1), (8, 8), (32, 32)), (0, 1, 2), 2)
    work = sum(len(q) * len(k) for q, k, _ in tiles(maps, (Window(2),)))
    assert work < 0.1 * 1024 * maps.n_keys
