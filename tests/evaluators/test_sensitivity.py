from __future__ import annotations

import math

import pytest
import torch

from varsearch.accel import apply, labels_for
from varsearch.evaluators.extractors import Extractor
from varsearch.evaluators.sensitivity import SensitivityEvaluator, shift
from varsearch.models.image_model import ImageModel
from varsearch.policy import Policy
from varsearch.sensitivity_profile import SensitivityProtocol
from varsearch.space.settings import Setting, candidates

N = 8


@pytest.fixture(scope="module")
def evaluator(tiny: ImageModel) -> SensitivityEvaluator:
    extractor = Extractor("mean", "0" * 64, 9, None, lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 3).flatten(1))
    protocol = SensitivityProtocol(
        extractor=extractor.identity, images=N, seed=3, guidance=2.0, top_k=0, top_p=0.0, settings=""
    )
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(0, 32, (20, n), generator=generator) for n in tiny.spec.tokens]
    return SensitivityEvaluator(tiny, protocol, extractor, (tokens, labels_for(20, 10)))


def single(evaluator: SensitivityEvaluator, name: str) -> Policy:
    spec = evaluator.model.spec
    (found,) = (s for s in candidates(spec) if s.name == name)
    return found.apply(Policy.dense(spec.n_layers, len(spec.scales)))


def test_dense_loses_nothing(evaluator: SensitivityEvaluator) -> None:
    effect = evaluator.effect(evaluator.dense)
    assert (effect.shift.value, effect.shift.error, effect.distance.value, effect.nll) == (0, 0, 0, None)


@pytest.mark.numerics
def test_an_effect_is_what_the_definitions_say(evaluator: SensitivityEvaluator) -> None:
    policy = single(evaluator, "L1.fc1=3bit")
    features, nll = [], []
    for p in (policy, evaluator.dense):
        with apply(evaluator.model, p) as accelerated:
            images = accelerated.images(torch.arange(N), 3)
            features.append(evaluator.extractor.features(images).double())
            tokens = [t[:N] for t in evaluator.tokens]
            nll.append(accelerated.likelihood(torch.arange(N), tokens))
    change, worse = features[0] - features[1], nll[0] - nll[1]
    effect = evaluator.effect(policy)
    pairs = [change[i] @ change[j] for i in range(N) for j in range(N) if i != j]
    assert effect.shift.value == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-3)
    assert effect.distance.value == pytest.approx(change.square().mean().item(), rel=1e-3)
    assert effect.distance.error == pytest.approx(change.square().mean(1).std().item() / math.sqrt(N), rel=1e-3)
    assert effect.nll is not None and effect.nll.value == pytest.approx(worse.mean().item(), rel=1e-3)
    assert effect.nll.error == pytest.approx(worse.std().item() / math.sqrt(N), rel=1e-3)
    assert effect.distance.value > 0 and effect.nll.value != 0


@pytest.mark.parametrize("name", ["S4.skip=yes", "guidance=off from 3", "L1S4.ffn=shared"])
def test_likelihood_is_none_where_it_says_nothing(evaluator: SensitivityEvaluator, name: str) -> None:
    effect = evaluator.effect(single(evaluator, name))
    assert effect.nll is None and effect.distance.value > 0


def test_guidance_beside_other_settings_has_their_likelihood(evaluator: SensitivityEvaluator) -> None:
    alone = single(evaluator, "L1.fc1=3bit")
    both = Setting("guidance", 3).apply(alone)
    assert evaluator.effect(both).nll == evaluator.effect(alone).nll


@pytest.mark.parametrize("size", [0.0, 0.1, 1.0])
def test_the_shift_is_unbiased_and_its_error_right(size: float) -> None:
    torch.manual_seed(0)
    scale_D, mean_D = torch.arange(1, 17).rsqrt().double(), torch.full((16,), size / 4).double()
    found = [shift(torch.randn(32, 16).double() * scale_D + mean_D) for _ in range(1500)]
    values = torch.tensor([estimate.value for estimate in found])
    errors = torch.tensor([estimate.error for estimate in found])
    spread = values.std().item()
    assert values.mean().item() == pytest.approx(size**2, abs=4 * spread / math.sqrt(len(found)))
    # Without a shift the variance of an image's mean product is 0, and clamping its estimate there makes it larger.
    assert 0.95 < errors.square().mean().sqrt().item() / spread < 1.25
