"""What the benchmark of published systems relies on: a claim per preset, and a calibration that all presets accept."""

from __future__ import annotations

import pytest

from benchmarks.assumed import assumed
from benchmarks.model import large_model
from benchmarks.techniques import CLAIMS, TARGET
from varsearch.evaluators.trace import trace
from varsearch.policy import Policy
from varsearch.space.presets import PRESETS, presets


def test_every_preset_has_a_claim_and_no_claim_is_left_over() -> None:
    assert list(CLAIMS) == list(PRESETS)


def test_the_assumed_calibration_gives_every_preset_a_policy_of_its_own() -> None:
    model = large_model()
    spec = model.spec
    found, missing = presets(spec, assumed(spec), [model.sibling("half").spec])
    assert not missing
    for policy in found.values():
        policy.check(spec)


@pytest.mark.slow
def test_the_assumed_decay_makes_litevar_save_what_its_paper_reports() -> None:
    model = large_model()
    spec = model.spec
    dense = Policy.dense(spec.n_layers, len(spec.scales))
    cost, full = (trace(model, policy, TARGET) for policy in (PRESETS["litevar"](spec, assumed(spec), ()), dense))
    assert 1 - cost.attention_flops / full.attention_flops == pytest.approx(0.852, abs=0.01)
