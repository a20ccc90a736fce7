"""KV compression by itself: what it selects, keeps and costs, for any shapes, budgets and rules."""

from __future__ import annotations

from itertools import accumulate
from math import prod

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.accel.ranking import ranked
from tests.accel.techniques import FLIPPED, HACK, HACKPP, PRIOR, SCALEKV, layers
from tests.conftest import SCALES
from tests.exact import exact, same_images
from varsearch.accel import apply, kv_compression, kv_selection, labels_for
from varsearch.accel.kv_compression import Budget, CompressedKV, Entries, Head, HeadGroup, grouped
from varsearch.accel.kv_selection import Scorer, best, centre_rank
from varsearch.calibration import Calibration
from varsearch.evaluators.calibrate import calibrate, protocol_of
from varsearch.evaluators.trace import trace
from varsearch.models import zoo
from varsearch.models.image_model import ImageModel
from varsearch.models.sampling import PairedSampler
from varsearch.policy import KVCompression, Policy, Selection
from varsearch.space.presets.hack import hack
from varsearch.space.presets.hackpp import hackpp
from varsearch.space.presets.scalekv import scalekv
from varsearch.target import Target

LABELS = labels_for(3, 10)
RULES = {
    "default": (Selection(),) * 4,
    "hack": HACK,
    "hackpp": HACKPP,
    "scalekv": SCALEKV,
    "all at once": (Selection(queries=9, grid=True, pool="max", kernel=3, sinks=1, recent=True, prior=PRIOR),) * 4,
}


@pytest.mark.numerics
@pytest.mark.parametrize("name", RULES)
def test_a_selection_of_everything_is_dense(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def rank_always(self: HeadGroup, budget: Budget, q: Tensor, joined: Entries) -> tuple[Tensor | None, Tensor | None]:
        counts = {budget.attended, budget.cached} - {0}
        index = best(self.group.scorer(budget.scale, q, *joined), counts)
        assert counts == {joined.k_BHSC.shape[2]} and (index[budget.attended].diff() == 1).all()
        return index[budget.attended], index.get(budget.cached)

    monkeypatch.setattr(HeadGroup, "_ranked", rank_always)
    # 79/80 of few entries, rounded up, are all of them: the budgets are set, and nothing is dropped.
    kv = KVCompression(
        cache_budget=((79 / 80, 1, 1, 1),) * 5, attention_budget=((1, 79 / 80, 1, 1),) * 5, selection=RULES[name]
    )
    with apply(exact(), layers(kv=kv)) as fast:
        found = exact().generate(LABELS, PairedSampler(5, range(3)), fast.plan)
    same_images(found, exact().generate(LABELS, PairedSampler(5, range(3))))


def rules(n_scales: int) -> st.SearchStrategy[Selection]:
    prior = st.tuples(*(st.tuples(*[st.integers(0, 20)] * (k + 1)) for k in range(n_scales)))
    grid = st.sampled_from([(16, False), (3, False), (32, False), (16, True), (4, True), (1, True)])
    return st.builds(
        lambda observers, **fields: Selection(queries=observers[0], grid=observers[1], **fields),
        grid, pool=st.sampled_from([None, "mean", "max"]), kernel=st.sampled_from([3, 5, 7]),
        sinks=st.integers(0, 3), recent=st.booleans(), prior=st.just(()) | prior,
    )  # fmt: skip


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[Head], list[int], int]:
    """Maps, heads, how many tokens of each map are left by pruning, and a seed."""
    sizes = [(1, 1), *draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3))]
    most = sum(h * w for h, w in sizes) + 1
    pair = st.tuples(st.integers(1, most), st.integers(0, most))
    heads = [
        Head(tuple(Budget(k, *draw(pair)) for k in range(len(sizes))), draw(rules(len(sizes))))
        for _ in range(draw(st.integers(1, 3)))
    ]
    left = [draw(st.integers(1, h * w)) if draw(st.booleans()) else h * w for h, w in sizes]
    return sizes, heads, left, draw(st.integers(0, 2**31))


