"""Moves through the space of policies: what they change, and what lies on the path."""

from __future__ import annotations

import random

import pytest

from benchmarks.search_synthetic import SPEC
from tests.search.interacting import moves, starts
from varsearch.search.moves import effective
from varsearch.space.changes import changes
from varsearch.space.units import compose


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


def test_points_on_the_path_trade_loss_for_savings() -> None:
    rng, outlook, path = random.Random(0), moves().outlook, moves().path
    assert path is not None
    rows = outlook.rows([path.draw(rng) for _ in range(40)])
    loss, saved = outlook.loss(rows), 2 - outlook.time(rows) - outlook.memory(rows)
    order = loss.argsort()
    assert saved[order[-10:]].mean() > saved[order[:10]].mean() + 0.2
