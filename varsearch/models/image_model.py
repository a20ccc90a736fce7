"""A transformer and its tokenizer as one generator of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from varsearch.errors import ModelError
from varsearch.models.batch import Sampler
from varsearch.models.sampling import TeacherForcing, generate
from varsearch.models.seams import Plan
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE
from varsearch.target import ModelSpec, Strength, TopK, TopP


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """How the model is sampled unless the user says otherwise; 0 switches a filter off."""

    guidance: Strength
    top_k: TopK = 0
    top_p: TopP = 0.0


@dataclass(frozen=True, slots=True)
class Sibling:
    """Another transformer for the tokens of a model."""

    spec: ModelSpec
    transformer: VAR


def no_sibling(name: str) -> Sibling:
    """Raises `ModelError`: where a model comes from no folder, there is nothing beside it."""
    raise ModelError(f"there is no model {name} beside this one")


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A class-conditional visual autoregressive model, ready to generate.

    Args:
        spec: its shape.
        transformer: draws the tokens.
        tokenizer: makes images of them.
        sampling: how it is sampled by default.
        sibling: finds a model by name among those that share the tokenizer; raises `ModelError` if there is none.
        refiner: the one that runs the scales that a plan leaves to a refiner.
    """

    spec: ModelSpec
    transformer: VAR
    tokenizer: VQVAE
    sampling: SamplingDefaults
    sibling: Callable[[str], Sibling] = no_sibling
    refiner: Sibling | None = None

    def dense_plan(self) -> Plan:
        """The plan that changes nothing."""
        return Plan.dense(self.spec.n_layers, self.spec.tokens)

    def generate(
        self, labels_N: Tensor, sampler: Sampler, plan: Plan | None = None, guidance: float | None = None
    ) -> Tensor:
        """Images (N, channels, height, width) in [0, 1]; `plan` and `guidance` default to the model's own."""
        f_hat_NCHW = self._latent(labels_N, sampler, plan, self.sampling.guidance if guidance is None else guidance)
        with torch.inference_mode():
            return self.tokenizer.decode(f_hat_NCHW).add(1).div(2)

    def likelihood(self, labels_N: Tensor, tokens: list[Tensor], plan: Plan | None = None) -> Tensor:
        """Teacher-forced negative log-likelihood per image, in nats per token, (N,) float64.

        Runs the conditional rows alone, so settings of guidance have no influence. Tokens of skipped scales
        are neither predicted nor counted.
        """
        teacher = TeacherForcing(tokens)
        self._latent(labels_N, teacher, plan, guidance=None)
        return teacher.nll_N / teacher.tokens_N

    def _latent(self, labels_N: Tensor, sampler: Sampler, plan: Plan | None, guidance: float | None) -> Tensor:
        return generate(
            self.transformer,
            self.tokenizer,
            labels_N,
            plan=plan or self.dense_plan(),
            guidance=guidance,
            sampler=sampler,
            refiner=None if self.refiner is None else self.refiner.transformer,
        )
