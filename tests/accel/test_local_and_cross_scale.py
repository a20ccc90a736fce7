"""Windows, bands and chosen keys on any maps: what is skipped was not to be seen, and faults show."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.accel.techniques import TECHNIQUES, layers
from tests.accel.test_against_oracle import difference
from tests.conftest import build_tiny
from tests.exact import exact, same_images
from varsearch.accel import apply, banded_attention, cross_scale_attention, labels_for, sparse_attention
from varsearch.accel.banded_attention import Band
from varsearch.accel.cross_scale_attention import ChosenKeys, counterparts, template
from varsearch.accel.sparse_attention import LocalAttention, Pattern, RaggedHeads, Window, tiles, visible
from varsearch.accel.token_maps import Maps
from varsearch.evaluators.trace import trace
from varsearch.kernels.attention_backends import reference
from varsearch.models.image_model import ImageModel
from varsearch.models.sampling import PairedSampler
from varsearch.models.seams import AttentionMemory, KVView
from varsearch.policy import CrossScale, Policy, ScalePolicy, SparseAttention, TokenPruning
from varsearch.target import Target

LABELS = labels_for(3, 10)

sizes = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=2, max_size=4).map(tuple)
skips = st.sets(st.integers(1, 2), max_size=1)


@st.composite
def maps(draw: st.DrawFn) -> Maps:
    found, skipped = draw(sizes), draw(skips)
    run = tuple(k for k in range(len(found)) if k not in skipped or k == len(found) - 1)
    return Maps(found, run, len(found) - 1)


def reaches(scale: int, most: int) -> st.SearchStrategy[tuple[int | None, ...]]:
    return st.tuples(*[st.none() | st.integers(0, most)] * (scale + 1))


def patterns(scale: int) -> st.SearchStrategy[Pattern]:
    window, band = reaches(scale, 5).map(Window), reaches(scale, 36).map(Band)
    return st.tuples(window) | st.tuples(band) | st.tuples(window, band) | st.just(())


def layer_of(m: Maps, seed: int, rows: int = 2, heads: int = 3) -> tuple[Tensor, Tensor, KVView]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(rows, heads, n, 4, generator=generator, dtype=torch.float64)
        for n in (len(m.query_positions()), m.n_keys, m.n_keys)
    )
    return (
        q,
        torch.from_numpy(m.query_positions())[None],
        KVView(k, v, (torch.from_numpy(m.key_positions())[None, None],)),
    )


def definition(m: Maps, pattern: Pattern, query: int, key: int) -> bool:
    """Who sees whom, in fractions and one pair at a time."""
    cells = [(k, y, x) for k, (h, w) in enumerate(m.sizes) for y in range(h) for x in range(w)]
    (k, *place), (j, *cell) = cells[query], cells[key]
    for rule in pattern:
        reach = rule.reach[j]
        if reach is None:
            continue
        if isinstance(rule, Window):
            there = [(Fraction(2 * p + 1, 2 * m.sizes[k][i]) * m.sizes[j][i]).__floor__() for i, p in enumerate(place)]
            if any(abs(a - b) > reach for a, b in zip(there, cell, strict=True)):
                return False
        else:
            own, other = (y * m.sizes[s][1] + x for s, y, x in (cells[query], cells[key]))
            if abs(Fraction(own * len(m.positions(j)), len(m.positions(k))) - other) >= reach:
                return False
    return True


@settings(max_examples=60)
@given(st.data())
def test_patterns_show_what_they_are_defined_to(data: st.DataObject) -> None:
    m = data.draw(maps())
    pattern = data.draw(patterns(m.scale).filter(bool))
    want = np.array([[definition(m, pattern, i, j) for j in m.key_positions()] for i in m.query_positions()])
    assert (visible(m, pattern, m.query_positions(), m.key_positions()) == want).all()
    as_tensors = visible(m, pattern, torch.from_numpy(m.query_positions()), torch.from_numpy(m.key_positions()))
    assert (as_tensors.numpy() == want).all()


@pytest.mark.numerics
@settings(max_examples=60)
@given(st.data(), st.integers(0, 2**31))
def test_ragged_heads_equal_their_masks(data: st.DataObject, seed: int) -> None:
    m = data.draw(maps())
    chosen = data.draw(st.tuples(*[patterns(m.scale)] * 3))
    q, pos, view = layer_of(m, seed)
    got = RaggedHeads([LocalAttention(pattern, m) for pattern in chosen])(q, pos, (view,), AttentionMemory())
    for head, pattern in enumerate(chosen):
        seen = np.array([[definition(m, pattern, i, j) for j in m.key_positions()] for i in m.query_positions()])
        one = slice(head, head + 1)
        want = reference(q[:, one], view.k_BHSC[:, one], view.v_BHSC[:, one], torch.from_numpy(seen))
        torch.testing.assert_close(got[:, one], want)
        assert not got[:, head, ~seen.any(1)].any(), "a query that sees no key gets zeros"


@settings(max_examples=60)
@given(st.data(), st.integers(0, 2**31))
def test_tiles_hold_each_visible_pair_once(data: st.DataObject, seed: int) -> None:
    m = data.draw(maps())
    pattern = data.draw(patterns(m.scale).filter(bool))
    count = np.zeros((len(m.query_positions()), m.n_keys), dtype=int)
    for query, key, bias in tiles(m, pattern):
        count[np.ix_(query, key)] += 1 if bias is None else np.isfinite(bias)
    assert (count == visible(m, pattern, m.query_positions(), m.key_positions())).all()


choices = st.builds(
    dict, keys=st.integers(0, 80).map(lambda i: i / 80), sink_scales=st.integers(1, 3), groups=st.integers(1, 4),
    radius=st.integers(0, 2),
)  # fmt: skip


@settings(max_examples=80)
@given(maps(), choices, st.integers(0, 2**31))
def test_lists_of_keys_equal_their_masks_and_name_each_key_once(m: Maps, choice: dict[str, int], seed: int) -> None:
    decision = m.run[-2]
    radius = (choice["radius"],) * (m.scale - decision + 1)
    how = CrossScale(decision_scale=decision, **choice | {"radius": radius})
    attend, (q, pos, view) = ChosenKeys(how, m), layer_of(m, seed)
    known = template(how, m)
    shape = (2, 3, *known.known_GT.shape)
    mass = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen = attend.choose(mass)
    assert chosen.shape[3] == known.n_chosen <= how.keys * m._replace(scale=decision).n_keys + 1
    torch.testing.assert_close(attend(q, pos, view, mass), attend.masked(q, pos, view, chosen))
    for g, always in enumerate(known.always):
        for row, head in product(range(2), range(3)):
            named = [*always, *chosen[row, head, g].tolist()]
            assert len(named) == len(set(named)) and set(named) <= set(m.key_positions().tolist())


def test_a_key_moves_to_its_place_as_many_scales_on() -> None:
    m = Maps(((1, 1), (2, 2), (3, 3), (4, 6), (8, 9)), (0, 1, 2, 3, 4), 4)
    how = CrossScale(decision_scale=2, keys=0.5, sink_scales=1, radius=(0, 0, 0))
    found = counterparts(how, m)
    corner = [int(m.positions(4)[y * 9 + x]) for y in (1, 4, 6) for x in (1, 4, 7)]
    assert found[m.positions(2)].tolist() == corner  # from 3x3 to 8x9, two scales on
    assert found[m.positions(1)].tolist() == [int(m.positions(3)[y * 6 + x]) for y in (1, 3) for x in (1, 4)]
    assert found[m.positions(0)].tolist() == [int(m.positions(2)[4])]
    # Scale 1 does not run, so scale 2 is one before 3, and the first scale's key moves to scale 2.
    skipped = counterparts(how, m._replace(run=(0, 2, 3), scale=3))
    assert (skipped[m.positions(1)] == -1).all()
    assert skipped[0] == m.positions(2)[4] and skipped[m.positions(2)[4]] == m.positions(3)[2 * 6 + 3]


def images(model: ImageModel, policy: Policy) -> Tensor:
    with apply(model, policy) as fast:
        return fast.images(LABELS, seed=5)


EVERYTHING = CrossScale(decision_scale=2, keys=0.5, sink_scales=5, radius=(0, 0, 0), groups=4)
NEUTRAL = {
    "bands over everything": SparseAttention(band=((36,) * 4,) * 5),
    "windows over everything, ragged": SparseAttention(window=((6, 7, 8, 9),) * 5),
    "all scales are sinks": SparseAttention(cross_scale=EVERYTHING),
    "the neighbourhood is the map": SparseAttention(
        cross_scale=EVERYTHING.model_copy(update={"sink_scales": 4, "radius": (4, 4, 6)})
    ),
}


@pytest.mark.numerics
@pytest.mark.parametrize("masked", [False, True], ids=["skipped", "masked"])
@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_through_the_slow_path(monkeypatch: pytest.MonkeyPatch, name: str, masked: bool) -> None:
    dense = exact().generate(LABELS, PairedSampler(5, range(3)))
    if masked:
        monkeypatch.setattr(Maps, "complete", lambda *_: False)
    same_images(images(exact(), layers(attention=NEUTRAL[name])), dense)


def test_work_outside_bands_is_not_done_though_heads_differ() -> None:
    model = build_tiny()
    policy, target = TECHNIQUES["band-ragged"], Target(device="cpu", dtype="float32", batch_size=2)
    pairs = 0
    for k in (3, 4):
        m = Maps(model.spec.scales, tuple(range(5)), k)
        for head in range(4):
            pattern = sparse_attention.pattern_of(policy, k, 0, head)
            whole = len(m.query_positions()) * m.n_keys
            pairs += sum(len(q) * len(s) for q, s, _ in tiles(m, pattern)) if pattern else whole
            assert not pattern or pairs < whole * 4
    found = sum(op.flops for op in trace(model, policy, target).ops if op.attention and op.scale in (3, 4))
    assert found == pairs * 3 * 4 * 2 * 2 * 16  # layers, rows, two products of multiply-adds, head dim


def wrong_place(how: CrossScale, m: Maps) -> np.ndarray:
    return np.minimum(counterparts(how, m) + 1, m.key_positions().max())


@pytest.mark.parametrize("fault", ["mapping", "residual", "band", "rows"])
def test_faults_are_noticed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    policy = TECHNIQUES["band-ragged" if fault == "band" else "cross-scale"]
    if fault == "mapping":
        monkeypatch.setattr(cross_scale_attention, "template", template.__wrapped__)
        monkeypatch.setattr(cross_scale_attention, "counterparts", wrong_place)
    elif fault == "residual":
        upsampled = cross_scale_attention.Following._upsampled
        monkeypatch.setattr(cross_scale_attention.Following, "_upsampled", lambda *t: upsampled(*t).flip(2))
    elif fault == "band":
        monkeypatch.setattr(sparse_attention, "tiles", tiles.__wrapped__)
        monkeypatch.setattr(banded_attention, "look_up", lambda values, index: np.array(values)[index] + 1)
    else:
        monkeypatch.setattr(cross_scale_attention, "rows_of", lambda t, rows: t.flip(0)[:rows])
    assert difference(exact(), policy) > 1e-6


def test_the_decision_needs_all_queries_and_its_scale() -> None:
    attention = SparseAttention(cross_scale=EVERYTHING)
    for broken in (ScalePolicy(run=False), ScalePolicy(tokens=TokenPruning(keep=0.5))):
        with pytest.raises(ValueError, match=r"does not run|needs all queries"):
            Policy(
                layers=layers(attention=attention).layers,
                scales=(ScalePolicy(), ScalePolicy(), broken, ScalePolicy(), ScalePolicy()),
            )
