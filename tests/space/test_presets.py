"""Published systems as policies: their numbers, on shapes that they were published for and on small ones."""

from __future__ import annotations

import pytest

from varsearch.calibration import Calibration, CalibrationProtocol
from varsearch.errors import UsageError
from varsearch.policy import Policy
from varsearch.policy.summary import summarize
from varsearch.space.presets.code import code
from varsearch.space.presets.fastvar import HART, fastvar
from varsearch.space.presets.fastvar import INFINITY as RATIOS
from varsearch.space.presets.skipvar import skipvar, untrained
from varsearch.space.presets.toprovar import layer_scores, toprovar
from varsearch.target import ModelSpec


def spec(layers: int, sides: tuple[int, ...]) -> ModelSpec:
    return ModelSpec(
        name="m", n_layers=layers, n_heads=4, head_dim=16, scales=tuple((s, s) for s in sides), classes=10,
        image_size=(8, 8),
    )  # fmt: skip


INFINITY = spec(32, (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
SMALL = spec(6, (1, 2, 3, 4, 6, 8))


def calibration(ratios: tuple[tuple[float, ...], ...]) -> Calibration:
    return Calibration(
        fingerprint="", protocol=CalibrationProtocol(guidance=1.0, top_k=0, top_p=0.0), column_variance=(),
        scale_mass=(), band_mass=(), history_top=(), entropy_ratio=ratios, half_distance=(), sqnr=(), seconds=0.0,
        low_entropy=((0.3, 0.5, 0.45, 0.2), (0.5, 0.5, 0.5, 0.3)) * 3, skipvar={},
    )  # fmt: skip


def test_fastvar_as_published_for_infinity() -> None:
    policy = fastvar(INFINITY)
    policy.check(INFINITY)
    assert [k for k, scale in enumerate(policy.scales) if not scale.run] == [11, 12]
    assert [(k, s.tokens.keep) for k, s in enumerate(policy.scales) if s.tokens] == [(9, 0.6), (10, 0.5)]
    pruned = [layer for layer in range(32) if policy.prunes(9, layer)]
    assert pruned == list(range(3, 28))
    assert {policy.restore_scale(k, layer) for k in (9, 10) for layer in pruned} == {8}


def test_fastvar_as_published_for_hart() -> None:
    hart = spec(24, (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64))
    policy = fastvar(hart, HART, layers=(0, 1))
    assert all(scale.run for scale in policy.scales)
    assert [s.tokens.keep for s in policy.scales[-2:]] == [0.5, 0.25]
    assert all(policy.prunes(13, layer) and policy.restore_scale(13, layer) == 11 for layer in range(24))


def test_fastvar_on_a_small_model_and_where_it_does_not_fit() -> None:
    policy = fastvar(SMALL)
    assert [scale.run for scale in policy.scales] == [True] * 4 + [False] * 2
    assert [layer for layer in range(6) if policy.prunes(3, layer)] == [1, 2, 3, 4]
    with pytest.raises(UsageError, match="one must run in full"):
        fastvar(spec(6, (1, 2, 3, 4)), RATIOS)


def test_code_as_published_and_on_a_small_model() -> None:
    var = spec(30, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    small = var.model_copy(update={"name": "d16", "n_layers": 16, "fingerprint": "1" * 64})
    policy = code(var, small)
    policy.check(var)
    assert (policy.refiner.model, policy.refiner.fingerprint, policy.refiner.first_scale) == ("d16", "1" * 64, 8)
    assert policy.model_copy(update={"refiner": None}) == Policy.dense(30, 10)
    assert [code(var, small, n).refiner.first_scale for n in (6, 7, 9)] == [6, 7, 9]
    assert summarize(code(var, small, 6)) == "refiner d16 from scale 6"
    of = SMALL.model_copy(update={"fingerprint": "1" * 64})
    assert code(SMALL, of).refiner.first_scale == 5
    assert code(spec(2, (1, 2)), spec(1, (1, 2)).model_copy(update={"fingerprint": "1" * 64})).refiner.first_scale == 1


def test_code_refuses_what_cannot_be_divided() -> None:
    small = SMALL.model_copy(update={"fingerprint": "1" * 64})
    for first_scale in (0, 6):
        with pytest.raises(UsageError, match=f"cannot start at scale {first_scale}"):
            code(SMALL, small, first_scale)
    with pytest.raises(UsageError, match="cannot start"):
        code(spec(1, (4,)), spec(1, (4,)))
    with pytest.raises(UsageError, match="has other scales"):
        code(SMALL, spec(2, (1, 2)))


def test_skipvar_offers_the_published_ways() -> None:
    policy = skipvar(INFINITY, untrained(INFINITY))
    policy.check(INFINITY)
    (decision,) = policy.decisions
    assert decision.after == 9, "the tenth of 13 scales"
    paths = policy.paths()
    assert paths[0] == Policy.dense(32, 13)
    assert [[s.guidance for s in path.scales].count("off") for path in paths] == [0, 1, 2, 3, 0, 0, 0]
    assert [[s.run for s in path.scales].count(False) for path in paths] == [0, 0, 0, 0, 1, 2, 3]
    with pytest.raises(UsageError, match="asks before the last 3"):
        untrained(spec(2, (1, 2, 3, 4)))


def test_toprovar_prunes_layers_of_details_most() -> None:
    ratios = (50.0, 20.0, 10.0, 2.0, 12.0, 90.0)
    policy = toprovar(SMALL, calibration((ratios,) * 6))
    policy.check(SMALL)
    assert [d.after for d in policy.decisions] == [3, 4]
    assert [(a.weights, a.bias) for a in policy.decisions[0].actions] == [((0.0,), 0.0), ((1.0,), -0.4)]
    last = policy.decisions[0].actions[1].scales[-1].tokens
    assert last is not None and last.score == "entropy"
    assert sorted(range(6), key=lambda layer: last.layer_keep[layer]) == sorted(
        range(6), key=lambda layer: ratios[layer]
    )
    # alpha_min alone in layers that see the whole; half of the way to alpha_max, by rank, in those of details.
    assert 0.85 < last.layer_keep[5] < 0.9 and last.keep == last.layer_keep[3] > 0.45
    earlier = policy.decisions[0].actions[1].scales[0].tokens
    assert earlier is not None and earlier.keep > last.keep


def test_toprovars_constants() -> None:
    assert layer_scores((1.0, 2.0, 3.0), beta=1.0) == pytest.approx([1, 0.3679, 0.1353], abs=1e-4)
    assert layer_scores((1.5, 4.0, 9.0), beta=None)[1] == pytest.approx(0.5)
    flat = calibration(((1.0,) * 6,) * 6)
    nothing = toprovar(SMALL, flat, alpha_min=0.0, alpha_max=0.0)
    assert all(path == Policy.dense(6, 6) for path in nothing.paths())
    even = toprovar(SMALL, flat, alpha_min=0.5, alpha_max=0.5).decisions[1].actions[1].scales[0].tokens
    assert even is not None and (even.keep, even.layer_keep) == (0.5, ())
    with pytest.raises(UsageError, match="has 2"):
        toprovar(spec(2, (1, 2)), flat)
