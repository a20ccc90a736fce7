"""A transformer and its tokenizer as one generator of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from varsearch.models.sampling import Sampler, TeacherForcing, generate
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
class ImageModel:
    """A class-conditional visual autoregressive model, ready to generate."""

    spec: ModelSpec
    transformer: VAR
    tokenizer: VQVAE
    sampling: SamplingDefaults

    def dense_plan(self) -> Plan:
        """The plan that changes nothing."""
        return Plan.dense(self.spec.n_layers, self.spec.tokens)

    def generate(
        self, labels_N: Tensor, sampler: Sampler, plan: Plan | None = None, guidance: float | None = None
    ) -> Tensor:
        """Images (N, channels, height, width) in [0, 1]; `plan` and `guidance` default to the model's own."""
        f_hat_NCHW = generate(
            self.transformer,
            self.tokenizer,
            labels_N,
            plan=plan or self.dense_plan(),
            guidance=self.sampling.guidance if guidance is None else guidance,
            sampler=sampler,
        )
        with torch.inference_mode():
            return self.tokenizer.decode(f_hat_NCHW).add(1).div(2)

    def likelihood(self, labels_N: Tensor, tokens: list[Tensor], plan: Plan | None = None) -> Tensor:
        """Teacher-forced negative log-likelihood per image, in nats per token, (N,) float64.

        Runs the conditional rows alone, so settings of guidance have no influence. Tokens of skipped scales
        are neither predicted nor counted.
        """
        teacher = TeacherForcing(tokens)
        generate(
            self.transformer,
            self.tokenizer,
            labels_N,
            plan=plan or self.dense_plan(),
            guidance=None,
            sampler=teacher,
        )
        return teacher.nll_N / teacher.tokens_N
