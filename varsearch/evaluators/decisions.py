"""What decisions per image are trained with, and how many images take which action.

Shape suffixes: N images, A actions, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from varsearch.accel import Accelerated, apply, labels_for
from varsearch.accel.decision import Asked
from varsearch.errors import UsageError
from varsearch.evaluators.workload import device_of
from varsearch.models.image_model import ImageModel
from varsearch.models.seams import Decide, Fork, LayerState, ScalePlan
from varsearch.policy import GRID, Decision, Policy, largest_remainder
from varsearch.space.presets.skipvar import skipvar, untrained

BATCH = 50
"""Images at a time."""

THRESHOLDS = (0.84, 0.86, 0.88)
"""Structural similarities that SkipVAR was published for."""


@dataclass(slots=True)
class Heard:
    """Passes a decision on, and keeps the features of all images asked and the number that took each action."""

    asked: Asked
    features: list[Tensor] = field(default_factory=list)
    counts: list[list[int]] = field(default_factory=list)

    def __call__(
        self, before_NCHW: Tensor, after_NCHW: Tensor, states: list[LayerState], decode: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        """See `seams.Decide`."""
        self.features.append(self.asked.features(before_NCHW, after_NCHW, states, decode).cpu())
        images = self.asked(before_NCHW, after_NCHW, states, decode)
        self.counts.append([len(images_M) for images_M in images])
        return images


def listening(applied: Accelerated) -> tuple[Accelerated, list[Heard]]:
    """The same, with an ear at each of its decisions, in their order."""
    heard: list[Heard] = []
    scales: tuple[ScalePlan, ...] = ()
    for scale in reversed(applied.plan.scales):
        fork = scale.fork
        if fork is not None:
            heard.insert(0, Heard(_asked(fork.decide)))
            fork = Fork(heard[0], (scales, *fork.tails[1:]))
        scales = (replace(scale, fork=fork), *scales)
    return replace(applied, plan=replace(applied.plan, scales=scales)), heard


def _asked(decide: Decide) -> Asked:
    assert isinstance(decide, Asked), "lowered plans ask by `Asked`"
    return decide


def with_shares(policy: Policy, heard: list[Heard]) -> Policy:
    """`policy` with the shares of images that took each action; a decision that no image came to stays as it is."""
    decisions = []
    for decision, ear in zip(policy.decisions, heard, strict=True):
        counts = [sum(column) for column in zip(*ear.counts, strict=True)]
        decisions.append(_with_shares(decision, counts) if any(counts) else decision)
    return policy.model_copy(update={"decisions": tuple(decisions)})


def _with_shares(decision: Decision, counts: list[int]) -> Decision:
    steps = largest_remainder(counts, GRID)
    actions = (a.model_copy(update={"share": n / GRID}) for a, n in zip(decision.actions, steps, strict=True))
    return decision.model_copy(update={"actions": tuple(actions)})


def measure_shares(model: ImageModel, policy: Policy, images: int = 200, seed: int = 0) -> Policy:
    """`policy` with the shares that it has among so many images, of every class in turn."""
    with apply(model, policy) as applied:
        ears, heard = listening(applied)
        for _ in _drawn(ears, images, seed):
            pass
    return with_shares(policy, heard)


def similarity(model: ImageModel, policy: Policy, images: int = 200, seed: int = 0) -> Tensor:
    """Structural similarity of each image under `policy` with the one that the dense model draws, (N)."""
    with apply(model, policy) as applied:
        changed = torch.cat(list(_drawn(applied, images, seed)))
    return _ssim(changed, torch.cat(list(_drawn(Accelerated(model, model.dense_plan()), images, seed))))


def fit_skipvar(
    model: ImageModel, thresholds: Sequence[float] = THRESHOLDS, images: int = 100, seed: int = 0
) -> dict[float, Decision]:
    """SkipVAR's decision (arXiv 2506.08908) for each threshold, trained on images of `model`, of every class in turn.

    The label of an image is the strongest action whose structural similarity with the full image reaches the threshold.
    The published fit used 3,000 images. Empty if the model has too few scales.
    """
    try:
        decision = untrained(model.spec)
    except UsageError:
        return {}
    policy = skipvar(model.spec, decision)
    with apply(model, policy) as applied:
        ears, (ear,) = listening(applied)
        full = torch.cat(list(_drawn(ears, images, seed)))
    similar = [torch.ones(images)]
    for action in decision.actions[1:]:
        with apply(model, policy.path(decision, action)) as applied:
            similar.append(_ssim(torch.cat(list(_drawn(applied, images, seed))), full))
    features_NF, similar_NA = torch.cat(ear.features), torch.stack(similar, dim=1)
    return {threshold: _trained(decision, features_NF, similar_NA >= threshold) for threshold in thresholds}


def _trained(decision: Decision, features_NF: Tensor, reached_NA: Tensor) -> Decision:
    strength_A = torch.arange(len(decision.actions))
    label_N = (reached_NA * strength_A).amax(1)
    weights_AF, bias_A, chosen_N = fit_linear(features_NF, label_N, len(decision.actions))
    actions = (
        action.model_copy(update={"weights": tuple(w.tolist()), "bias": b.item()})
        for action, w, b in zip(decision.actions, weights_AF, bias_A, strict=True)
    )
    trained = decision.model_copy(update={"actions": tuple(actions)})
    return _with_shares(trained, chosen_N.bincount(minlength=len(strength_A)).tolist())


def fit_linear(features_NF: Tensor, label_N: Tensor, actions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Multinomial logistic regression: weights (A, F), biases (A) and the actions that they choose (N).

    Features are standardised for the fit and the result is not, so it applies to the features as they are. Weights have
    the usual penalty of half their squares; biases a thousandth of it, so that an action that no label names has one.
    """
    features_NF = features_NF.double()
    mean_F, deviation_F = features_NF.mean(0), features_NF.std(0).clamp_min(1e-9)
    standard_NF = (features_NF - mean_F) / deviation_F
    weights_AF = torch.zeros(actions, features_NF.shape[1], dtype=torch.float64, requires_grad=True)
    bias_A = torch.zeros(actions, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_AF, bias_A], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        fit = F.cross_entropy(standard_NF @ weights_AF.T + bias_A, label_N, reduction="sum")
        total = fit + 0.5 * weights_AF.square().sum() + 5e-4 * bias_A.square().sum()
        total.backward()
        return total.item()

    optimizer.step(loss)
    raw_AF = weights_AF.detach() / deviation_F
    raw_A = bias_A.detach() - raw_AF @ mean_F
    raw_AF, raw_A = raw_AF.round(decimals=4), raw_A.round(decimals=4)
    return raw_AF, raw_A, (features_NF @ raw_AF.T + raw_A).argmax(1)


def _drawn(applied: Accelerated, images: int, seed: int) -> Iterator[Tensor]:
    labels_N = labels_for(images, applied.model.spec.classes, device_of(applied.model))
    for first in range(0, images, BATCH):
        yield applied.images(labels_N[first : first + BATCH], seed, first).cpu()


def _ssim(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
    """Structural similarity of each pair of images in [0, 1], (N)."""
    found = structural_similarity_index_measure(a_NCHW, b_NCHW, reduction="none", data_range=1.0)
    assert isinstance(found, Tensor)
    return found
