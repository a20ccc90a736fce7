from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varsearch.evaluators import manifold
from varsearch.evaluators.manifold import Manifold, precision_recall

pytestmark = pytest.mark.numerics

Points = list[list[float]]


def brute_force_share(inside: Points, around: Points) -> float:
    """Share of `inside` within the third-neighbour ball of some point of `around`, by comparing every pair."""
    radii = [sorted(math.dist(p, q) for j, q in enumerate(around) if j != i)[2] for i, p in enumerate(around)]
    hits = [any(math.dist(p, q) <= r for q, r in zip(around, radii, strict=True)) for p in inside]
    return sum(hits) / len(hits)


@settings(max_examples=40)
@given(n=st.integers(4, 30), m=st.integers(4, 30), shift=st.floats(0, 4), seed=st.integers(0, 999))
def test_equals_brute_force(n: int, m: int, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(n, 3, generator=generator) + shift
    real = torch.randn(m, 3, generator=generator)
    precision, recall = precision_recall(samples, Manifold(real))
    assert precision.value == pytest.approx(brute_force_share(samples.tolist(), real.tolist()))
    assert recall.value == pytest.approx(brute_force_share(real.tolist(), samples.tolist()))


def test_rows_are_cut_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    asked = points[:20] + 0.7
    whole = Manifold(points)
    monkeypatch.setattr(manifold, "ROWS", 7)
    torch.testing.assert_close(Manifold(points).radii_N, whole.radii_N)
    assert torch.equal(Manifold(points).contains(asked), whole.contains(asked))


def test_less_variety_costs_recall_and_noise_costs_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    real = Manifold(torch.randn(400, 6, generator=generator))
    narrow = precision_recall(0.3 * torch.randn(400, 6, generator=generator), real)
    wide = precision_recall(3 * torch.randn(400, 6, generator=generator), real)
    assert narrow[0].value > 0.95 and narrow[1].value < 0.3
    assert wide[0].value < 0.5 and wide[1].value > 0.9
    assert narrow[0].low is not None and narrow[1].low is None and narrow[0].n == 400
