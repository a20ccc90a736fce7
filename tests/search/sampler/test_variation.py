"""Variation of policies: mutation, crossover and random trade-offs."""

from __future__ import annotations

import random

import pytest

from tests.search.interacting import information, starts
from tests.search.synthetic import SPEC
from varsearch.search.sampler.prior_mean import PriorMean
from varsearch.search.sensitivity.decomposition import compose, effective, settings_of

WHOLE = ("guidance", "refiner")


@pytest.mark.parametrize("profile", [True, False])
def test_variation_changes_something_and_leave_nothing_without_effect(profile: bool) -> None:
    rng, parents = random.Random(0), [settings_of(t.policy) for t in starts()]
    variation = information(profile).variation
    for _ in range(60):
        a, b = rng.sample(parents, 2)
        for chosen in (variation.mutated(a, rng), variation.crossed(a, b, rng)):
            assert len({setting.unit for setting in chosen}) == len(chosen)
            assert effective(chosen) == chosen
            compose(SPEC, chosen)
    crossed = {setting for _ in range(20) for setting in variation.crossed(parents[-1], parents[2], rng)}
    assert crossed <= {*parents[-1], *parents[2]}


def test_caches_that_keep_nothing_have_no_bits() -> None:
    options = [s for unit in information().prior_mean.units.values() for s in unit]
    nothing = [s for s in options if s.kind == "keep" and s.layer == 0 and s.value == 0]
    bits = next(s for s in options if s.kind == "kv_bits" and s.layer == 0)
    other = next(s for s in options if s.kind == "kv_bits" and s.layer == 1)
    assert effective([*nothing, bits, other]) == (*nothing, other)
    assert effective([*nothing[1:], bits]) == (*nothing[1:], bits)


def test_random_trade_offs_trade_loss_for_savings() -> None:
    rng, prior_mean, variation = random.Random(0), information().prior_mean, information().variation
    assert variation.knows_trade_offs and not information(profile=False).variation.knows_trade_offs
    rows = prior_mean.rows([variation.trade_off(rng) for _ in range(40)])
    loss = prior_mean.relative_loss(rows, dense_fid=1.0)
    saved = 2 - prior_mean.time(rows) - prior_mean.memory(rows)
    order = loss.argsort()
    assert saved[order[-10:]].mean() > saved[order[:10]].mean() + 0.2


def test_options_go_from_mild_to_strong() -> None:
    """What begins late is mild: to dense it is nearer than what begins early."""
    siblings = (SPEC.model_copy(update={"name": "small", "n_layers": 1, "fingerprint": "a" * 64}),)
    prior_mean = PriorMean(SPEC.model_copy(update={"fingerprint": "b" * 64}), siblings, None)
    begins = {unit: [getattr(s.value, "first_scale", s.value) for s in prior_mean.units[unit]] for unit in WHOLE}
    last = len(SPEC.scales) - 1
    assert begins == {"guidance": [*range(last, -1, -1)], "refiner": [*range(last, 0, -1)]}
    strengths = prior_mean.strength_SU[[prior_mean.settings.index(s) for s in prior_mean.units["refiner"]]].sum(1)
    assert list(strengths) == sorted(strengths) and strengths[-1] == 1
    assert [s.value.bits for s in prior_mean.units["L0.qkv"]] == [8, 6, 4, 3]