ONE = (Budget(0, 1, 0), Budget(1, 1, 0))


@settings(max_examples=150)
@given(cases())
# The pooling window covers all entries, so that their means are equal.
@example(([(1, 1), (1, 3)], [Head(ONE, Selection(pool="mean", kernel=7))], [1, 3], 0))
def test_every_row_and_head_holds_what_the_definition_says(
    case: tuple[list[tuple[int, int]], list[Head], list[int], int],
) -> None:
    sizes, heads, left, seed = case
    generator = torch.Generator().manual_seed(seed)
    cache = CompressedKV(grouped(heads, tuple(sizes)), None)
    total, rows = sum(prod(size) for size in sizes), 2
    keys, values, queries = (
        torch.randn(rows, len(heads), total, 8, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    held = [[[] for _ in heads] for _ in range(rows)]
    for k, start in enumerate([0, *accumulate(prod(size) for size in sizes[:-1])]):
        pruned = left[k] < prod(sizes[k])
        pos_BL = torch.stack(
            [start + torch.randperm(prod(sizes[k]), generator=generator)[: left[k]].sort().values for _ in range(rows)]
        )
        index = pos_BL[:, None, :, None].expand(-1, len(heads), -1, 8)
        q, key, value = (t.gather(2, index) for t in (queries, keys, values))
        views = cache.extend(q, key, value, pos_BL if pruned else pos_BL[:1], room=len(sizes) - 1 - k)
        shown = {}
        for view in views:
            for i, head in enumerate(view.heads or range(len(heads))):
                positions = view.positions().expand(rows, view.k_BHSC.shape[1], -1)[:, i].long()
                shown[head] = positions
                for row in range(rows):
                    assert torch.equal(view.k_BHSC[row, i], keys[row, head, positions[row]])
                    assert torch.equal(view.v_BHSC[row, i], values[row, head, positions[row]])
        for row in range(rows):
            here = pos_BL[row].tolist()
            for h, head in enumerate(heads):
                exist = [*held[row][h], *here]
                order = ranked(
                    head.rule, tuple(sizes), k, {t: queries[row, h, t] for t in here},
                    {t: keys[row, h, t] for t in exist}, values[row, h],
                )  # fmt: skip
                assert shown[h][row].tolist() == sorted(order[: head.budget_K[k].attended])
                held[row][h] = sorted(order[: head.budget_K[k].cached])


@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.integers(1, 5))
def test_centres_are_one_per_part_of_the_grid(size: tuple[int, int], side: int) -> None:
    parts = [min(side, n) for n in size]
    chosen = [divmod(t, size[1]) for t, rank in enumerate(centre_rank(size, side)) if rank < prod(parts)]
    for cells, n, g in zip(zip(*chosen, strict=True), size, parts, strict=True):
        # The centre of part i lies in, or on the edge of, the cell that stands for it.
        assert len(set(cells)) == g
        assert all(abs(c + 0.5 - (i + 0.5) * n / g) < 0.5 + 1e-9 for i, c in enumerate(sorted(set(cells))))


@pytest.mark.parametrize(
    ("height", "expected"), [(4, [0, 1, 2, 3]), (8, [0, 2, 4, 6]), (12, [1, 4, 7, 10]), (16, [1, 5, 9, 13])]
)
def test_centres_of_divisible_maps_are_scalekvs(height: int, expected: list[int]) -> None:
    rank = centre_rank((height, 4), 4)
    assert sorted({t // 4 for t in range(4 * height) if rank[t] < 16}) == expected


def scores(rule: Selection, scale: int = 2, seen: int = 14) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 1, n, 8, generator=generator) for n in (9, seen, seen))
    return Scorer([rule], SCALES)(scale, q, k, v, torch.arange(seen, dtype=torch.int16)[None, None])


def test_what_is_always_kept_comes_in_order() -> None:
    plain = scores(Selection())
    order = scores(Selection(sinks=2, recent=True)).argsort(-1, descending=True)[:, 0]
    assert (order[:, :5].sort().values == torch.arange(5)).all() and (
        order[:, 5:].sort().values == torch.arange(5, 14)
    ).all()
    assert plain.min() >= 0 and plain.max() <= 1 and plain.sum(-1).allclose(torch.ones(()))


def test_half_precision_is_scored_in_single() -> None:
    q = torch.randn(1, 1, 9, 8, dtype=torch.bfloat16)
    found = Scorer([Selection(prior=PRIOR)], SCALES)(2, q, q, q, torch.arange(5, 14)[None, None])
    assert found.dtype == torch.float32
    assert kv_selection.attention(q, q).dtype == torch.float32


def test_groups_join_heads_of_one_rule_and_of_different_priors() -> None:
    budget = (Budget(0, 1, 1),)
    heads = [Head(budget, Selection(prior=PRIOR)), Head(budget), Head(budget, Selection(prior=FLIPPED)), Head(budget)]
    assert [group.heads for group in grouped(heads, SCALES)] == [(0, 2), (1, 3)]
    assert grouped([Head(budget)] * 4, SCALES)[0].heads is None


@pytest.mark.parametrize(("side", "dtype"), [(16, torch.int16), (200, torch.int32)])
def test_positions_take_two_bytes_where_they_fit(side: int, dtype: torch.dtype) -> None:
    assert grouped([Head((Budget(0, 1, 1),))], ((1, 1), (side, side)))[0].position_dtype is dtype


def test_eviction_frees_the_entries_it_came_from() -> None:
    sizes = ((1, 1), (8, 8))
    cache = CompressedKV(grouped([Head((Budget(0, 99, 1), Budget(1, 99, 5)))] * 2, sizes), None)
    for k, n in enumerate((1, 64)):
        q = torch.randn(2, n, 3, 2, 8).permute(2, 0, 3, 1, 4)
        cache.extend(*q, torch.arange(k, k + n)[None], room=1)
        stored = [t.untyped_storage().nbytes() for group in cache.groups for t in (*group.stored, group.pos_BHS)]
        assert sum(stored) == cache.nbytes


def test_one_ranking_serves_both_budgets(tiny: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[set[int]] = []
    right = kv_selection.best
    monkeypatch.setattr(kv_compression, "best", lambda score, counts: calls.append(counts) or right(score, counts))
    kv = KVCompression(cache_budget=((0.25,) * 4,) * 5, attention_budget=((0.5,) * 4,) * 5)
    with apply(tiny, layers(kv=kv)) as fast:
        fast.images(LABELS, seed=0)
    # Three layers; at the first scale there is one entry, at the last nothing stays.
    want = [{3, 2}, {7, 4}, {15, 8}, {33}]
    assert calls == [counts for counts in want for _ in range(3)]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """A short calibration of the shipped model."""
    model = zoo.load("mnist")
    return calibrate(model, protocol_of(model, images=2))


@pytest.mark.parametrize(
    ("name", "kv", "attention"), [("hack", 0.3, 0.32), ("hackpp", 0.1, 0.4), ("scalekv", 0.1, 0.6)]
)
def test_the_shipped_model_saves_what_presets_promise(
    name: str, kv: float, attention: float, calibration: Calibration
) -> None:
    model = zoo.load("mnist")
    target = Target(device="cpu", dtype="float32", batch_size=2)
    dense = trace(model, Policy.dense(6, 6), target)
    found = trace(model, {"hack": hack, "hackpp": hackpp, "scalekv": scalekv}[name](model.spec, calibration), target)
    assert found.kv_bytes <= kv * dense.kv_bytes
    inside = [sum(op.flops for op in t.ops if op.attention and op.module.startswith("VAR")) for t in (found, dense)]
    assert inside[0] <= attention * inside[1]
    assert found.flops < dense.flops
