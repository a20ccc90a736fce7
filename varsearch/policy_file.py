"""The exported policy: one JSON file with the policy, the model it belongs to, and what was measured. Torch-free.

The format is described in docs/policy-format.md and by the JSON Schema beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from varsearch.errors import PolicyError
from varsearch.files import write_atomically
from varsearch.measurement import METRICS, Measurement, Origin
from varsearch.policy import Policy, describe
from varsearch.target import (
    MAX_BATCH,
    MAX_THREADS,
    DType,
    Frozen,
    GuidanceLayer,
    ModelSpec,
    Noise,
    Size,
    Strength,
    Target,
    Temperature,
    TopK,
    TopP,
)

MAX_BYTES = 16 * 2**20
"""Policy files are untrusted; none of ours comes near this size."""


class Envelope(Frozen):
    """Conditions under which the measurements hold; outside of them the policy runs, but nothing is promised."""

    image_size: tuple[Size, Size]
    batch_size: int = Field(ge=1, le=MAX_BATCH)
    guidance: Strength
    top_k: TopK
    top_p: TopP
    temperature: Temperature = 1.0
    guidance_layer: GuidanceLayer = 0


class Sample(Frozen):
    """A few images that the policy makes, by hash: same weights, same policy, same machine type, same pixels.

    `sha256` is of the uint8 images, one per label, drawn with `seed` by `threads` CPU threads, with
    this noise and in this number format.
    """

    seed: int = Field(ge=0)
    labels: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, max_length=1024)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    device: str
    device_type: Literal["cpu", "cuda"]
    threads: int = Field(ge=1, le=MAX_THREADS)
    torch: str
    noise: Noise = "mt19937"
    dtype: DType = "float32"


class Provenance(Frozen):
    """Where the policy came from, and whether its numbers were confirmed on fresh noise; files of old do not say."""

    run: str
    trial: int
    varsearch: str
    created: str
    confirmed: bool | None = None


class PolicyFile(Frozen):
    """Everything a deployment needs besides the weights; no `sample` where the search evaluated no quality."""

    schema_version: Literal[1] = 1
    model: ModelSpec
    target: Target
    origin: Origin
    policy: Policy
    measurements: tuple[Measurement, ...]
    envelope: Envelope
    sample: Sample | None = None
    provenance: Provenance

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.sample and max(self.sample.labels) >= self.model.classes:
            raise ValueError(f"sample.labels: {max(self.sample.labels)} is not below {self.model.classes} classes")
        if self.envelope.image_size != self.model.image_size:
            raise ValueError(f"envelope.image_size is {self.envelope.image_size}, the model's {self.model.image_size}")
        names = [m.metric for m in self.measurements]
        wrong = [name for name in names if name not in METRICS or names.count(name) > 1]
        if wrong:
            raise ValueError(f"measurements: {wrong[0]!r} is unknown or there twice")
        return self

    @classmethod
    def parse(cls, text: str | bytes, name: str) -> Self:
        """A policy file from its JSON; `name` stands for it in the `PolicyError` that says what is wrong."""
        try:
            file = cls.model_validate_json(text)
            json.loads(text, object_pairs_hook=_without_repeats)
        except ValidationError as error:
            raise PolicyError(f"{name} is not a policy file: {describe(error)}") from None
        except ValueError as error:
            raise PolicyError(f"{name} is not a policy file: {error}") from None
        file.policy.check(file.model)
        return file

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads and validates `path`."""
        try:
            if path.stat().st_size > MAX_BYTES:
                raise PolicyError(f"{path} is too large to be a policy file")
            return cls.parse(path.read_bytes(), str(path))
        except OSError as error:
            raise PolicyError(f"cannot read policy {path}: {error.strerror}") from None

    def write(self, path: Path) -> None:
        """Writes the file in full, defaults included, or not at all."""
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    def check_model(self, spec: ModelSpec) -> None:
        """Raises `PolicyError` unless `spec` is exactly the model that the policy was made for."""
        if spec.fingerprint != self.model.fingerprint:
            raise PolicyError(
                f"policy was made for {self.model.name} with weights {self.model.fingerprint[:12]}…, "
                f"this is {spec.name} with weights {spec.fingerprint[:12]}…"
            )
        # A policy does not depend on what images are asked for.
        free = {"classes", "prompts"} if spec.family == "infinity" else set()
        for (field, filed), (_, found) in zip(self.model, spec, strict=True):
            if filed != found and field not in free:
                raise PolicyError(f"policy was made for a model with {field} {filed!r}, this one has {found!r}")
        self.policy.check(spec)

    @property
    def values(self) -> dict[str, float]:
        """Metric name to value."""
        return {m.metric: m.value for m in self.measurements}


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuses the names that JSON readers disagree about: which of two equal ones counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice in one object")
    return found
