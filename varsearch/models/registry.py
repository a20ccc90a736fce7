"""A published model as the user names it: `NAME@WEIGHTS#PROMPTS`, where the last two may be absent.

NAME may have an aspect ratio and a class of pixel counts where the model has several, as in `infinity-2b:1.5:0.60M`.

WEIGHTS is `random` (seeded random numbers), a folder that holds the published files, or `hf:OWNER/REPOSITORY@REVISION`,
which downloads them from the Hugging Face hub, or finds them in its cache. PROMPTS is a file that `save_prompts` wrote.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from varsearch.errors import ModelError, UsageError
from varsearch.models.infinity.text import load_prompts
from varsearch.models.infinity.transformer import InfinityConfig
from varsearch.models.manifest import Manifest, Part
from varsearch.models.published import PUBLISHED, Published, of_schedule

RANDOM = "random"
RANDOM_PROMPTS, RANDOM_LENGTH = 8, 64
"""How many prompts a model with random weights comes with, and their features: a sentence or two."""

ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", "")
"""Formats of a checkpoint in the order of preference; the last is a folder of shards."""

HUB = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


class Named(NamedTuple):
    """The parts of a published model's name."""

    name: str
    weights: str = ""
    prompts: str = ""

    def __str__(self) -> str:
        return self.name + (self.weights and f"@{self.weights}") + (self.prompts and f"#{self.prompts}")

    @property
    def published(self) -> Published:
        """What is known without the weights; raises `ModelError` if there is no such schedule."""
        size, *schedule = self.name.split(":")
        return of_schedule(size, *schedule) if schedule else PUBLISHED[size]


def parse(model: str) -> Named | None:
    """The parts of a published model's name; None if it is none."""
    name = re.split("[@#]", model, maxsplit=1)[0]
    if name.partition(":")[0] not in PUBLISHED:
        return None
    weights, _, prompts = model[len(name) :].partition("#")
    return Named(name, weights.removeprefix("@"), prompts)


def absolute(named: Named) -> Named:
    """The same model under a name that holds in every working folder."""
    weights, prompts = named.weights, named.prompts
    if weights not in ("", RANDOM) and not weights.startswith("hf:"):
        weights = str(Path(weights).expanduser().resolve())
    return Named(named.name, weights, prompts and str(Path(prompts).expanduser().resolve()))


def join(model: str, weights: str | None, prompts: str | None) -> str:
    """`model` with what `--weights` and `--prompts` say; raises `UsageError` where they do not belong to it."""
    named = parse(model)
    if named is None:
        if weights or prompts:
            raise UsageError(f"--weights and --prompts are for published models (varsearch models), not for {model}")
        return model
    if prompts and not isinstance(named.published.transformer, InfinityConfig):
        raise UsageError(f"{named.name} reads classes, not prompts")
    if weights and "#" in weights:
        raise UsageError(f"--weights {weights}: a folder with # in its name cannot be told from one with prompts")
    return str(Named(named.name, weights or named.weights, prompts or named.prompts))


@cache
def folder(named: Named) -> Path:
    """Where the files of the weights are; raises `ModelError` if no weights are named, or they are not there."""
    p = named.published
    if not named.weights:
        raise ModelError(
            f"the weights of {named.name} do not ship with varsearch: give --weights random, a folder that holds "
            f"{p.transformer_file} and {p.tokenizer_file} (from {p.source}), or hf:OWNER/REPOSITORY@REVISION"
        )
    if named.weights.startswith("hf:"):
        return _from_hub(named)
    path = Path(named.weights).expanduser()
    if not path.is_dir():
        raise ModelError(
            f"there is no folder {path}: expected one that holds {p.transformer_file} and {p.tokenizer_file}"
        )
    return path


def manifest(named: Named) -> Manifest:
    """What `manifest.json` says of other models."""
    p, text = named.published, isinstance(named.published.transformer, InfinityConfig)
    files: dict[Part, tuple[str, str]] = {}
    if named.weights != RANDOM:
        stems: dict[Part, str] = {"transformer": p.transformer_file, "tokenizer": p.tokenizer_file}
        files = {part: _found(folder(named), stem) for part, stem in stems.items()}
    if named.prompts and not text:
        raise ModelError(f"{named.name} reads classes, not prompts")
    if named.prompts:
        prompts = Path(named.prompts)
        files["prompts"] = prompts.name, sha256(prompts)
    return Manifest(
        name=named.name,
        description=p.description,
        licence=p.licence,
        data=f"see {p.source}",
        image_size=p.tokenizer.image_size,
        transformer=p.transformer,
        tokenizer=p.tokenizer,
        sampling=p.sampling,
        files=files,
        prompts=(len(load_prompts(named.prompts)) if named.prompts else RANDOM_PROMPTS) if text else 1,
        random=named.weights == RANDOM,
    )


def _found(folder: Path, stem: str) -> tuple[str, str]:
    for ending in ENDINGS:
        path = folder / (stem + ending)
        if path.is_dir() if ending == "" else path.is_file():
            return path.name, sha256(path)
    raise ModelError(f"{folder} holds no {stem} in any of the formats {', '.join(filter(None, ENDINGS))}")


def sha256(path: Path) -> str:
    """Sha256 of a file, or of the names and digests of a folder's files; raises `OSError`.

    A file that has not changed is read once per process.
    """
    if path.is_dir():
        parts = [f"{part.name} {sha256(part)}\n" for part in sorted(path.iterdir()) if part.is_file()]
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    state = path.stat()
    return _sha256(path, state.st_mtime_ns, state.st_size)


@cache
def _sha256(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_hub(named: Named) -> Path:
    match = HUB.fullmatch(named.weights)
    if match is None:
        raise ModelError(
            f"{named.weights}: expected hf:OWNER/REPOSITORY@REVISION with the 40 digits of a commit, because a branch "
            "may change under a run"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError("weights from the hub need huggingface_hub: pip install 'varsearch[hub]'") from None
    p = named.published
    stems = (p.transformer_file, p.tokenizer_file)
    try:
        path = Path(
            snapshot_download(
                match["repository"],
                revision=match["revision"],
                allow_patterns=[pattern for stem in stems for pattern in (f"{stem}.*", f"{stem}/*")],
            )
        )
    except Exception as error:  # Whatever the network, the hub and its cache may raise.
        raise ModelError(f"cannot get {named.weights}: {(str(error) or repr(error)).splitlines()[0]}") from None
    _check_blobs(path)
    return path


def _check_blobs(snapshot: Path) -> None:
    """The hub's cache keeps large files under their sha256; a file that has another is damaged."""
    for path in sorted(snapshot.rglob("*")):
        blob = path.resolve().name
        if path.is_file() and re.fullmatch("[0-9a-f]{64}", blob) and sha256(path) != blob:
            raise ModelError(f"{path} is damaged: its sha256 is not {blob}; delete it to get it again")
