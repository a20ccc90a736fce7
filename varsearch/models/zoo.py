"""Models by name: shipped weights, their hashes, model cards and reference statistics.

A model is a folder with `manifest.json` (configuration, licence, sha256 of every file) and safetensors files.
Names are folders of the package's own `weights`; anything with a path separator is a folder of the user's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor, nn

from varsearch.errors import ModelError
from varsearch.models.classifier import Classifier, ClassifierConfig, build_classifier
from varsearch.models.image_model import ImageModel, SamplingDefaults, Sibling
from varsearch.models.storage import pieces, read_pieces, unpacked
from varsearch.models.var import VAR, VARConfig
from varsearch.models.vqvae import VQVAE, TokenizerConfig
from varsearch.policy import describe
from varsearch.target import Frozen, ModelSpec, Size

WEIGHTS = Path(__file__).parent / "weights"
UNTRAINED = {"cifar10": "it was never trained; python -m recipes.cifar10 DATA OUT trains it on a CUDA device"}
"""Models that a recipe makes and whose weights do not ship yet."""
Part = Literal["transformer", "tokenizer", "classifier", "reference", "held_out"]
FileName = Annotated[str, Field(pattern=r"^(\.\./[\w-]+/)?[\w-]+\.safetensors$")]
"""A file of the folder itself, or of the folder of a sibling beside it."""
Module = TypeVar("Module", bound=nn.Module)


class Manifest(Frozen):
    """Contents of `manifest.json`. `files` maps each part to its file name and sha256."""

    schema_version: Literal[1] = 1
    name: str
    description: str
    licence: str
    data: str
    image_size: tuple[Size, Size]
    transformer: VARConfig
    tokenizer: TokenizerConfig
    sampling: SamplingDefaults
    classifier: ClassifierConfig
    files: dict[Part, tuple[FileName, str]]

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        missing = {"transformer", "tokenizer"} - self.files.keys()
        if missing:
            raise ValueError(f"files name no {' and no '.join(sorted(missing))}")
        for field in ("scales", "vocab", "z_channels"):
            own, other = getattr(self.transformer, field), getattr(self.tokenizer, field)
            if own != other:
                raise ValueError(f"{field} of the transformer is {own}, of the tokenizer {other}")
        if self.image_size != self.tokenizer.image_size:
            raise ValueError(f"image_size is {self.image_size}, the tokenizer's images are {self.tokenizer.image_size}")
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
    try:
        known = (found / "manifest.json").is_file()
    except OSError as error:
        raise ModelError(f"cannot read model {model!r}: {error.strerror}") from None
    if model in UNTRAINED and not known:
        raise ModelError(f"model {model} has no weights yet: {UNTRAINED[model]}")
    if not known:
        raise ModelError(f"unknown model {model!r}: shipped models are {', '.join(names())}, or give a model's folder")
    return found


@cache
def manifest(model: str) -> Manifest:
    """The manifest of a model, validated."""
    path = folder(model) / "manifest.json"
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
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
        content = read_pieces(path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ModelError(f"{path} is not the file the manifest names: sha256 {found[:12]}…, expected {expected[:12]}…")
    try:
        return from_bytes(content)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from None


def stored_bytes(model: str) -> int:
    """Size of all files of a model, those of a sibling included; `ModelError` if one is missing."""
    try:
        names = [name for name, _ in manifest(model).files.values()]
        return sum(piece.stat().st_size for name in names for piece in pieces(folder(model) / name))
    except OSError as error:
        raise ModelError(f"cannot read {error.filename}: {error.strerror}") from None


def beside(model: str, name: str) -> str:
    """The folder `name` beside that of a model, if it holds a model that draws the same tokens; else `ModelError`."""
    found = str(folder(model).parent / name)
    own, other = manifest(model), manifest(found)
    if own.files["tokenizer"][1] != other.files["tokenizer"][1] or own.tokenizer != other.tokenizer:
        raise ModelError(f"model {name} has another tokenizer than {own.name}: their tokens cannot be combined")
    if own.transformer.classes != other.transformer.classes:
        raise ModelError(f"model {name} has {other.transformer.classes} classes, {own.name} {own.transformer.classes}")
    return found


def siblings(model: str) -> list[ModelSpec]:
    """Smaller models that draw the same tokens, by the names of their folders; a policy may name them as refiners."""
    found, size = [], manifest(model).spec().size
    for path in sorted(folder(model).parent.glob("*/manifest.json")):
        name = path.parent.name
        try:
            spec = manifest(beside(model, name)).spec()
        except ModelError:
            continue
        if spec.size < size:
            found.append(spec.model_copy(update={"name": name}))
    return found


def _filled(make: Callable[[], Module], stored: dict[str, Tensor], what: str) -> Module:
    state = unpacked(stored)
    try:
        # Without memory, until the sizes that the manifest names are known to be those of the file.
        with torch.device("meta"):
            module = make()
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{what}: no network has the manifest's sizes: {str(error).splitlines()[0]}") from None
    own = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in state.items()}
    wrong = [name for name in sorted(own.keys() | given.keys()) if own.get(name) != given.get(name)]
    if wrong:
        first = wrong[0]
        raise ModelError(
            f"{what}: {len(wrong)} tensors differ from the layout, first {first}: "
            f"expected {own.get(first, 'none')}, got {given.get(first, 'none')}"
        )
    module.to_empty(device="cpu").load_state_dict(state, assign=False)
    return module.eval().requires_grad_(False)


def _transformer(model: str, device: str) -> VAR:
    config = manifest(model).transformer
    return _filled(lambda: VAR(config), tensors(model, "transformer"), "transformer").to(device)


def load(model: str, device: str = "cpu") -> ImageModel:
    """A model by name or folder, in fp32 on `device`, frozen and in evaluation mode.

    Raises:
        ModelError: unknown name; a file that is missing, not what its sha256 says, or of another layout.
    """
    m = manifest(model)
    return ImageModel(
        spec=m.spec(),
        transformer=_transformer(model, device),
        tokenizer=_filled(lambda: VQVAE(m.tokenizer), tensors(model, "tokenizer"), "tokenizer").to(device),
        sampling=m.sampling,
        sibling=cache(partial(load_sibling, model, device=device)),
    )


def load_sibling(model: str, name: str, device: str = "cpu") -> Sibling:
    """The transformer `name` beside a model; raises `ModelError` as `load` does, or if the tokenizer is another."""
    found = beside(model, name)
    return Sibling(manifest(found).spec(), _transformer(found, device))


def load_classifier(model: str, device: str = "cpu") -> Classifier:
    """The small classifier that ships with a model: labels and Fréchet features."""
    config = manifest(model).classifier
    return _filled(lambda: build_classifier(config), tensors(model, "classifier"), "classifier").to(device)


def held_out(model: str) -> tuple[list[Tensor], Tensor]:
    """Tokens per scale (int64) and labels of held-out images, for the likelihood."""
    state, c = tensors(model, "held_out"), manifest(model).transformer
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
        classifier=ClassifierConfig(),
        files={"transformer": ("random.safetensors", str(seed)), "tokenizer": ("random.safetensors", str(seed))},
    )
    for part in (transformer, vqvae):
        part.eval().requires_grad_(False)
    return ImageModel(m.spec(), transformer, vqvae, m.sampling)
