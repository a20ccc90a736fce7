"""A smaller model for the late scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from varsearch.policy.scales import ScalePolicy
from varsearch.target import Frozen


class Refiner(Frozen):
    """Another model with the same tokenizer runs `first_scale` and all later scales (CoDe, arXiv 2411.17787).

    It reads all earlier scales in one pass and runs dense. `model` is found by name beside the model that the policy
    is for, `fingerprint` is the sha256 of its weights.
    """

    model: Annotated[str, Field(pattern=r"^[\w-]+$")]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    first_scale: Annotated[int, Field(ge=1)]

    def check_scales(self, scales: Sequence[ScalePolicy]) -> None:
        """Raises `ValueError` if the refiner has no scale, or one with settings of the model's own layers."""
        if self.first_scale >= len(scales):
            raise ValueError(f"refiner.first_scale is {self.first_scale}, but the last scale is {len(scales) - 1}")
        for k, scale in enumerate(scales[self.first_scale :], start=self.first_scale):
            if scale.guidance == "shared" or scale.tokens is not None:
                raise ValueError(f"scales[{k}] names layers of the model, but the refiner runs this scale")
