"""What decisions per image are trained with, and how many images take which action.

Shape suffixes: N images, A actions, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from varsearch.accel import Accelerated, apply
from varsearch.accel.decision import Asked
from varsearch.errors import UsageError
from varsearch.evaluators.batches import Batches
from varsearch.evaluators.draws import Drawing
from varsearch.evaluators.extractors import check_finite
from varsearch.evaluators.workload import device_of
from varsearch.models.image_model import ImageModel
from varsearch.models.noise import usual_noise
from varsearch.models.seams import Decide, Fork, LayerState, ScalePlan
from varsearch.policy import GRID, Decision, Policy, largest_remainder
from varsearch.space.presets.skipvar import skipvar, untrained
from varsearch.target import Noise

BATCH = 50
"""Images at a time where there is room for them."""

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
    drawing = Drawing(seed, usual_noise(device_of(model)), Batches(model, BATCH).of(policy))
    with apply(model, policy) as applied:
        ears, heard = listening(applied)
        for _ in drawing.images(ears, images):
            pass
    return with_shares(policy, heard)


def similarity(model: ImageModel, policy: Policy, images: int = 200, seed: int = 0) -> Tensor:
    """Structural similarity of each image under `policy` with the one that the dense model draws, (N)."""
    drawing = Drawing(seed, usual_noise(device_of(model)), Batches(model, BATCH).of(policy))
    dense = Accelerated(model, model.dense_plan())
    with apply(model, policy) as applied:
        pairs = zip(drawing.images(applied, images), drawing.images(dense, images), strict=True)
        return torch.cat([_ssim(changed, full).cpu() for changed, full in pairs])


class SkipVARFit:
    """SkipVAR's decision (arXiv 2506.08908), trained on images of a model, of every class in turn.

    The label of an image is the strongest action whose structural similarity with the full image reaches a threshold.
    The published fit used 3,000 images. Of a model with too few scales there is nothing to draw and no decision.

    Args:
        model: what is trained for.
        images: how many to train on.
        seed: of the images.
        noise: what images are drawn with.
    """

    def __init__(self, model: ImageModel, images: int = 100, seed: int = 0, noise: Noise = "mt19937") -> None:
        self.model, self.seed, self.noise, self._n = model, seed, noise, images
        self._features: list[Tensor] = []
        self._similar: list[Tensor] = []
        try:
            self._decision: Decision | None = untrained(model.spec)
        except UsageError:
            self._decision = None

    @property
    def images(self) -> int:
        """Images to draw in all, those under each action included."""
        return 0 if self._decision is None else self._n * len(self._decision.actions)

    @property
    def drawn(self) -> int:
        """Images drawn."""
        return sum(part.numel() for part in self._similar)

    def steps(self) -> Iterator[None]:
        """Draws what is missing, batch by batch."""
        if self._decision is None or self.drawn == self.images:
            return
        decision, policy = self._decision, skipvar(self.model.spec, self._decision)
        at_once = Batches(self.model, BATCH).of(policy)
        with ExitStack() as stack:
            ears, (ear,) = listening(stack.enter_context(apply(self.model, policy)))
            others = [
                stack.enter_context(apply(self.model, policy.path(decision, action))) for action in decision.actions[1:]
            ]
            while (first := sum(map(len, self._similar))) < self._n:
                n, drawing = min(at_once, self._n - first), Drawing(self.seed, self.noise, at_once)
                (full,) = drawing.images(ears, n, first)
                check_finite(full, "images")
                similar = [torch.ones(n)]
                for other in others:
                    (changed,) = drawing.images(other, n, first)
                    similar.append(_ssim(changed, full).cpu())
                self._features.append(ear.features.pop())
                self._similar.append(torch.stack(similar, dim=1))
                yield

    def result(self, thresholds: Sequence[float] = THRESHOLDS) -> dict[float, Decision]:
        """The decision for each threshold, once all images are drawn; empty if the model has too few scales."""
        if self._decision is None:
            return {}
        features_NF, similar_NA = torch.cat(self._features), torch.cat(self._similar)
        return {threshold: _trained(self._decision, features_NF, similar_NA >= threshold) for threshold in thresholds}

    def state(self) -> dict[str, list[Tensor]]:
        """What was drawn, as tensors."""
        return {"features": self._features, "similar": self._similar}

    def restore(self, state: dict[str, list[Tensor]]) -> None:
        """Goes on from `state`."""
        self._features, self._similar = ([t.cpu() for t in state[name]] for name in ("features", "similar"))


def fit_skipvar(
    model: ImageModel, thresholds: Sequence[float] = THRESHOLDS, images: int = 100, seed: int = 0
) -> dict[float, Decision]:
    """All of `SkipVARFit` at once, with the usual noise of the model's device."""
    fit = SkipVARFit(model, images, seed, usual_noise(device_of(model)))
    for _ in fit.steps():
        pass
    return fit.result(thresholds)


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


def _ssim(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
    """Structural similarity of each pair of images in [0, 1], (N)."""
    found = structural_similarity_index_measure(a_NCHW.float(), b_NCHW.float(), reduction="none", data_range=1.0)
    assert isinstance(found, Tensor)
    return found
