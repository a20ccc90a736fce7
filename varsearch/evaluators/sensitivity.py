"""Measures how much worse a policy is than dense, with few images and standard errors.

Shape suffixes: N images, D features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from varsearch.accel import apply
from varsearch.evaluators.batches import Batches, reading
from varsearch.evaluators.draws import Drawing
from varsearch.evaluators.extractors import Extractor
from varsearch.evaluators.per_image import likelihoods
from varsearch.evaluators.workload import device_of
from varsearch.models.image_model import ImageModel, SamplingDefaults
from varsearch.policy import Policy
from varsearch.sensitivity_profile import Effect, Estimate, SensitivityProtocol


class SensitivityEvaluator:
    """Draws the protocol's images under a policy and under dense, on the same noise, and reads held-out tokens.

    Args:
        model: sampled with the guidance, top_k and top_p of `protocol`.
        protocol: names the extractor and how many images of each kind.
        extractor: on the model's device.
        held_out: tokens per scale, each (N, tokens) int64, and labels (N,) int64, of at least `protocol.images` images.
    """

    def __init__(
        self,
        model: ImageModel,
        protocol: SensitivityProtocol,
        extractor: Extractor,
        held_out: tuple[Sequence[Tensor], Tensor],
    ) -> None:
        sampling = SamplingDefaults(protocol.guidance, protocol.top_k, protocol.top_p)
        self.model = dataclasses.replace(model, sampling=sampling)
        self.protocol, self.extractor = protocol, extractor
        device, n = device_of(model), protocol.images
        self.batches, self.readings = Batches(self.model, n), Batches(self.model, n, reading)
        self.dense = Policy.dense(model.spec.n_layers, len(model.spec.scales))
        self.tokens, self.held_out_N = [t[:n].to(device) for t in held_out[0]], held_out[1][:n].to(device)

    @cached_property
    def _dense(self) -> tuple[Tensor, Tensor]:
        """Features (N, D) and likelihoods (N,) of the unmodified model."""
        return self._features(self.dense), self._nll(self.dense)

    def effect(self, policy: Policy) -> Effect:
        """What `policy` changes.

        Raises:
            PolicyError: it does not fit the model.
            EvaluationError: images or features are not finite.
        """
        features_ND, nll_N = self._dense
        change_ND = self._features(policy) - features_ND
        return Effect(
            shift=shift(change_ND),
            distance=mean(change_ND.square().mean(1)),
            nll=mean(self._nll(policy) - nll_N) if self._has_nll(policy) else None,
        )

    def _has_nll(self, policy: Policy) -> bool:
        return all(s.run for path in policy.paths() for s in path.scales) and _without_guidance(policy) != self.dense

    def _features(self, policy: Policy) -> Tensor:
        protocol = self.protocol
        drawing = Drawing(protocol.seed, protocol.noise, self.batches.of(policy))
        with apply(self.model, policy) as accelerated:
            parts = drawing.images(accelerated, protocol.images)
            return torch.cat([self.extractor.features(images).cpu() for images in parts]).double()

    def _nll(self, policy: Policy) -> Tensor:
        with apply(self.model, policy) as accelerated:
            return likelihoods(accelerated, self.tokens, self.held_out_N, self.readings.of(policy))


def mean(values_N: Tensor) -> Estimate:
    """Mean and its standard error."""
    return Estimate(value=values_N.mean().item(), error=values_N.std().item() / math.sqrt(len(values_N)))


def shift(change_ND: Tensor) -> Estimate:
    """Squared length of the mean change, without bias: the mean product of the changes of two different images.

    A U-statistic; its variance (Hoeffding 1948) is (4 (n - 2) a + 2 b) / (n (n - 1)) with the variance a of an
    image's mean product with the others, freed of the noise b / (n - 1) in it, and the variance b of the products.
    Where the true shift is 0, so is a.
    """
    n = len(change_ND)
    products_NN = change_ND @ change_ND.mT
    pairs_M = products_NN[~torch.eye(n, dtype=torch.bool)]
    by_image_N = pairs_M.view(n, n - 1).mean(1)
    b = pairs_M.var()
    a = (by_image_N.var() - b / (n - 1)).clamp(min=0)
    variance = (4 * (n - 2) * a + 2 * b) / (n * (n - 1))
    return Estimate(value=pairs_M.mean().item(), error=variance.sqrt().item())


def _without_guidance(policy: Policy) -> Policy:
    full = {"guidance": "full", "shared_attention": (), "shared_ffn": ()}
    return policy.model_copy(update={"scales": tuple(scale.model_copy(update=full) for scale in policy.scales)})
