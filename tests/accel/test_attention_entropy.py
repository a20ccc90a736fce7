"""Entropies over groups of heads, and the tokens that they select."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from varsearch.accel.attention_entropy import note_entropy
from varsearch.accel.decision import low_entropy
from varsearch.accel.token_pruning import SELECT
from varsearch.models.seams import BranchMemory, DenseKV, KVView, LayerState

pytestmark = pytest.mark.numerics

sides = st.integers(1, 7)


@settings(max_examples=40)
@given(st.permutations(range(4)), st.integers(1, 3), st.lists(st.integers(1, 20), min_size=2, max_size=2))
def test_ragged_heads_are_averaged_like_any(order: list[int], cut: int, keys: list[int]) -> None:
    q = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    views, entropies = [], torch.zeros(2, 4, 5)
    for heads, n in zip((order[:cut], order[cut:]), keys, strict=True):
        k = torch.randn(2, len(heads), n, 8, generator=torch.Generator().manual_seed(n))
        views.append(KVView(k, k, (torch.arange(n).view(1, 1, n),), tuple(heads), torch.tensor(heads)))
        entropies[:, heads] = torch.special.entr((q[:, heads] @ k.mT).softmax(-1)).sum(-1)
    state = LayerState(DenseKV(), 2)
    note_entropy(q, tuple(views), state)
    assert state.attn.entropy_BL is state.between.entropy_BL is state.ffn.entropy_BL
    torch.testing.assert_close(state.attn.entropy_BL, entropies.mean(1), atol=1e-5, rtol=1e-5)


@settings(max_examples=60)
@given(st.tuples(sides, sides), st.tuples(sides, sides), st.floats(0.01, 1), st.booleans(), st.integers(0, 2**31))
def test_the_lowest_entropies_stay(
    source: tuple[int, int], size: tuple[int, int], strength: float, shared: bool, seed: int
) -> None:
    tokens = size[0] * size[1]
    count = max(1, round(strength * tokens))
    generator = torch.Generator().manual_seed(seed)
    entropy = torch.rand(2 if shared else 4, source[0] * source[1], generator=generator, dtype=torch.float64)
    memory = BranchMemory(size=source, entropy_BL=entropy)
    index = SELECT["entropy"](torch.zeros(4, tokens, 1), memory, size, count)
    assert index.shape == (4, count) and (index.diff(dim=1) > 0).all()
    resized = F.interpolate(entropy.view(-1, 1, *source), size=size, mode="bilinear").flatten(1)
    resized = resized.repeat(4 // len(entropy), 1)
    stays = torch.zeros(4, tokens, dtype=torch.bool).scatter(1, index, True)
    for row, kept in zip(resized, stays, strict=True):
        # Equal entropies may differ in the last place where they were interpolated.
        assert kept.all() or row[kept].max() <= row[~kept].min() + 1e-12


def test_equal_entropies_keep_the_first_tokens() -> None:
    memory = BranchMemory(size=(1, 1), entropy_BL=torch.ones(1, 1))
    assert SELECT["entropy"](torch.zeros(1, 9, 1), memory, (3, 3), 4).tolist() == [[0, 1, 2, 3]]


def test_the_share_of_low_entropies() -> None:
    entropy = torch.tensor([[0.0, 0.0, 0.0, 4.0], [4.0, 4.0, 4.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert low_entropy(entropy).tolist() == [[0.75], [0.25], [0.0]]
