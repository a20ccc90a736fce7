"""Images part where they decide, go on as if alone, and come back in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.accel.oracle import decided
from tests.accel.techniques import DENSE, FULL, LOW_ENTROPY, PRUNED, SKIP, TECHNIQUES, UNGUIDED, asking, leave, stay
from tests.accel.test_against_oracle import inputs
from tests.exact import exact, same_images
from varsearch.accel import apply, labels_for
from varsearch.accel.decision import edges, high_frequency, outside
from varsearch.evaluators.decisions import listening, with_shares
from varsearch.models.image_model import ImageModel
from varsearch.models.sampling import PairedSampler, PublishedSampler
from varsearch.models.seams import Fork, LayerState, Plan, ScalePlan
from varsearch.policy import Action, Decision, Policy, largest_remainder

MODEL = exact()
N = 6
LABELS = labels_for(N, 10)
TAILS = ((FULL, FULL), (FULL, UNGUIDED), (PRUNED, FULL), (FULL, SKIP), (SKIP, SKIP))


def forced(policy: Policy, tails: tuple[tuple, ...], chosen: list[int]) -> tuple[Policy, Plan]:
    """`policy` with a decision after scale 2 in which image i takes action `chosen[i]`, and its plan."""
    actions = (stay(0, share=1), *(leave(0, scales=tail, share=0) for tail in tails[1:]))
    asked = Policy(layers=policy.layers, scales=(*policy.scales[:3], *tails[0]),
                   decisions=(Decision(after=2, feature="low_entropy", actions=actions),))  # fmt: skip

    def decide(
        before: Tensor, after: Tensor, states: list[LayerState], decode: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        return tuple(torch.tensor([i for i, c in enumerate(chosen) if c == a]).long() for a in range(len(tails)))

    with apply(MODEL, asked) as applied:
        plan = applied.plan
    return asked, replace(plan, scales=tuple(at(scale, decide) for scale in plan.scales))


def at(scale: ScalePlan, decide: Callable[..., tuple[Tensor, ...]]) -> ScalePlan:
    return replace(scale, fork=scale.fork and Fork(decide, scale.fork.tails))


@pytest.mark.numerics
@settings(max_examples=25)
@given(
    st.sampled_from(["dense", "kv-ragged", "kv4-ragged", "kv-none", "window-ragged", "shared-first"]),
    st.lists(st.integers(0, len(TAILS) - 1), min_size=4, max_size=4),
)
def test_each_image_is_the_one_of_its_scales_alone(name: str, chosen: list[int]) -> None:
    policy, plan = forced(TECHNIQUES[name], TAILS, chosen)
    found = MODEL.generate(LABELS[:4], PairedSampler(3, range(4)), plan)
    for i, action in enumerate(chosen):
        with apply(MODEL, policy.path(policy.decisions[0], policy.decisions[0].actions[action])) as applied:
            alone = applied.images(LABELS[i : i + 1], seed=3, first=i)
        same_images(found[i : i + 1], alone)


@pytest.mark.numerics
@settings(max_examples=10)
@given(st.lists(st.integers(0, 2), min_size=N, max_size=N))
def test_parting_without_a_difference_is_neutral(chosen: list[int]) -> None:
    _, plan = forced(DENSE, ((FULL, FULL),) * 3, chosen)
    dense = MODEL.generate(LABELS, PairedSampler(5, range(N)))
    same_images(MODEL.generate(LABELS, PairedSampler(5, range(N)), plan), dense)


@pytest.mark.numerics
@pytest.mark.parametrize("name", ["decide-skip", "decide-prune"])
def test_a_batch_of_many_is_many_batches_of_one(name: str) -> None:
    labels = labels_for(12, 10)
    with apply(MODEL, TECHNIQUES[name]) as applied:
        ears, heard = listening(applied)
        together = ears.images(labels, seed=2)
        alone = torch.cat([applied.images(labels[i : i + 1], seed=2, first=i) for i in range(12)])
    same_images(together, alone)
    # The images did part, and those that left were not asked again.
    assert sum(n > 0 for n in heard[0].counts[0]) > 1
    assert all(sum(later.counts[0]) == earlier.counts[0][0] for earlier, later in pairwise(heard))


@pytest.mark.parametrize("name", ["decide-skip", "decide-prune"])
def test_features_and_answers_are_those_of_the_oracle(name: str) -> None:
    model, policy = MODEL, TECHNIQUES[name]
    labels, tokens = inputs(model, 8, seed=4)
    answers = [decided(model, policy, labels[i : i + 1], [t[i : i + 1] for t in tokens], 1.5)[1] for i in range(8)]
    assert len({tuple(a) for a in answers}) > 1
    with apply(model, policy) as applied:
        ears, heard = listening(applied)
        model.generate(labels, Follow(tokens), ears.plan, 1.5)
    for d, ear in enumerate(heard):
        taken = [a[d] for a in answers if len(a) > d]
        assert ear.counts == [[taken.count(a) for a in range(len(policy.decisions[d].actions))]]


class Follow:
    def __init__(self, tokens: list[Tensor]) -> None:
        self.tokens = tokens

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        return codebook_VC[self.tokens[scale]]

    def take(self, images_M: Tensor) -> Follow:
        return Follow([t[images_M] for t in self.tokens])


@pytest.mark.numerics
def test_the_likelihood_counts_the_tokens_that_each_image_predicts() -> None:
    tokens = [torch.randint(32, (N, n), generator=torch.Generator().manual_seed(1)) for n in MODEL.spec.tokens]
    chosen = [0, 3, 1, 4, 3, 2]
    policy, plan = forced(DENSE, TAILS, chosen)
    found = MODEL.likelihood(LABELS, tokens, plan)
    for i, action in enumerate(chosen):
        with apply(MODEL, policy.path(policy.decisions[0], policy.decisions[0].actions[action])) as applied:
            alone = applied.likelihood(LABELS[i : i + 1], [t[i : i + 1] for t in tokens])
        torch.testing.assert_close(found[i : i + 1], alone, atol=1e-12, rtol=0)


def test_the_published_sampler_serves_all_groups() -> None:
    _, plan = forced(DENSE, TAILS, [4, 0, 1, 3, 2, 0])
    sampler = PublishedSampler(torch.Generator().manual_seed(0), top_k=5, top_p=0.9)
    assert MODEL.generate(LABELS, sampler, plan).isfinite().all()


def test_images_part_at_the_first_decision_that_they_leave_by() -> None:
    early, late = (
        Decision(after=k, feature="low_entropy", actions=(stay(0), leave(0, bias=bias, scales=(SKIP,) * (4 - k))))
        for k, bias in ((1, -1.0), (3, 1.0))
    )
    with apply(MODEL, asking(DENSE.scales, early, late)) as applied:
        ears, heard = listening(applied)
        ears.images(LABELS, seed=0)
    assert [ear.counts for ear in heard] == [[[N, 0]], [[0, N]]]
    assert [d.actions[0].share for d in with_shares(asking(DENSE.scales, early, late), heard).decisions] == [1, 0]


def test_entropy_is_noted_only_where_it_is_used() -> None:
    with apply(MODEL, TECHNIQUES["prune-entropy"]) as applied:
        noted = [[layer.observe is not None for layer in scale.layers] for scale in applied.plan.scales]
    assert noted == [[False] * 3, [False] * 3, [False, True, True], [True, False, False], [False] * 3]
    with apply(MODEL, asking(DENSE.scales, LOW_ENTROPY[1])) as applied:
        assert [all(layer.observe for layer in scale.layers) for scale in applied.plan.scales] == [
            False, False, False, True, False,
        ]  # fmt: skip
    # Nobody is asked for entropies, but those who leave will prune by them.
    unasked = Decision(after=2, feature="high_frequency", actions=(stay(0, 0), leave(0, 0, scales=(PRUNED, FULL))))
    with apply(MODEL, asking(DENSE.scales, unasked)) as applied:
        assert [all(layer.observe for layer in scale.layers) for scale in applied.plan.scales[:4]] == [
            False, False, True, False,
        ]  # fmt: skip


def test_high_frequencies() -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.linspace(-1, 1, 16).expand(1, 16, 16)
    noise = torch.rand(1, 16, 16, generator=generator) * 2 - 1
    assert high_frequency(noise, noise)[0, 0] == 0
    assert high_frequency(smooth, noise)[0, 1] > 0.5 > high_frequency(noise, smooth)[0, 1] > 0
    # The gradient of a ramp is 8 times its step, away from the border.
    torch.testing.assert_close(edges(smooth)[0, 5, 5], torch.tensor(8 * 2 / 15))
    assert outside(16, 16).sum() == 256 - 29  # 29 points of the grid lie within 3 of the origin


@given(st.lists(st.integers(0, 80), min_size=1, max_size=9).filter(any), st.integers(0, 300))
def test_largest_remainder_is_within_one_of_the_quota(shares: list[int], total: int) -> None:
    found = largest_remainder(shares, total)
    assert sum(found) == total
    assert all(abs(n - share * total / sum(shares)) < 1 for n, share in zip(found, shares, strict=True))


def test_an_action_says_what_the_images_do(tiny: ImageModel) -> None:
    """Everyone skips: the images are those of the skipped scales, and nothing of the last scale is computed."""
    everyone = Decision(after=3, feature="high_frequency", actions=(
        Action(weights=(0, 0), share=0), Action(weights=(0, 0), bias=1, share=1, scales=(SKIP,)),
    ))  # fmt: skip
    with apply(tiny, asking(DENSE.scales, everyone)) as applied:
        found = applied.images(LABELS, seed=1)
    with apply(tiny, TECHNIQUES["skip-last"]) as applied:
        assert torch.equal(found, applied.images(LABELS, seed=1))
