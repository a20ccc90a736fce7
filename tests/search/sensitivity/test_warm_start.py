from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest

from tests.search.profiles import SPEC, random_loss, synthetic
from varsearch.policy import Policy
from varsearch.search.sensitivity.decomposition import Setting, other_fields, settings_of
from varsearch.search.sensitivity.lagrangian import OFF, Option, TradeOffs
from varsearch.search.sensitivity.warm_start import WarmStartConfig, path, spread, warm_starts

CONFIG = WarmStartConfig()
PRICES = np.geomspace(*CONFIG.prices, CONFIG.n_prices).tolist()


def setting(group: int, option: int, kind: str = "kv_bits") -> Setting:
    return Setting(kind, option, layer=group)  # type: ignore[arg-type]


def random_groups(rng: random.Random, n: int, options: int) -> list[list[Option]]:
    return [
        [
            Option((setting(g, o),), rng.uniform(0.001, 1), (rng.uniform(-0.05, 0.2), rng.uniform(-0.05, 0.2)))
            for o in range(options)
        ]
        for g in range(n)
    ]


def everything(groups: list[list[Option]]) -> list[tuple[float, tuple[float, float]]]:
    """Loss and savings of all combinations."""
    combinations = product(*([OFF, *group] for group in groups))
    return [
        (sum(o.loss for o in some), (sum(o.saved[0] for o in some), sum(o.saved[1] for o in some)))
        for some in combinations
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mixture", CONFIG.weights)
def test_the_path_is_optimal_by_brute_force(seed: int, mixture: tuple[float, float]) -> None:
    rng = random.Random(seed)
    groups = random_groups(rng, n=6, options=3)
    frames = [OFF, Option((), 0.2, (0.3, 0.2)), Option((), 0.3, (0.1, 0.4))]
    points = [
        (
            frame.loss + loss,
            sum(w * (1 - (1 - f) * (1 - s)) for w, f, s in zip(mixture, frame.saved, saved, strict=True)),
        )
        for frame in frames
        for loss, saved in everything(groups)
    ]
    found = path(TradeOffs(frames, groups), mixture)
    saved = [mixture[0] * o.saved[0] + mixture[1] * o.saved[1] for o in found]
    # No other combination saves as much for less.
    for option, amount in zip(found, saved, strict=True):
        assert option.loss == pytest.approx(min(loss for loss, s in points if s >= amount - 1e-12))
    # For whatever must be saved, the next policy of the path is off the optimum by no more than the gap of the bound.
    for need in [i * max(saved) / 20 for i in range(20)]:
        best = min(loss for loss, s in points if s >= need)
        taken = next(o for o, amount in zip(found, saved, strict=True) if amount >= need)
        bound = max(min(loss + price * (need - s) for loss, s in points) for price in PRICES[::5])
        assert bound - 1e-9 <= best <= taken.loss + 1e-9
        assert taken.loss - best <= taken.loss - bound + 1e-9
    assert len(found) >= 5 and saved == sorted(saved) and [o.loss for o in found] == sorted(o.loss for o in found)


def test_global_settings_leave_out_settings_that_they_make_useless() -> None:
    share, prune = Setting("sharing", True, layer=0, scale=3, part="ffn"), Setting("tokens", 0.5, layer=0, scale=3)
    early = Setting("sharing", True, layer=0, scale=1, part="ffn")
    groups = [[Option((s,), 0.001, (0.1, 0.1))] for s in (share, prune, early)]
    frames = {
        Setting("guidance", 2): {prune, early},
        Setting("skip", True, scale=3): {early},
        Setting("skip", True, scale=2): {share, prune, early},
    }
    for outer, left in frames.items():
        found = path(TradeOffs([Option((outer,), 0.0, (0.5, 0.5))], groups), (0.5, 0.5))[-1]
        assert set(found.chosen) == {outer, *left}


def test_global_settings_are_compared_with_all_that_goes_with_them() -> None:
    share = Setting("sharing", True, layer=0, scale=3, part="ffn")
    groups = [[Option((share,), 0.01, (0.4, 0.0))]]
    frame = Option((Setting("guidance", 3),), 0.05, (0.3, 0.0))
    # Sharing saves more for less, and has no effect without guidance.
    assert path(TradeOffs([OFF, frame], groups), (1.0, 0.0)) == [OFF, groups[0][0]]


def test_spread_is_even_up_to_the_end() -> None:
    found = [Option((setting(i, 0),), i, (x, 0.0)) for i, x in enumerate([0.0, 0.1, 0.11, 0.12, 0.5, 1.0])]
    assert [o.loss for o in spread(found, (1.0, 0.0), 2)] == [4, 5]
    assert [o.loss for o in spread(found, (1.0, 0.0), 5)] == [3, 4, 5]
    assert len(spread(found, (1.0, 0.0), 50)) == 6 and spread([], (1.0, 0.0), 3) == []


def test_warm_starts_are_valid_policies_from_mild_to_strong() -> None:
    profile = synthetic(random_loss())
    found = warm_starts(profile, 12, WarmStartConfig(max_loss=0.5))
    assert 8 <= len(found) <= 12
    for start in found:
        start.policy.check(SPEC)
        assert set(settings_of(start.policy)) == set(start.chosen) and not other_fields(start.policy)
        assert 0 < start.loss <= 0.5
    losses = [start.loss for start in found]
    assert losses == sorted(losses) and losses[0] < 0.1 < 0.3 < losses[-1]
    assert min(start.cost.latency_ms for start in found) < 70 < 95 < max(start.cost.latency_ms for start in found)
    assert min(start.cost.peak_bytes for start in found) < 7e5
    assert Policy.dense(2, 4) not in [start.policy for start in found]
    assert warm_starts(profile, 12, WarmStartConfig(max_loss=0.5)) == found


def test_what_loses_least_for_what_it_saves_comes_first() -> None:
    cheap = {"L1.fc1=4bit", "L0S2.attention=shared"}
    losses = random_loss()
    profile = synthetic(lambda s: 1e-6 if s.name in cheap else losses(s))
    mildest = min(warm_starts(profile, 12), key=lambda start: start.loss)
    assert {s.name for s in mildest.chosen} & cheap
    everywhere = [{s.name for s in start.chosen} for start in warm_starts(profile, 12)]
    assert sum("L1.fc1=4bit" in names for names in everywhere) >= len(everywhere) - 1
