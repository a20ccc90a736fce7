"""Models by name: shipped weights, their hashes, model cards and reference statistics.

A model is a folder with `manifest.json` and safetensors or PyTorch files. Names are folders of the package's own
`weights`, or those of published models (see `registry.py`); anything with a path separator is a folder of the user's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, overload

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor

from varsearch.errors import ModelError
from varsearch.models import checkpoints, registry
from varsearch.models.classifier import Classifier, build_classifier
from varsearch.models.families import (
    Tokenizer,
    Transformer,
    new_tokenizer,
    new_transformer,
)
from varsearch.models.image_model import ImageModel, Sibling
from varsearch.models.infinity.text import Prompts, load_prompts
from varsearch.models.infinity.transformer import InfinityConfig
from varsearch.models.manifest import Manifest, Part
from varsearch.models.names import PUBLISHED_NAMES, unknown
from varsearch.models.names import UNTRAINED as UNTRAINED
from varsearch.models.names import WEIGHTS as WEIGHTS
from varsearch.models.names import names as names
from varsearch.models.random_weights import random_prompts, random_weights
from varsearch.models.storage import pieces, read_pieces, unpacked
from varsearch.policy import describe
from varsearch.target import DType, ModelSpec


def folder(model: str) -> Path:
    """Folder of a model's files; `ModelError` if there is no model."""
    named = registry.parse(model)
    if named is not None:
        return registry.folder(named)
    path = Path(model).expanduser()
    if path.suffix in checkpoints.PICKLES:
        raise ModelError(
            f"{model} is a checkpoint without its tokenizer: name a published model (varsearch models) and give "
            "--weights the folder that holds both"
        )
    found = path if any(separator in model for separator in ("/", os.sep)) else WEIGHTS / model
    try:
        known = (found / "manifest.json").is_file()
    except OSError as error:
        raise ModelError(f"cannot read model {model!r}: {error.strerror}") from None
    if model in UNTRAINED and not known:
        raise ModelError(f"model {model} has no weights yet: {UNTRAINED[model]}")
    if not known:
        raise unknown(model)
    return found


@cache
def manifest(model: str) -> Manifest:
    """The manifest of a model, validated."""
    named = registry.parse(model)
    if named is not None:
        return registry.manifest(named)
    path = folder(model) / "manifest.json"
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        raise ModelError(f"{path}: {describe(error)}") from None


def tensors(model: str, part: Part) -> dict[str, Tensor]:
    """The tensors of one part of a model as they are stored, after its sha256 was checked."""
    files = manifest(model).files
    if part not in files:
        raise ModelError(f"model {model} has no {part}")
    name, expected = files[part]
    path = folder(model) / name
    try:
        content = None if path.exists() else read_pieces(path)
        found = registry.sha256(path) if content is None else hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    if found != expected:
        raise ModelError(f"{path} is not the file the manifest names: sha256 {found[:12]}…, expected {expected[:12]}…")
    try:
        return checkpoints.read(path) if content is None else from_bytes(content)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from None


def absolute(model: str) -> str:
    """The same model under a name that holds in every working folder."""
    named = registry.parse(model)
    if named is not None:
        return str(registry.absolute(named))
    return model if model in names() else str(folder(model).resolve())


def weights_refusal(model: str) -> str | None:
    """Why nothing can be learnt from images of this model; None if its weights are there.

    Latency and memory depend on the shape alone, so the manifest is enough to predict them.
    """
    m = manifest(model)
    if m.random:
        return "its weights are random"
    names = [m.files[part][0] for part in ("transformer", "tokenizer")]
    absent = [name for name in names if not all(piece.exists() for piece in pieces(folder(model) / name))]
    return f"cannot read its weights: no {' and no '.join(absent)} in {folder(model)}" if absent else None


def calibration_refusal(model: str) -> str | None:
    """Why published systems cannot be calibrated for a model; None if they can."""
    if manifest(model).spec().family == "mvar":
        return "its attention stays within each scale, and a calibration is about attention across scales"
    return weights_refusal(model)


def quality_refusal(model: str, needed: Sequence[Part] = ("classifier", "reference")) -> str | None:
    """Why the quality of a model's images cannot be evaluated; None if it can.

    Args:
        model: name or folder.
        needed: what an evaluation takes from the model's own files, because the user gives no other.
    """
    absent = [part for part in needed if part not in manifest(model).files]
    lacks = f"it has no {' and no '.join(absent)}" if absent else None
    return weights_refusal(model) or lacks


def stored_bytes(model: str) -> int:
    """Size of all files of a model, those of a sibling included; `ModelError` if one is missing."""
    try:
        names = [name for name, _ in manifest(model).files.values()]
        return sum(piece.stat().st_size for name in names for piece in pieces(folder(model) / name))
    except OSError as error:
        raise ModelError(f"cannot read {error.filename}: {error.strerror}") from None


def beside(model: str, name: str) -> str:
    """The model `name` beside another, if it draws the same tokens; else `ModelError`.

    Beside a folder are those in the same place, beside a published model those whose weights are in the same place.
    """
    named = registry.parse(model)
    found = str(folder(model).parent / name) if named is None else str(named._replace(name=name))
    own, other = manifest(model), manifest(found)
    if own.files.get("tokenizer", ("", ""))[1] != other.files.get("tokenizer", ("", ""))[1] or (
        own.tokenizer != other.tokenizer
    ):
        raise ModelError(f"model {name} has another tokenizer than {own.name}: their tokens cannot be combined")
    theirs, ours = other.spec(), own.spec()
    if theirs.family != ours.family:
        raise ModelError(f"model {name} is of family {theirs.family}, {own.name} of {ours.family}")
    if theirs.classes != ours.classes:
        raise ModelError(f"model {name} has {theirs.classes} classes, {own.name} {ours.classes}")
    return found


