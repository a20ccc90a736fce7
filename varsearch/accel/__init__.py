"""Applies a policy to a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from varsearch.accel.graphs import Graphs
from varsearch.accel.graphs import require_supported as require_graphs
from varsearch.accel.lower import lower
from varsearch.accel.quantization import quantized
from varsearch.accel.refiner import with_refiner
from varsearch.contentless import Contentless
from varsearch.errors import UsageError
from varsearch.kernels.attention_backends import Attention, Request, choose, named
from varsearch.kernels.quantized_linear import Backend, require_supported, supported
from varsearch.models.batch import Sampler
from varsearch.models.image_model import ImageModel, SamplingDefaults
from varsearch.models.noise import usual_noise
from varsearch.models.sampling import PairedSampler
from varsearch.models.seams import Plan
from varsearch.policy import Policy
from varsearch.policy_file import PolicyFile
from varsearch.target import AttentionName, Noise

Execution = Literal["eager", "graphs"]
"""How operators reach the device: one by one, or captured."""


@dataclass(frozen=True, slots=True)
class Accelerated:
    """A model with a policy applied; `backend` computes its quantized linears, `attention` says what its attention.

    `graphs` repeats captured generations; None where operators are launched one by one.
    """

    model: ImageModel
    plan: Plan
    backend: Backend = "torch"
    attention: str = "sdpa"
    graphs: Graphs | None = None

    @property
    def execution(self) -> Execution:
        """How operators reach the device."""
        return "eager" if self.graphs is None else "graphs"

    def generate(self, labels_N: Tensor, sampler: Sampler) -> Tensor:
        """Images (N, channels, height, width) in [0, 1], drawn by `sampler`."""
        return (self.graphs or self._eager)(labels_N, sampler)

    def _eager(self, labels_N: Tensor, sampler: Sampler) -> Tensor:
        return self.model.generate(labels_N, sampler, self.plan)

    def images(self, labels_N: Tensor, seed: int, first: int = 0, noise: Noise | None = None) -> Tensor:
        """Images (N, channels, height, width) in [0, 1]; NaN where the model's logits were not finite.

        Image i draws its own noise from (seed, first + i), so it depends neither on its neighbours nor on the policy.

        Args:
            labels_N: what is asked for.
            seed: of the noise.
            first: index of the first image.
            noise: what is drawn with. None is `mt19937` on a CPU and `philox` elsewhere; images of one seed and one
                kind of noise agree across devices up to rounding.
        """
        sampling, n = self.model.sampling, len(labels_N)
        noise = noise or usual_noise(self.model.transformer.pos_start.device)
        images = range(first, first + n)
        sampler = PairedSampler(seed, images, sampling.top_k, sampling.top_p, noise)
        return self.generate(labels_N, sampler)

    def likelihood(self, labels_N: Tensor, tokens: list[Tensor]) -> Tensor:
        """Teacher-forced negative log-likelihood per image, nats per token, (N,) float64."""
        return self.model.likelihood(labels_N, tokens, self.plan)


@contextmanager
def apply(
    model: ImageModel,
    policy: Policy | PolicyFile,
    backend: Backend | None = None,
    attention: AttentionName = "sdpa",
    execution: Execution = "eager",
) -> Iterator[Accelerated]:
    """The model with `policy` applied; on exit the model is as it was, bit for bit.

    Args:
        model: it may run on any device.
        policy: what to make cheaper.
        backend: the kernels of quantized linears; None takes "triton" on a CUDA device that it supports, else "torch".
        attention: who computes the attention of image tokens to each other; "auto" takes the best that is installed.
            The tokenizer's, and attention to a text, are PyTorch's own.
        execution: "eager" launches operators one by one, "graphs" whole generations of `images` as one CUDA graph.

    Raises:
        PolicyError: the policy does not fit the model, its file is for other weights, or its refiner has others.
        ModelError: the policy's refiner is not beside the model, or does not share its tokenizer.
        TargetError: `backend`, `attention` or `execution` was named and cannot run on the model's device, in its dtype,
            or for this policy.
    """
    backend = _choose(backend, model.transformer.pos_start)
    chosen = attention_for(model, attention)
    if isinstance(policy, PolicyFile):
        policy.check_model(model.spec)
        sampling = SamplingDefaults.of(policy.envelope)
        model, policy = replace(model, sampling=sampling), policy.policy
    model = with_refiner(model, policy)
    plan = lower(policy, model.spec, model.refiner.spec.n_layers if policy.refiner and model.refiner else 0, chosen)
    with quantized(model.transformer, policy, backend):
        yield Accelerated(model, plan, backend, chosen.label, graphs_for(model, plan, execution))


def graphs_for(model: ImageModel, plan: Plan, execution: Execution) -> Graphs | None:
    """What repeats generations of `plan`, if `execution` asks for it; raises `TargetError` if it cannot."""
    if execution not in get_args(Execution):
        raise UsageError(f"unknown execution {execution!r}: expected one of {', '.join(get_args(Execution))}")
    if execution == "eager":
        return None
    require_graphs(plan, model.transformer.pos_start.device)
    return Graphs(model, plan)


def attention_for(model: ImageModel, name: AttentionName) -> Attention:
    """The back-ends of this name for a model's attention; raises `TargetError` if they cannot run it."""
    weight = model.transformer.pos_start
    if isinstance(weight, Contentless) and name != "auto":
        # Tensors without content only trace what would run elsewhere.
        return named(name)
    return choose(name, Request(weight.device, weight.dtype, model.spec.head_dim))


def default_backend(device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend that `apply` takes if none is named."""
    return "triton" if device.type == "cuda" and supported(device, dtype) is None else "torch"


def _choose(backend: Backend | None, weight: Tensor) -> Backend:
    if backend is None:
        return default_backend(weight.device, weight.dtype)
    if backend not in get_args(Backend):
        raise UsageError(f"unknown backend {backend!r}: expected one of {', '.join(get_args(Backend))}")
    # Tensors without content only trace what would run elsewhere.
    if backend == "triton" and not isinstance(weight, Contentless):
        require_supported(weight.device, weight.dtype)
    return backend


def labels_for(n: int, classes: int, device: torch.device | str = "cpu") -> Tensor:
    """Labels of images 0..n-1: every class equally often, whatever n."""
    return torch.arange(n, device=device) % classes
