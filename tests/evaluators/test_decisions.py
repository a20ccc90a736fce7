"""Training of SkipVAR's decision, and the shares of actions that costs are predicted with."""

from __future__ import annotations

import pytest
import torch

from tests.accel.techniques import DENSE, TECHNIQUES, asking
from tests.conftest import build_tiny
from varsearch.accel import apply
from varsearch.evaluators.decisions import fit_linear, fit_skipvar, measure_shares
from varsearch.evaluators.trace import trace
from varsearch.policy import Decision, Policy
from varsearch.space.presets.skipvar import skipvar
from varsearch.target import Target

MODEL = build_tiny()


def chosen(decision: Decision) -> list[float]:
    return [action.share for action in decision.actions]


@pytest.mark.parametrize(("threshold", "action"), [(1.01, 0), (-1.0, 6)])
def test_the_label_is_the_strongest_action_that_is_similar_enough(threshold: float, action: int) -> None:
    decision = fit_skipvar(MODEL, [threshold], images=8)[threshold]
    assert chosen(decision) == [float(a == action) for a in range(7)]


def test_training_is_seeded_and_its_result_is_a_policy() -> None:
    first, second, other = (fit_skipvar(MODEL, [0.6], images=20, seed=seed)[0.6] for seed in (0, 0, 1))
    assert first == second != other
    policy = skipvar(MODEL.spec, first)
    assert Policy.parse(policy.canonical()) == policy
    # What training found of its own images is what the policy does to them.
    assert measure_shares(MODEL, policy, images=20, seed=0) == policy
    with apply(MODEL, policy) as applied:
        assert applied.images(torch.arange(4), seed=0).isfinite().all()


def test_a_linear_fit_parts_what_lines_part() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(300, 2, generator=generator) * torch.tensor([100.0, 0.01]) + torch.tensor([1e3, 0.0])
    label = (features[:, 0] > 1050).long() + (features[:, 0] > 1080).long() * 2
    weights, bias, found = fit_linear(features, label, actions=5)
    assert (found == label).double().mean() > 0.95
    assert torch.equal((features.double() @ weights.T + bias).argmax(1), found)
    assert not found.bincount(minlength=5)[[2, 4]].any(), "no label names these"


def test_shares_are_counted_over_batches() -> None:
    policy = measure_shares(MODEL, TECHNIQUES["decide-skip"], images=60)
    shares = chosen(policy.decisions[0])
    assert sum(shares) == pytest.approx(1) and 0 < shares[0] < 1
    assert policy.scales == DENSE.scales and policy.decisions[0].after == 2


def test_a_decision_that_no_image_comes_to_keeps_its_shares() -> None:
    everyone, nobody = TECHNIQUES["decide-prune"].decisions
    actions = (everyone.actions[0], everyone.actions[1].model_copy(update={"bias": 9.0}))
    found = measure_shares(
        MODEL, asking(DENSE.scales, everyone.model_copy(update={"actions": actions}), nobody), images=4
    )
    assert [chosen(d) for d in found.decisions] == [[0, 1], chosen(nobody)]


def test_predicted_costs_follow_the_shares() -> None:
    """Products grow with their rows, so the FLOPs are linear in the shares."""
    target = Target(device="4090", dtype="float16", batch_size=80)
    (decision,) = TECHNIQUES["decide-skip"].decisions

    def flops(*shares: float) -> int:
        actions = (a.model_copy(update={"share": s}) for a, s in zip(decision.actions, shares, strict=True))
        asked = decision.model_copy(update={"actions": tuple(actions)})
        return trace(MODEL, asking(DENSE.scales, asked), target).flops

    stay, unguided, skip = (flops(*(float(a == b) for b in range(3))) for a in range(3))
    assert stay > unguided > skip
    assert flops(0.5, 0.25, 0.25) == (2 * stay + unguided + skip) // 4