def siblings(model: str) -> list[ModelSpec]:
    """Smaller models that draw the same tokens, by their names; a policy may name them as refiners."""
    own, named = manifest(model).spec(), registry.parse(model)
    if own.family == "mvar":  # their recurrence cannot be taken over
        return []
    paths = folder(model).parent.glob("*/manifest.json") if named is None else ()
    found = []
    for name in sorted(path.parent.name for path in paths) if named is None else PUBLISHED_NAMES:
        try:
            spec = manifest(beside(model, name)).spec()
        except ModelError:
            continue
        if spec.size < own.size:
            found.append(spec.model_copy(update={"name": name}))
    return found


def load(model: str, device: str = "cpu", dtype: DType | None = None) -> ImageModel:
    """A model by name or folder on `device`, frozen and in evaluation mode.

    Args:
        model: a shipped or published name, or a folder.
        device: a torch device.
        dtype: of the weights but for what `checkpoints` keeps in fp32; None is fp32 throughout.

    Raises:
        ModelError: unknown name; a file that is missing, not what its sha256 says, or of another layout.
    """
    m, dtype = manifest(model), dtype or "float32"
    found = prompts(model)
    return ImageModel(
        spec=m.spec(),
        transformer=_part(model, "transformer", device, dtype),
        tokenizer=_part(model, "tokenizer", device, dtype),
        sampling=m.sampling,
        sibling=cache(partial(load_sibling, model, device=device, dtype=dtype)),
        prompts=found and found.to(device, getattr(torch, dtype)),
    )


@overload
def _part(model: str, part: Literal["transformer"], device: str, dtype: DType) -> Transformer: ...
@overload
def _part(model: str, part: Literal["tokenizer"], device: str, dtype: DType) -> Tokenizer: ...
def _part(model: str, part: Literal["transformer", "tokenizer"], device: str, dtype: DType) -> Transformer | Tokenizer:
    m = manifest(model)

    def make() -> Transformer | Tokenizer:
        return new_transformer(m.transformer) if part == "transformer" else new_tokenizer(m.tokenizer)

    if m.random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            state = random_weights(make(), m.transformer.width)
    else:
        state = unpacked(tensors(model, part))
    what = f"{part} of {model}" if m.random else str(folder(model) / m.files[part][0])
    return checkpoints.filled(make, state, what, dtype, device)


def prompts(model: str) -> Prompts | None:
    """What can be asked of a model that reads texts; None for others."""
    m, named = manifest(model), registry.parse(model)
    if not isinstance(m.transformer, InfinityConfig):
        return None
    if named is not None and named.prompts:
        found = load_prompts(named.prompts)
    elif "prompts" in m.files:
        tensors(model, "prompts")
        found = load_prompts(folder(model) / m.files["prompts"][0])
    else:
        found = random_prompts(m.transformer, m.prompts)
    wide = found.features_NTC.shape[-1]
    if wide != m.transformer.text_channels or len(found) != m.prompts:
        raise ModelError(
            f"prompts of {model}: {len(found)} of {wide} channels, expected {m.prompts} of "
            f"{m.transformer.text_channels}"
        )
    return found


def load_sibling(model: str, name: str, device: str = "cpu", dtype: DType = "float32") -> Sibling:
    """The transformer `name` beside a model; raises `ModelError` as `load` does, or if the tokenizer is another."""
    found = beside(model, name)
    return Sibling(manifest(found).spec(), _part(found, "transformer", device, dtype))


def load_classifier(model: str, device: str = "cpu") -> Classifier:
    """The small classifier that ships with a model: labels and Fréchet features."""
    config, state = manifest(model).classifier, unpacked(tensors(model, "classifier"))
    return checkpoints.filled(lambda: build_classifier(config), state, "classifier", device=device)


def held_out(model: str) -> tuple[list[Tensor], Tensor] | None:
    """Tokens per scale (int64) and labels of held-out images, for the likelihood; None where none are kept."""
    m = manifest(model)
    if "held_out" not in m.files or isinstance(m.transformer, InfinityConfig):
        return None
    state, c = tensors(model, "held_out"), m.transformer
    tokens, labels = (state.get(name, torch.empty(0)).long() for name in ("tokens", "labels"))
    length = len(c.scale_of_token)
    if labels.ndim != 1 or tokens.shape != (len(labels), length):
        shapes = {name: tuple(t.shape) for name, t in state.items()}
        raise ModelError(f"held_out of {model}: expected tokens (N, {length}) and labels (N,), got {shapes}")
    for values, limit in ((tokens, c.vocab), (labels, c.classes)):
        if not ((values >= 0) & (values < limit)).all():
            raise ModelError(f"held_out of {model}: expected tokens below {c.vocab} and labels below {c.classes}")
    return list(tokens.split([h * w for h, w in c.scales], dim=1)), labels


def card(model: str) -> dict[str, Any]:
    """The figures that the recipe measured: `numbers`, the guidance `scan`, and training `minutes` per stage."""
    path = folder(model) / "card.json"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"model {model} has no readable card {path}: {error}") from None
    return found
