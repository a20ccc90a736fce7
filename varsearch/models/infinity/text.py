"""Text conditioning: features of prompts, which the text encoder made before, so that it need not be resident.

Shape suffixes: N prompts, T features of the longest prompt, C text channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from varsearch.errors import ModelError
from varsearch.models.seams import Rows

NEGATIVE = "negative."
"""Before the names of tensors of negative prompts, in a file."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Features of N prompts, padded to the longest.

    Args:
        features_NTC: what the text encoder says of each word piece.
        present_NT: where they are not padding; None if nowhere is any.
        negative: as many prompts that guidance leads away from; None leads away from the learnt empty prompt.
    """

    features_NTC: Tensor
    present_NT: Tensor | None = None
    negative: Prompts | None = None

    def __post_init__(self) -> None:
        if self.negative is not None and len(self.negative) != len(self):
            raise ModelError(f"{len(self.negative)} negative prompts for {len(self)} prompts")

    @classmethod
    def of(cls, features: Sequence[Tensor], negative: Prompts | None = None) -> Prompts:
        """Prompts from their features (T_i, C); `ModelError` unless there are prompts with a feature each."""
        if not features or not all(map(len, features)):
            raise ModelError(f"prompts need at least one feature each, got {[len(f_TC) for f_TC in features]}")
        longest = max(map(len, features))
        if min(map(len, features)) == longest:
            return cls(torch.stack(list(features)), None, negative)
        padded = torch.stack([F.pad(f_TC, (0, 0, 0, longest - len(f_TC))) for f_TC in features])
        present = [torch.arange(longest, device=padded.device) < len(f_TC) for f_TC in features]
        return cls(padded, torch.stack(present), negative)

    def __len__(self) -> int:
        return len(self.features_NTC)

    def take(self, rows: Rows) -> Prompts:
        """These prompts only."""
        return Prompts(
            rows(self.features_NTC),
            None if self.present_NT is None else rows(self.present_NT),
            None if self.negative is None else self.negative.take(rows),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Prompts:
        """The same on another device and with features of another dtype."""
        return Prompts(
            self.features_NTC.to(device, dtype),
            None if self.present_NT is None else self.present_NT.to(device),
            None if self.negative is None else self.negative.to(device, dtype),
        )

    def followed_by(self, other: Prompts) -> Prompts:
        """These and then the others, without negatives."""
        longest = max(self.features_NTC.shape[1], other.features_NTC.shape[1])
        parts = [_padded(part, longest) for part in (self, other)]
        features_NTC = torch.cat([features for features, _ in parts])
        if all(present is None for _, present in parts):
            return Prompts(features_NTC)
        everywhere = features_NTC.new_ones(1, longest, dtype=torch.bool)
        present = [everywhere.expand(len(f), -1) if present is None else present for f, present in parts]
        return Prompts(features_NTC, torch.cat(present))


def _padded(prompts: Prompts, length: int) -> tuple[Tensor, Tensor | None]:
    features_NTC, present_NT = prompts.features_NTC, prompts.present_NT
    missing = length - features_NTC.shape[1]
    if not missing:
        return features_NTC, present_NT
    if present_NT is None:
        present_NT = features_NTC.new_ones(features_NTC.shape[:2], dtype=torch.bool)
    return F.pad(features_NTC, (0, 0, 0, missing)), F.pad(present_NT, (0, missing))


def load_prompts(path: Path | str) -> Prompts:
    """Prompts from a safetensors file that `save_prompts` wrote, on the CPU.

    Raises:
        ModelError: no such file, or its tensors are not features and lengths of prompts.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"cannot read prompts from {path}: {reason}") from None
    prompts = Prompts.of(_split(path, found, ""))
    if NEGATIVE + "features" not in found:
        return prompts
    return replace(prompts, negative=Prompts.of(_split(path, found, NEGATIVE)))


def _split(path: Path | str, found: dict[str, Tensor], prefix: str) -> tuple[Tensor, ...]:
    features, lengths = found.get(prefix + "features"), found.get(prefix + "lengths")
    if features is None or lengths is None or features.ndim != 2 or lengths.ndim != 1 or not len(lengths):
        shapes = {name: tuple(t.shape) for name, t in found.items()}
        raise ModelError(f"{path}: expected features (sum of lengths, channels) and lengths (prompts,), got {shapes}")
    if lengths.is_floating_point() or int(lengths.min()) < 1 or int(lengths.sum()) != len(features):
        raise ModelError(
            f"{path}: lengths must be at least 1 and add up to {len(features)} features, got {lengths.tolist()}"
        )
    return features.split(lengths.tolist())


def save_prompts(path: Path | str, features: Sequence[Tensor], negative: Sequence[Tensor] = ()) -> None:
    """Writes the features (T_i, C) of prompts, one behind the other, with their numbers.

    Args:
        path: file to write.
        features: of each prompt.
        negative: of as many prompts that guidance leads away from, or none.
    """
    save_file(_joined("", features) | (_joined(NEGATIVE, negative) if negative else {}), path)


def _joined(prefix: str, features: Sequence[Tensor]) -> dict[str, Tensor]:
    lengths = torch.tensor([len(f_TC) for f_TC in features])
    return {f"{prefix}features": torch.cat(list(features)).contiguous(), f"{prefix}lengths": lengths}
