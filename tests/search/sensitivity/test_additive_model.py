from __future__ import annotations

import math
import random

import pytest

from tests.search.profiles import BATCH, SPEC, change, effect, random_loss, synthetic
from varsearch.profile import Cost, Effect, Estimate
from varsearch.search.sensitivity.additive_model import AdditiveModel, LinearFit, posterior_losses
from varsearch.space.probes import Chosen
from varsearch.space.units import settings

BY_NAME = {setting.name: setting for setting in settings(SPEC)}


def chosen(*names: str) -> Chosen:
    return tuple(BY_NAME[name] for name in names)


def test_sums_of_what_adds_up_are_exact() -> None:
    loss = random_loss()
    estimates = AdditiveModel(synthetic(loss))
    some = chosen("L1.fc1=4bit", "L0.qkv=8bit", "L1H0.keep=0.5", "L1H1.keep=0.5", "L0H1.keep=0", "L1S3.tokens=0.25")
    assert dict(estimates.summed(some)) == pytest.approx(dict(change(some)))
    assert estimates.predicted(some).latency_ms == pytest.approx(change(some).latency_ms)
    assert estimates.loss(some) == pytest.approx(sum(map(loss, some)), rel=1e-3)
    assert estimates.summed(()) == BATCH and estimates.loss(()) == 0
    assert [fit.r2 for fit in (estimates.latency, estimates.memory, estimates.quality)] == pytest.approx(
        [1, 1, 1], abs=1e-3
    )
    assert all(abs(found.deviation.value) < 1e-9 for found in estimates.interactions)


def test_whole_policies_correct_the_sum() -> None:
    def whole(some: Chosen) -> Cost:
        return change(some).model_copy(update={"latency_ms": 5 + 1.5 * change(some).latency_ms})

    estimates = AdditiveModel(synthetic(random_loss(), whole))
    assert (estimates.latency.intercept, estimates.latency.slope) == (pytest.approx(5), pytest.approx(1.5))
    some = chosen("L1S3.tokens=0.25")
    assert estimates.predicted(some).latency_ms == pytest.approx(5 + 1.5 * 98)
    assert estimates.predicted(some).peak_bytes == pytest.approx(BATCH.peak_bytes)


def test_settings_that_change_hardly_an_image_do_not_speak_for_their_kind() -> None:
    rng = random.Random(0)
    effects = {f"s{i}": noisy(0.01, rng, 0.005) for i in range(60)}
    nothing = Effect(shift=Estimate(value=0, error=1e-7), distance=Estimate(value=1e-3, error=1e-3), nll=None)
    still = {f"n{i}": nothing for i in range(20)}
    found = posterior_losses(effects | still, dict.fromkeys([*effects, *still], "sharing"))
    assert sorted(found[name].value for name in effects)[30] == pytest.approx(0.01, rel=0.35)


def test_shifts_in_one_direction_add_up_before_they_are_squared() -> None:
    profile = synthetic(random_loss())
    effects = dict(profile.sensitivity.effects)
    for name, policy in AdditiveModel(profile).probes.policies.items():
        effects[name] = effect(3 * sum(map(random_loss(), policy)) ** 2)
    changed = profile.model_copy(update={"sensitivity": profile.sensitivity.model_copy(update={"effects": effects})})
    estimates, some = AdditiveModel(changed), chosen("L1.fc1=4bit", "L0S3.tokens=0.25")
    assert estimates.quality.slope == pytest.approx(2, abs=0.01)
    assert estimates.predicted_loss(some) == pytest.approx(3 * estimates.loss(some) ** 2, rel=0.05)
    assert estimates.predicted_loss(()) == 0


def test_a_fit_says_how_far_it_is_off() -> None:
    fit = LinearFit.of([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 11.0])
    # By hand: slope 16 / 5, intercept 0.2; residuals 0.8, -0.4, -1.6, 1.2; variance of y 56.
    assert (fit.slope, fit.intercept) == (pytest.approx(3.2), pytest.approx(0.2))
    assert fit.r2 == pytest.approx(1 - 4.8 / 56)
    assert fit.median_error == pytest.approx((0.4 / 3 + 1.6 / 5) / 2)
    assert fit(10) == pytest.approx(32.2)


def test_settings_of_layers_save_of_what_the_whole_policy_leaves() -> None:
    estimates = AdditiveModel(synthetic(random_loss()))
    unguided, pruned = chosen("guidance=off from 2"), chosen("L1S3.tokens=0.25")
    assert estimates.summed(unguided + pruned).latency_ms == pytest.approx(0.85 * (100 - 2))
    refined = chosen("guidance=off from 2", "S3.skip=yes")
    assert estimates.summed(refined).latency_ms == pytest.approx(100 * 0.85 * 0.8)


def test_fewer_bits_save_only_on_what_is_kept() -> None:
    estimates = AdditiveModel(synthetic(random_loss()))
    keep, bits = chosen("L0H0.keep=0", "L0H1.keep=0"), chosen("L0.kv_bits=4bit")
    # Half of the layer's 2e5 bytes go by entries, and half by bits: together three quarters.
    assert estimates.summed(keep + bits).kv_bytes == pytest.approx(BATCH.kv_bytes - 1.5e5)
    assert estimates.summed(keep + bits).peak_bytes == pytest.approx(BATCH.peak_bytes - 1.5e5)
    other = chosen("L1.kv_bits=4bit")
    assert estimates.summed(keep + other).kv_bytes == pytest.approx(BATCH.kv_bytes - 2e5)


