"""The exported policy: one JSON file with the policy, the model it belongs to, and what was measured. Torch-free.

The format is described in docs/policy-format.md and by the JSON Schema beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError

from varsearch.errors import PolicyError
from varsearch.files import write_atomically
from varsearch.measurement import Measurement, Origin
from varsearch.policy import Policy, describe
from varsearch.target import Frozen, ModelSpec, Target

MAX_BYTES = 16 * 2**20
"""Policy files are untrusted; none of ours comes near this size."""


class Envelope(Frozen):
    """Conditions under which the measurements hold; outside of them the policy runs, but nothing is promised."""

    image_size: tuple[int, int]
    batch_size: int
    guidance: float
    top_k: int
    top_p: float


class Sample(Frozen):
    """A few images that the policy makes, by hash: same weights, same policy, same machine type, same pixels.

    `sha256` is of the uint8 images, one per label, drawn with `seed` in one batch by `threads` CPU threads.
    """

    seed: int
    labels: tuple[int, ...]
    sha256: str
    device: str
    device_type: Literal["cpu", "cuda"]
    threads: int
    torch: str


class Provenance(Frozen):
    """Where the policy came from."""

    run: str
    trial: int
    varsearch: str
    created: str


class PolicyFile(Frozen):
    """Everything a deployment needs besides the weights."""

    schema_version: Literal[1] = 1
    model: ModelSpec
    target: Target
    origin: Origin
    policy: Policy
    measurements: tuple[Measurement, ...]
    envelope: Envelope
    sample: Sample
    provenance: Provenance

    @classmethod
    def parse(cls, text: str | bytes, name: str) -> Self:
        """A policy file from its JSON; `name` stands for it in the `PolicyError` that says what is wrong."""
        try:
            file = cls.model_validate_json(text)
        except ValidationError as error:
            raise PolicyError(f"{name} is not a policy file: {describe(error)}") from None
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
        self.policy.check(spec)
        if spec.fingerprint != self.model.fingerprint:
            raise PolicyError(
                f"policy was made for {self.model.name} with weights {self.model.fingerprint[:12]}…, "
                f"this is {spec.name} with weights {spec.fingerprint[:12]}…"
            )

    @property
    def values(self) -> dict[str, float]:
        """Metric name to value."""
        return {m.metric: m.value for m in self.measurements}
