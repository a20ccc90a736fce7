from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from varsearch.accel import Accelerated, apply
from varsearch.errors import EvaluationError
from varsearch.evaluators.per_image import feature_distance, label_agreement, mean, measured, nll, share
from varsearch.models.image_model import ImageModel
from varsearch.policy import Policy


def test_mean_and_its_interval() -> None:
    found = mean("nll", torch.tensor([1.0, 2.0, 3.0, 6.0]))
    half = 1.959964 * math.sqrt((4 + 1 + 0 + 9) / 3 / 4)
    assert found.value == 3 and found.n == 4
    assert (found.low, found.high) == (pytest.approx(3 - half), pytest.approx(3 + half))


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (20, 20), (7, 20), (507, 512)])
def test_the_interval_of_a_share_is_wilsons(hits: int, n: int) -> None:
    found = share("precision", torch.arange(n) < hits)
    want = binomtest(hits, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == (pytest.approx(want.low, abs=1e-6), pytest.approx(want.high, abs=1e-6))
    assert found.value == hits / n


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(EvaluationError, match=r"kid is .* expected finite numbers"):
        measured("kid", value, 3)
    with pytest.raises(EvaluationError, match="expected finite numbers"):
        measured("kid", 0.0, 3, (0.0, value))


def test_feature_distance_is_the_mean_square() -> None:
    dense = torch.zeros(2, 4)
    found = feature_distance(torch.tensor([[1.0, 1, 1, 1], [3.0, 0, 0, 0]]), dense)
    assert found.value == pytest.approx((1 + 9 / 4) / 2)
    assert feature_distance(dense, dense).high == 0


def test_label_agreement_counts_the_best_label() -> None:
    logits: Tensor = torch.tensor([[1.0, 2], [3.0, 0], [0.0, 1], [9.0, 8]])
    assert label_agreement(logits, torch.tensor([1, 0, 0, 0])).value == 0.75


def test_nll_is_the_mean_over_all_batches(tiny: ImageModel) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(32, (10, n), generator=generator) for n in tiny.spec.tokens]
    labels = torch.arange(10)

    def measure(accelerated: Accelerated) -> tuple[float, int]:
        found = nll(accelerated, tokens, labels, batch=4)
        return found.value, found.n

    with apply(tiny, Policy.dense(3, 5)) as accelerated:
        value, n = measure(accelerated)
    assert n == 10 and value == pytest.approx(tiny.likelihood(labels, tokens).mean().item(), rel=1e-6)
