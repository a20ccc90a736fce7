"""Blocks of keys that blocks of queries meet: all that they must, no more, and each seen as it is said to be."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.accel.techniques import TECHNIQUES
from tests.accel.test_local_and_cross_scale import maps, patterns
from tests.conftest import build_tiny
from varsearch.accel import apply
from varsearch.accel.banded_attention import Band
from varsearch.accel.block_lists import ORDERS, Blocks, blocks_of, in_order, order_of
from varsearch.accel.sparse_attention import Pattern, Window, visible
from varsearch.accel.token_maps import Maps
from varsearch.kernels.block_attention import BLOCK

SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
INFINITY = tuple((side, side) for side in SIDES)
side = st.integers(1, 20)


@given(st.sampled_from(list(ORDERS)), side, side)
def test_an_order_has_each_cell_once(name: str, height: int, width: int) -> None:
    assert sorted(order_of(name, (height, width))) == list(range(height * width))


def test_a_block_of_tiles_or_of_the_curve_is_a_square() -> None:
    for name in ("tiles", "hilbert"):
        for block in order_of(name, (32, 32)).reshape(-1, BLOCK):
            y, x = divmod(block, 32)
            assert (np.ptp(y), np.ptp(x)) == (7, 7)
    steps = [np.abs(np.diff(t)) for t in divmod(order_of("hilbert", (16, 16)), 16)]
    assert (steps[0] + steps[1] == 1).all(), "the curve goes from neighbour to neighbour"


def seen_pairs(m: Maps, pattern: Pattern, found: Blocks) -> np.ndarray:
    """Who sees whom in the order of the blocks, with nobody at empty places."""
    keys = m.key_positions() if found.key_S is None else m.key_positions()[found.key_S]
    there = found.query_M[found.query_M >= 0]
    seen = visible(m, pattern, m.query_positions()[there], keys) if pattern else np.ones((len(there), len(keys)), bool)
    return np.pad(seen, ((0, len(found.query_M) - len(there)), (0, -len(keys) % BLOCK)))


@settings(max_examples=25)
@given(st.data(), st.sampled_from(list(ORDERS)))
def test_blocks_are_those_with_a_visible_pair(data: st.DataObject, order: str) -> None:
    m = data.draw(large_maps())
    chosen = data.draw(st.tuples(*[patterns(m.scale)] * 2))
    found = in_order(chosen, m, order)
    for head, pattern in enumerate(chosen):
        pairs = seen_pairs(m, pattern, found)
        tiled = pairs.reshape(-1, BLOCK, pairs.shape[1] // BLOCK, BLOCK)
        members = (found.query_M.reshape(-1, BLOCK) >= 0).sum(1)
        for q, b in product(range(len(tiled)), range(tiled.shape[2])):
            listed = found.index_HQN[head, q, : found.count_HQ[head, q]].tolist()
            full = listed[: found.full_HQ[head, q]]
            assert len(set(listed)) == len(listed)
            whole = tiled[q, :, b].sum() == members[q] * BLOCK
            assert (b in full) == whole
            if len(pattern) < 2:
                assert (b in listed) == tiled[q, :, b].any()
            else:  # where a window and a band meet, both may show something without a pair in common
                assert b in listed or not tiled[q, :, b].any()


@st.composite
def large_maps(draw: st.DrawFn) -> Maps:
    """Maps of more than a block, and borders between them that are none of blocks."""
    small = draw(maps())
    return small._replace(sizes=(*small.sizes[:-1], (draw(st.integers(6, 18)), draw(st.integers(6, 18)))))


@pytest.mark.parametrize(("radius", "part"), [(1, 1.0), (3, 1.0), (5, 0.95), (8, 0.8)])
def test_windows_of_a_large_map_need_few_blocks(radius: int, part: float) -> None:
    """On a map of 64 columns a block is a row in raster order, which suits narrow windows; wide ones take squares."""
    m = Maps(INFINITY, tuple(range(13)), 12)
    window = (Window((None,) * 5 + (0,) * 5 + (radius,) * 3),)
    found, naive = blocks_of((window,), m), in_order((window,), m, "raster")
    everything = len(found.query_M) * -(-m.n_keys // BLOCK) * BLOCK
    assert 1 - found.pairs / everything > 0.7
    assert found.pairs <= part * naive.pairs
    tiled = seen_pairs(m, window, found).reshape(-1, BLOCK, -(-m.n_keys // BLOCK), BLOCK)
    assert found.pairs == tiled.any((1, 3)).sum() * BLOCK**2, "no block but those that have a visible pair"


def test_bands_stay_in_raster_order() -> None:
    m = Maps(INFINITY[:10], tuple(range(10)), 9)
    assert blocks_of(((Band(32),),) * 2, m).order == "raster"


def likelihood(name: str, attention: str) -> torch.Tensor:
    model, rng = build_tiny(), torch.Generator().manual_seed(0)
    tokens = [torch.randint(32, (1, n), generator=rng) for n in model.spec.tokens]
    with apply(model, TECHNIQUES[name], attention=attention) as applied:  # type: ignore[arg-type]
        assert applied.attention.split(",")[0] == attention
        return applied.likelihood(torch.arange(1), tokens)


@pytest.mark.parametrize("name", ["dense", "window-ragged", "band-ragged", "cross-scale", "prune-entropy"])
def test_a_model_runs_on_the_kernel(name: str, interpreter: Callable[..., Any]) -> None:
    want = likelihood(name, "sdpa")
    for attention in ("triton", "sdpa+triton"):
        torch.testing.assert_close(interpreter(likelihood, name, attention), want, atol=1e-4, rtol=0)
