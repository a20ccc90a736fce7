"""Models by name: shipped weights, their hashes, model cards and reference statistics.

A model is a folder with `manifest.json` (configuration, licence, sha256 of every file) and safetensors files.
Names are folders of the package's own `weights`; anything with a path separator is a folder of the user's.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from varsearch.errors import ModelError
from varsearch.models.classifier import Classifier
from varsearch.models.image_model import ImageModel, SamplingDefaults
from varsearch.models.var import VAR, VARConfig
from varsearch.models.vqvae import VQVAE, TokenizerConfig
from varsearch.policy import describe
from varsearch.target import Frozen, ModelSpec

WEIGHTS = Path(__file__).parent / "weights"
Part = Literal["transformer", "tokenizer", "classifier", "reference", "held_out"]
FileName = Annotated[str, Field(pattern=r"^[\w-]+\.safetensors$")]
Module = TypeVar("Module", bound=nn.Module)


class Manifest(Frozen):
    """Contents of `manifest.json`. `files` maps each part to its file name and sha256."""

    schema_version: Literal[1] = 1
    name: str
    description: str
    licence: str
    data: str
    image_size: tuple[int, int]
    transformer: VARConfig
    tokenizer: TokenizerConfig
    sampling: SamplingDefaults
    classifier: dict[str, int]
    files: dict[Part, tuple[FileName, str]]

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        missing = {"transformer", "tokenizer"} - self.files.keys()
        if missing:
            raise ValueError(f"files name no {' and no '.join(sorted(missing))}")
        return self

    def fingerprint(self) -> str:
        """Sha256 over the configuration and weights that images depend on."""
        parts = [self.files[part][1] for part in ("transformer", "tokenizer")]
        shape = self.model_dump_json(include={"transformer", "tokenizer"})
        return hashlib.sha256("".join([shape, *parts]).encode()).hexdigest()

    def spec(self) -> ModelSpec:
        """The shape that policies refer to."""
        t = self.transformer
        return ModelSpec(
            name=self.name,
            n_layers=t.depth,
            n_heads=t.heads,
            head_dim=t.width // t.heads,
            mlp_ratio=t.mlp_ratio,
            shared_adaln=t.shared_adaln,
            scales=t.scales,
            classes=t.classes,
            image_size=self.image_size,
            fingerprint=self.fingerprint(),
        )


def names() -> list[str]:
    """Names of the shipped models."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/manifest.json"))


def folder(model: str) -> Path:
    """Folder of a shipped model's name or of a path; `ModelError` if there is no model."""
    path = Path(model)
    if path.suffix in {".pth", ".pt", ".ckpt", ".bin", ".pkl"}:
        raise ModelError(f"{model} is a pickle checkpoint, which can run code when loaded: convert it to safetensors")
    found = path if len(path.parts) > 1 or path.is_absolute() else WEIGHTS / model
    if not (found / "manifest.json").is_file():
        raise ModelError(f"unknown model {model!r}: shipped models are {', '.join(names())}, or give a model's folder")
    return found


@cache
def manifest(model: str) -> Manifest:
    """The manifest of a model, validated."""
    path = folder(model) / "manifest.json"
    try:
        return Manifest.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ModelError(f"{path}: {describe(error)}") from None


def tensors(model: str, part: Part) -> dict[str, Tensor]:
    """The tensors of one file of a model, after its sha256 was checked."""
    files = manifest(model).files
    if part not in files:
        raise ModelError(f"model {model} has no {part}")
    name, expected = files[part]
    path = folder(model) / name
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    if found != expected:
        raise ModelError(f"{path} is not the file the manifest names: sha256 {found[:12]}…, expected {expected[:12]}…")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from None


def _filled(module: Module, state: dict[str, Tensor], what: str) -> Module:
    own = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in state.items()}
    wrong = [name for name in sorted(own.keys() | given.keys()) if own.get(name) != given.get(name)]
    if wrong:
        first = wrong[0]
        raise ModelError(
            f"{what}: {len(wrong)} tensors differ from the layout, first {first}: "
            f"expected {own.get(first, 'none')}, got {given.get(first, 'none')}"
        )
    module.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()}, assign=False)
    return module.eval().requires_grad_(False)


def load(model: str, device: str = "cpu") -> ImageModel:
    """A model by name or folder, in fp32 on `device`, frozen and in evaluation mode.

    Raises:
        ModelError: unknown name; a file that is missing, not what its sha256 says, or of another layout.
    """
    m = manifest(model)
    return ImageModel(
        spec=m.spec(),
        transformer=_filled(VAR(m.transformer), tensors(model, "transformer"), "transformer").to(device),
        tokenizer=_filled(VQVAE(m.tokenizer), tensors(model, "tokenizer"), "tokenizer").to(device),
        sampling=m.sampling,
    )


def load_classifier(model: str, device: str = "cpu") -> Classifier:
    """The small classifier that ships with a model: labels and Fréchet features."""
    return _filled(Classifier(**manifest(model).classifier), tensors(model, "classifier"), "classifier").to(device)


def held_out(model: str) -> tuple[list[Tensor], Tensor]:
    """Tokens per scale (int64) and labels of held-out images, for the likelihood."""
    state = tensors(model, "held_out")
    sizes = [h * w for h, w in manifest(model).transformer.scales]
    return list(state["tokens"].long().split(sizes, dim=1)), state["labels"].long()


def card(model: str) -> dict[str, Any]:
    """The figures that the recipe measured: `numbers`, the guidance `scan`, and training `minutes` per stage."""
    path = folder(model) / "card.json"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"model {model} has no readable card {path}: {error}") from None
    return found


def random_model(
    config: VARConfig, tokenizer: TokenizerConfig, image_size: tuple[int, int], seed: int = 0
) -> ImageModel:
    """A model of any shape with seeded random weights, for tests and for latency and memory work."""
    torch.manual_seed(seed)
    transformer, vqvae = VAR(config), VQVAE(tokenizer)
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.15)
    m = Manifest(
        name="random",
        description="seeded random weights",
        licence="none",
        data="none",
        image_size=image_size,
        transformer=config,
        tokenizer=tokenizer,
        sampling=SamplingDefaults(guidance=1.5),
        classifier={},
        files={"transformer": ("random.safetensors", str(seed)), "tokenizer": ("random.safetensors", str(seed))},
    )
    for part in (transformer, vqvae):
        part.eval().requires_grad_(False)
    return ImageModel(m.spec(), transformer, vqvae, m.sampling)
