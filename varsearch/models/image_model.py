"""A transformer and its tokenizer as one generator of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from varsearch.errors import ModelError
from varsearch.models.batch import Sampler
from varsearch.models.families import Asked, Tokenizer, Transformer
from varsearch.models.generation import GuidanceSchedule, generate
from varsearch.models.infinity.text import Prompts
from varsearch.models.sampling import TeacherForcing
from varsearch.models.seams import Plan
from varsearch.target import GuidanceLayer, ModelSpec, Strength, Temperature, TopK, TopP


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """How the model is sampled unless the user says otherwise, in the terms of its authors.

    Args:
        guidance: of VAR and M-VAR the strength at the last scale, to which it rises from 0; of Infinity the weight of
            the conditional rows at every scale, where 1 does not guide.
        top_k: most codes to choose from; 0 for all.
        top_p: probability of the codes to choose from; 0 for all.
        temperature: what logits are divided by.
        guidance_layer: 0 guides the logits, -n what leaves the n-th block from the last.
    """

    guidance: Strength
    top_k: TopK = 0
    top_p: TopP = 0.0
    temperature: Temperature = 1.0
    guidance_layer: GuidanceLayer = 0

    @classmethod
    def of(cls, source: object) -> SamplingDefaults:
        """The fields of a protocol or envelope that names them all."""
        return cls(*(getattr(source, field.name) for field in fields(cls)))


@dataclass(frozen=True, slots=True)
class Sibling:
    """Another transformer for the tokens of a model."""

    spec: ModelSpec
    transformer: Transformer


def no_sibling(name: str) -> Sibling:
    """Raises `ModelError`: where a model comes from no folder, there is nothing beside it."""
    raise ModelError(f"there is no model {name} beside this one")


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A visual autoregressive model, ready to generate.

    Args:
        spec: its shape.
        transformer: draws the tokens.
        tokenizer: makes images of them.
        sampling: how it is sampled by default.
        sibling: finds a model by name among those that share the tokenizer; raises `ModelError` if there is none.
        refiner: the one that runs the scales that a plan leaves to a refiner.
        prompts: of a model that reads texts, what there is to ask for: label i stands for prompt i.
    """

    spec: ModelSpec
    transformer: Transformer
    tokenizer: Tokenizer
    sampling: SamplingDefaults
    sibling: Callable[[str], Sibling] = no_sibling
    refiner: Sibling | None = None
    prompts: Prompts | None = None

    def dense_plan(self) -> Plan:
        """The plan that changes nothing."""
        return Plan.dense(self.spec.n_layers, self.spec.tokens)

    def generate(
        self, labels_N: Tensor, sampler: Sampler, plan: Plan | None = None, guidance: float | None = None
    ) -> Tensor:
        """Images (N, channels, height, width) in [0, 1]; `plan` and `guidance` default to the model's own."""
        f_hat_NCHW = self._latent(labels_N, sampler, plan, self.guided(guidance))
        with torch.inference_mode():
            return self.tokenizer.decode(f_hat_NCHW).add(1).div(2)

    def likelihood(self, labels_N: Tensor, tokens: list[Tensor], plan: Plan | None = None) -> Tensor:
        """Teacher-forced negative log-likelihood per image, in nats per token, (N,) float64.

        Runs the conditional rows alone, so settings of guidance have no influence. Tokens of skipped scales
        are neither predicted nor counted. Of a bitwise model every bit counts as a token.
        """
        teacher = TeacherForcing(tokens)
        self._latent(labels_N, teacher, plan, GuidanceSchedule.none(len(self.spec.scales)))
        return teacher.nll_N / teacher.tokens_N

    def guided(self, guidance: float | None = None) -> GuidanceSchedule:
        """The schedule of this strength of guidance, or of the model's own."""
        sampling, n_scales = self.sampling, len(self.spec.scales)
        strength = sampling.guidance if guidance is None else guidance
        if self.spec.family == "infinity":
            return GuidanceSchedule.constant(n_scales, strength, sampling.temperature, sampling.guidance_layer)
        schedule = GuidanceSchedule.ramp(n_scales, strength)
        return replace(schedule, temperatures=(sampling.temperature,) * n_scales, layer=sampling.guidance_layer)

    def asked(self, labels_N: Tensor) -> Asked:
        """What images with these labels are asked for."""
        return labels_N if self.prompts is None else self.prompts.take(lambda t: t[labels_N])

    def _latent(self, labels_N: Tensor, sampler: Sampler, plan: Plan | None, guidance: GuidanceSchedule) -> Tensor:
        return generate(
            self.transformer,
            self.tokenizer,
            self.asked(labels_N),
            plan=plan or self.dense_plan(),
            guidance=guidance,
            sampler=sampler,
            refiner=None if self.refiner is None else self.refiner.transformer,
        )
