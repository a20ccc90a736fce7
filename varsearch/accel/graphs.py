"""A whole generation as one CUDA graph for each number of images: one launch instead of thousands.

A graph repeats kernels on the addresses of the run that was captured, so nothing may come from the host in between.
What differs between generations is copied into tensors that stay: labels and noise. Codes are the Gumbel maximum of
logits and that noise. Tables of the plan are made by a first run, which is not captured. Where images decide on their
way, the host has to ask them: such plans are refused.

Not measured: no GPU has run this code. Tests rehearse it on a CPU with a stand-in that records and repeats operators.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from varsearch.errors import TargetError, UsageError
from varsearch.models.batch import Sampler
from varsearch.models.image_model import ImageModel
from varsearch.models.noise import gumbel
from varsearch.models.sampling import GreedySampler, PairedSampler, PublishedSampler, filter_logits, marked
from varsearch.models.seams import Plan

Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""Captures a function without arguments: what it returned, and what repeats it into that tensor."""


def unsupported(plan: Plan, device: torch.device) -> str | None:
    """Why generations of `plan` cannot be captured there, or None if they can."""
    if any(scale.fork is not None for scale in plan.scales):
        return "images decide on their way, which the host has to ask them"
    return None if device.type == "cuda" else f"graphs are of CUDA devices, not of {device.type}"


def captured(fn: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """See `Record`: on the current CUDA device."""
    aside, current = torch.cuda.Stream(), torch.cuda.current_stream()
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        # Makes tables and workspaces, compiles kernels.
        fn()
    current.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fn()
    return out, graph.replay


class GivenNoise:
    """Draws codes with Gumbel noise that lies in its tensors; makes them, of zeros, at the first call for a scale."""

    def __init__(self, top_k: int, top_p: float) -> None:
        self.top_k, self.top_p = top_k, top_p
        self.noise: dict[int, Tensor] = {}

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        """See `Sampler`."""
        kept_NLV = filter_logits(logits_NLV, self.top_k, self.top_p)
        if scale not in self.noise:
            self.noise[scale] = torch.zeros_like(kept_NLV)
        codes_NL = (kept_NLV + self.noise[scale]).argmax(-1)
        return marked(codebook_VC[codes_NL], logits_NLV)

    def take(self, images_M: Tensor) -> GivenNoise:
        """Nobody asks: plans where images part are not captured."""
        raise NotImplementedError

    def fill(self, sampler: Sampler) -> None:
        """Puts in what `sampler` would draw next."""
        for scale, noise_NLV in self.noise.items():
            noise_NLV.copy_(noise_of(sampler, noise_NLV, scale))


def noise_of(sampler: Sampler, like_NLV: Tensor, scale: int) -> Tensor:
    """The Gumbel noise by which `sampler` chooses the codes of a scale; `UsageError` if it chooses otherwise."""
    if isinstance(sampler, PairedSampler):
        return gumbel(sampler.noise, sampler.seed, sampler.images, scale, like_NLV)
    if isinstance(sampler, GreedySampler):
        return torch.zeros_like(like_NLV)
    if isinstance(sampler, PublishedSampler) and not sampler.smooth_scales:
        # `multinomial` divides probabilities by such numbers and takes the largest quotient.
        return torch.empty_like(like_NLV).exponential_(generator=sampler.generator).log_().neg_()
    raise UsageError(f"a captured generation takes its noise as an input, which {type(sampler).__name__} has none of")


class Graphs:
    """Generations of one model and plan, captured at the first of each number of images."""

    def __init__(self, model: ImageModel, plan: Plan, record: Record = captured) -> None:
        self.model, self.plan, self.record = model, plan, record
        self.made: dict[tuple[int, int, float], Graph] = {}

    def __call__(self, labels_N: Tensor, sampler: Sampler) -> Tensor:
        """Images (N, channels, height, width) in [0, 1], as `ImageModel.generate` with this plan and sampler."""
        key = len(labels_N), *filters_of(sampler)
        if key not in self.made:
            self.made[key] = Graph(self.model, self.plan, labels_N, GivenNoise(*key[1:]), self.record)
        return self.made[key](labels_N, sampler)


def filters_of(sampler: Sampler) -> tuple[int, float]:
    """The sampler's top-k and top-p."""
    if isinstance(sampler, PairedSampler | PublishedSampler):
        return sampler.top_k, sampler.top_p
    return 0, 0.0


class Graph:
    """One captured generation, with the tensors that it reads and writes."""

    def __init__(self, model: ImageModel, plan: Plan, labels_N: Tensor, noise: GivenNoise, record: Record) -> None:
        self.labels_N, self.noise = labels_N.clone(), noise
        self.images_NCHW, self.replay = record(lambda: model.generate(self.labels_N, noise, plan))

    def __call__(self, labels_N: Tensor, sampler: Sampler) -> Tensor:
        """Images of these labels with the noise of this sampler."""
        with torch.inference_mode():
            self.labels_N.copy_(labels_N)
            self.noise.fill(sampler)
            self.replay()
            return self.images_NCHW.clone()


def require_supported(plan: Plan, device: torch.device) -> None:
    """Raises `TargetError` with the reason if generations of `plan` cannot be captured there."""
    reason = unsupported(plan, device)
    if reason:
        raise TargetError(f"execution 'graphs' cannot run here: {reason}; use execution 'eager'")