def test_a_model_without_caches_saves_none() -> None:
    def cost(some: Chosen) -> Cost:
        return change(some).model_copy(update={"kv_bytes": 0.0})

    estimates = AdditiveModel(synthetic(random_loss(), cost=cost))
    assert estimates.summed(chosen("L0H0.keep=0", "L0.kv_bits=4bit")).kv_bytes == 0


def test_activations_peak_once() -> None:
    peaks = {"window": 3e4, "tokens": 2e4, "guidance": -6e4, "skip": -9e4}

    def cost(some: Chosen) -> Cost:
        found = change(some)
        extra = sum(peaks.get(setting.kind, 0.0) for setting in some)
        return found.model_copy(update={"peak_bytes": found.peak_bytes + extra})

    estimates = AdditiveModel(synthetic(random_loss(), cost=cost))

    def peak(*names: str) -> float:
        return estimates.summed(chosen(*names)).peak_bytes - BATCH.peak_bytes

    assert peak("L0S3.window=2", "L1S3.window=2", "L0S3.tokens=0.5") == pytest.approx(3e4)
    assert peak("guidance=off from 2", "S3.skip=yes") == pytest.approx(-9e4)
    assert peak("guidance=off from 2", "L1S3.window=2", "L0.fc1=4bit") == pytest.approx(3e4 - 6e4 - 1e4)


def noisy(loss: float, rng: random.Random, error: float) -> Effect:
    """The shift is noisy, the distance four times as large and precise."""
    shift = Estimate(value=rng.gauss(loss, error), error=error)
    return Effect(shift=shift, distance=Estimate(value=4 * loss, error=loss / 100), nll=None)


def test_a_noisy_shift_takes_its_loss_from_precise_metrics() -> None:
    rng = random.Random(0)
    losses = {f"s{i}": rng.uniform(0.001, 0.02) for i in range(300)}
    found = posterior_losses(
        {name: noisy(loss, rng, 0.05) for name, loss in losses.items()}, dict.fromkeys(losses, "bits")
    )
    errors = [abs(found[name].value - loss) / loss for name, loss in losses.items()]
    assert sorted(errors)[150] < 0.35 and all(estimate.value > 0 for estimate in found.values())


def test_a_clear_shift_overrules_them() -> None:
    rng = random.Random(0)
    effects = {f"s{i}": noisy(0.01, rng, 0.002) for i in range(100)}
    clear = Effect(shift=Estimate(value=0.1, error=0.0001), distance=effects["s0"].distance, nll=None)
    found = posterior_losses({**effects, "clear": clear}, dict.fromkeys([*effects, "clear"], "bits"))
    assert found["clear"].value == pytest.approx(0.1, rel=0.02)
    assert found["clear"].error < found["s0"].error


def test_what_seems_better_than_dense_still_has_a_loss() -> None:
    luck = Estimate(value=-0.01, error=0.01)
    effects = {f"s{i}": effect(0.01 * (i + 1)) for i in range(9)}
    lucky = Effect(shift=luck, distance=Estimate(value=0.01, error=0.001), nll=luck)
    found = posterior_losses({**effects, "lucky": lucky}, dict.fromkeys([*effects, "lucky"], "bits"))
    assert 0 < found["lucky"].value < 0.01


def test_a_kind_whose_changes_matter_more_has_a_factor() -> None:
    rng = random.Random(0)
    effects = {f"s{i}": noisy(0.01, rng, 0.01) for i in range(400)}
    clear = Estimate(value=0.1, error=0.02)
    skips = {f"k{i}": Effect(shift=clear, distance=effects["s0"].distance, nll=None) for i in range(5)}
    kinds = dict.fromkeys(effects, "sharing") | dict.fromkeys(skips, "skip")
    found = posterior_losses(effects | skips, kinds)
    assert all(0.05 < found[name].value < 0.11 for name in skips)
    assert all(found[name].value < 0.03 for name in effects)


def test_interaction_is_the_deviation_from_the_sum() -> None:
    profile = synthetic(random_loss())
    effects = dict(profile.sensitivity.effects)
    estimates = AdditiveModel(profile)
    for pair in estimates.probes.pairs:
        whole = effects[pair]
        double = {
            name: None if e is None else Estimate(value=2 * e.value, error=e.error) for name, e in dict(whole).items()
        }
        effects[pair] = Effect(**double)
    changed = profile.model_copy(update={"sensitivity": profile.sensitivity.model_copy(update={"effects": effects})})
    for found in AdditiveModel(changed).interactions:
        assert found.deviation.value == pytest.approx(1.0, abs=1e-6)
        has_nll = effects[found.pair].nll is not None
        assert found.metric == ("nll" if has_nll else "distance")
        assert 0 < found.deviation.error < 0.01 and not math.isnan(found.deviation.error)
