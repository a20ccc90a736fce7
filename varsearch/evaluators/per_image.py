"""Metrics that are means over images, with their intervals.

Shape suffixes: N images, D features, A labels of the classifier.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varsearch.accel import Accelerated
from varsearch.errors import EvaluationError
from varsearch.measurement import Measurement

Z_95 = 1.959963984540054
"""Half width of a 95 % interval in standard errors."""


def measured(
    metric: str, value: float, n: int, interval: tuple[float, float] | None = None, note: str = ""
) -> Measurement:
    """A measurement; `EvaluationError` instead of a value or bound that is NaN or infinite."""
    low, high = interval or (None, None)
    if not all(math.isfinite(number) for number in (value, *(interval or ()))):
        raise EvaluationError(f"{metric} is {value} with interval {interval}: expected finite numbers")
    return Measurement(metric=metric, value=value, low=low, high=high, n=n, note=note)


def mean(metric: str, values_N: Tensor) -> Measurement:
    """Mean of one value per image, plus and minus 1.96 standard errors."""
    values_N = values_N.double()
    value, error = values_N.mean().item(), values_N.std().item() / math.sqrt(len(values_N))
    return measured(metric, value, len(values_N), (value - Z_95 * error, value + Z_95 * error))


def share(metric: str, hits_N: Tensor) -> Measurement:
    """Share of images for which `hits_N` (bool) holds, with its Wilson score interval (Wilson 1927).

    Unlike 1.96 standard errors it stays within 0 and 1, and does not shrink to nothing at either end.
    """
    n, value = len(hits_N), hits_N.double().mean().item()
    z2 = Z_95**2
    centre = (value + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(value * (1 - value) / n + z2 / (4 * n * n))
    return measured(metric, value, n, (max(0.0, centre - half), min(1.0, centre + half)))


def feature_distance(features_ND: Tensor, dense_ND: Tensor) -> Measurement:
    """Squared change of a feature, mean over features and images; both drew their images from the same noise."""
    return mean("feature_distance", (features_ND.double() - dense_ND.double()).square().mean(1))


def label_agreement(logits_NA: Tensor, labels_N: Tensor) -> Measurement:
    """Share of images whose most probable label is the requested one."""
    return share("label_agreement", logits_NA.argmax(1) == labels_N)


def likelihoods(accelerated: Accelerated, tokens: list[Tensor], labels_N: Tensor, batch: int) -> Tensor:
    """Negative log-likelihood per image in nats per token, (N,) float64 on the CPU; arguments are those of `nll`."""
    starts = range(0, len(labels_N), batch)
    parts = [accelerated.likelihood(labels_N[i : i + batch], [t[i : i + batch] for t in tokens]) for i in starts]
    return torch.cat(parts).cpu()


def nll(accelerated: Accelerated, tokens: list[Tensor], labels_N: Tensor, batch: int) -> Measurement:
    """Teacher-forced negative log-likelihood of held-out images, nats per token.

    Args:
        accelerated: a model with a policy that runs every scale; a skipped scale has no likelihood.
        tokens: per scale (N, tokens) int64, on the model's device.
        labels_N: class of each image, on the model's device.
        batch: most images per forward pass.
    """
    return mean("nll", likelihoods(accelerated, tokens, labels_N, batch))
