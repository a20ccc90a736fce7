"""The work that latency, memory and cost refer to: one batch of images, sampled as published and decoded."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from functools import cache
from itertools import chain

import torch
from torch import Tensor, nn

from varsearch.accel import Accelerated, labels_for
from varsearch.measurement import QualityProtocol
from varsearch.models import zoo
from varsearch.models.batch import Sampler
from varsearch.models.checkpoints import stored_as
from varsearch.models.families import new_tokenizer, new_transformer
from varsearch.models.image_model import ImageModel, Sibling
from varsearch.models.infinity.text import Prompts
from varsearch.models.manifest import Manifest
from varsearch.models.sampling import PublishedSampler
from varsearch.target import DType, check_dtype


def default_sampler(model: ImageModel) -> Sampler:
    """The published sampler on the model's device.

    `PairedSampler` would add the same cost to every policy, one random stream per image, and so flatten all ratios.
    """
    generator = torch.Generator(device_of(model)).manual_seed(0)
    return PublishedSampler(generator, model.sampling.top_k, model.sampling.top_p)


def run_batch(applied: Accelerated, batch_size: int, sampler: Sampler) -> Tensor:
    """Images (N, channels, height, width) in [0, 1] of one batch with every class equally often."""
    labels_N = labels_for(batch_size, applied.model.spec.classes, device_of(applied.model))
    return applied.generate(labels_N, sampler)


def device_of(model: ImageModel) -> torch.device:
    """Where the model's weights are."""
    return model.transformer.pos_start.device


def drawing_place(protocol: QualityProtocol) -> tuple[str, DType]:
    """Device and number format to draw a protocol's images in on this machine: the GPU if there is one.

    CPUs are slow in formats of 16 bits, so there images are drawn in fp32 and agree up to rounding.
    """
    return ("cuda", protocol.dtype) if torch.cuda.is_available() else ("cpu", "float32")


def dtype_of(model: ImageModel) -> DType:
    """The number format of the model's weights, but for what `checkpoints` keeps in fp32."""
    found = check_dtype(str(model.transformer.pos_start.dtype).removeprefix("torch."))
    assert found is not None
    return found


def skeleton(manifest: Manifest, prompts: Prompts | None = None) -> ImageModel:
    """A model of the manifest's shape on the meta device: its cost can be traced without reading the weights."""
    with torch.device("meta"):
        transformer, tokenizer = new_transformer(manifest.transformer), new_tokenizer(manifest.tokenizer)
    for part in (transformer, tokenizer):
        part.eval().requires_grad_(False)
    return ImageModel(manifest.spec(), transformer, tokenizer, manifest.sampling, prompts=prompts)


def zoo_skeleton(model: str) -> ImageModel:
    """The skeleton of a zoo model, whose siblings are skeletons too."""

    def sibling(name: str) -> Sibling:
        bones = skeleton(zoo.manifest(zoo.beside(model, name)))
        return Sibling(bones.spec, bones.transformer)

    return dataclasses.replace(skeleton(zoo.manifest(model), zoo.prompts(model)), sibling=cache(sibling))


Convert = Callable[[str, Tensor], Tensor]
"""What becomes of a tensor, by its name and value."""


def with_tensors(model: ImageModel, convert: Convert) -> ImageModel:
    """The same model, with siblings and prompts, with every parameter and buffer replaced by `convert` of it.

    With the identity the two share all weights, while swapping modules in one leaves the other alone.
    """

    def converted(sibling: Sibling) -> Sibling:
        memo = _memo([sibling.transformer], convert)
        return dataclasses.replace(sibling, transformer=copy.deepcopy(sibling.transformer, memo))

    memo = _memo([model.transformer, model.tokenizer], convert)
    return dataclasses.replace(
        model,
        transformer=copy.deepcopy(model.transformer, memo),
        tokenizer=copy.deepcopy(model.tokenizer, memo),
        sibling=cache(lambda name: converted(model.sibling(name))),
        refiner=model.refiner and converted(model.refiner),
        prompts=model.prompts and model.prompts.take(lambda t: convert("prompts", t)),
    )


def _memo(parts: Iterable[nn.Module], convert: Convert) -> dict[int, object]:
    """What `deepcopy` shall take for the tensors of `parts`."""
    memo: dict[int, object] = {}
    for name, tensor in chain.from_iterable((*part.named_parameters(), *part.named_buffers()) for part in parts):
        made = convert(name, tensor)
        memo[id(tensor)] = nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
    return memo


def parts_of(model: ImageModel) -> tuple[nn.Module, ...]:
    """Transformer and tokenizer, and the refiner's transformer if there is one."""
    refiner = () if model.refiner is None else (model.refiner.transformer,)
    return model.transformer, model.tokenizer, *refiner


def cast(model: ImageModel, device: str, dtype: torch.dtype) -> ImageModel:
    """A copy on `device` in `dtype`, but for what `checkpoints` keeps in fp32; tensors that fit already are shared."""
    return with_tensors(model, lambda name, t: t.to(device, stored_as(name, t, dtype)))
