"""What a search starts from: the dense model, every published system that fits it, and hand-made policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from varsearch.calibration import Calibration
from varsearch.db import Store
from varsearch.db.rows import WAY_OUT
from varsearch.errors import StoreError
from varsearch.evaluators.calibrate import calibrate, protocol_of
from varsearch.models.image_model import ImageModel
from varsearch.policy import Policy
from varsearch.search.core.source import Source, SourceKind
from varsearch.space.presets import presets, seeds
from varsearch.target import ModelSpec


@dataclass(frozen=True, slots=True)
class Starts:
    """Policies that a search tries first.

    Attributes:
        presets: published systems by name.
        seeds: hand-made policies by name, "dense" first.
        missing: why each of the other published systems is not among them.
    """

    presets: dict[str, Policy]
    seeds: dict[str, Policy]
    missing: dict[str, str]

    @property
    def by_name(self) -> dict[str, Policy]:
        """All of them: dense, published systems, hand-made policies."""
        return {"dense": self.seeds["dense"], **self.presets, **self.seeds}

    @property
    def by_origin(self) -> dict[str, Policy]:
        """All of them in the same order, by the origin that their trials show."""
        kinds = {name: SourceKind.PRESET if name in self.presets else SourceKind.SEED for name in self.by_name}
        return {str(Source(kinds[name], name)): policy for name, policy in self.by_name.items()}


def calibrated(
    skeleton: ImageModel,
    load: Callable[[], ImageModel],
    storage: str | Path,
    images: int = 50,
    seed: int = 0,
    on_start: Callable[[], None] = lambda: None,
) -> Calibration:
    """What the database knows of the model's weights; a pass over it, told by `on_start` and stored, if nothing.

    Args:
        skeleton: the model, with or without weights.
        load: reads the weights, which are large and only needed for a pass.
        storage: the database.
        images: images to watch.
        seed: of the images.
        on_start: called before a pass.
    """
    protocol, spec = protocol_of(skeleton, images, seed), skeleton.spec
    with Store(storage) as store:
        known = store.calibration(spec.identity, protocol)
        if known is not None and not known.fits(spec):
            raise StoreError(
                f"the stored calibration of {spec.name} is damaged: it is of another shape; "
                + WAY_OUT.format("calibration")
            )
        if known is not None:
            return known
        on_start()
        return store.save_calibration(calibrate(load(), protocol))


def starts_for(spec: ModelSpec, calibration: Calibration | None, siblings: Sequence[ModelSpec]) -> Starts:
    """Everything that fits the model; `siblings` are smaller ones with the same tokenizer.

    Without a calibration, which a model without trained weights cannot have, the systems that need one are missing.
    """
    found, missing = presets(spec, calibration, siblings)
    return Starts(found, seeds(spec), missing)
