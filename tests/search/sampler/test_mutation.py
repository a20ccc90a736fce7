"""Moves through the space of policies: what they change, and what lies on the path."""

from __future__ import annotations

import random

import pytest

from tests.search.interacting import moves, starts
from tests.search.synthetic import SPEC
from varsearch.search.sampler.mutation import effective
from varsearch.search.sampler.prior_mean import Outlook
from varsearch.space.changes import changes
from varsearch.space.units import compose

WHOLE = ("guidance", "refiner")


@pytest.mark.parametrize("profile", [True, False])
def test_moves_change_something_and_leave_nothing_without_effect(profile: bool) -> None:
    rng, parents = random.Random(0), [changes(t.policy).settings for t in starts()]
    made = moves(profile)
    for _ in range(60):
        a, b = rng.sample(parents, 2)
        for chosen in (made.edited(a, rng), made.crossed(a, b, rng)):
            assert len({setting.unit for setting in chosen}) == len(chosen)
            assert effective(chosen) == chosen
            compose(SPEC, chosen)
    crossed = {setting for _ in range(20) for setting in made.crossed(parents[-1], parents[2], rng)}
    assert crossed <= {*parents[-1], *parents[2]}


def test_caches_that_keep_nothing_have_no_bits() -> None:
    options = [s for unit in moves().outlook.units.values() for s in unit]
    nothing = [s for s in options if s.kind == "keep" and s.layer == 0 and s.value == 0]
    bits = next(s for s in options if s.kind == "kv_bits" and s.layer == 0)
    other = next(s for s in options if s.kind == "kv_bits" and s.layer == 1)
    assert effective([*nothing, bits, other]) == (*nothing, other)
    assert effective([*nothing[1:], bits]) == (*nothing[1:], bits)


def test_points_on_the_path_trade_loss_for_savings() -> None:
    rng, outlook, path = random.Random(0), moves().outlook, moves().path
    assert path is not None
    rows = outlook.rows([path.draw(rng) for _ in range(40)])
    loss, saved = outlook.loss(rows), 2 - outlook.time(rows) - outlook.memory(rows)
    order = loss.argsort()
    assert saved[order[-10:]].mean() > saved[order[:10]].mean() + 0.2


def test_options_go_from_mild_to_strong() -> None:
    """What begins late is mild: to dense it is nearer than what begins early."""
    siblings = (SPEC.model_copy(update={"name": "small", "n_layers": 1, "fingerprint": "a" * 64}),)
    outlook = Outlook(SPEC.model_copy(update={"fingerprint": "b" * 64}), siblings, None)
    begins = {unit: [getattr(s.value, "first_scale", s.value) for s in outlook.units[unit]] for unit in WHOLE}
    last = len(SPEC.scales) - 1
    assert begins == {"guidance": [*range(last, -1, -1)], "refiner": [*range(last, 0, -1)]}
    strengths = outlook.strength_SU[[outlook.settings.index(s) for s in outlook.units["refiner"]]].sum(1)
    assert list(strengths) == sorted(strengths) and strengths[-1] == 1
    assert [s.value.bits for s in outlook.units["L0.qkv"]] == [8, 6, 4, 3]
