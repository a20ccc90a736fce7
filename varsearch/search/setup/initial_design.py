"""What a search starts from: the dense model, every published system that fits it, and hand-made policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from varsearch.calibration import Calibration, CalibrationProtocol
from varsearch.db import Store
from varsearch.db.rows import WAY_OUT
from varsearch.errors import Interrupted, StoreError
from varsearch.evaluators.calibrate import Step, calibrate, protocol_of
from varsearch.evaluators.faults import clean
from varsearch.models.image_model import ImageModel
from varsearch.models.noise import usual_noise
from varsearch.policy import Policy
from varsearch.search.core.source import Source, SourceKind
from varsearch.space.presets import presets, seeds
from varsearch.space.presets.assumed import assumed
from varsearch.target import DType, ModelSpec


@dataclass(frozen=True, slots=True)
class Starts:
    """Policies that a search tries first.

    Attributes:
        presets: published systems by name.
        seeds: hand-made policies by name, "dense" first.
        missing: why each of the other published systems is not among them.
        assumed: those of the published systems whose constants are the papers', because nothing was learnt of the
            model.
    """

    presets: dict[str, Policy]
    seeds: dict[str, Policy]
    missing: dict[str, str]
    assumed: tuple[str, ...] = ()

    @property
    def by_name(self) -> dict[str, Policy]:
        """All of them: dense, published systems, hand-made policies."""
        return {"dense": self.seeds["dense"], **self.presets, **self.seeds}

    @property
    def by_origin(self) -> dict[str, Policy]:
        """All of them in the same order, by the origin that their trials show."""
        kinds = {name: SourceKind.PRESET if name in self.presets else SourceKind.SEED for name in self.by_name}
        return {str(Source(kinds[name], name)): policy for name, policy in self.by_name.items()}


def known_calibration(store: Store, skeleton: ImageModel, protocol: CalibrationProtocol) -> Calibration | None:
    """What the database knows of the model's weights; `StoreError` if that is damaged."""
    known = store.calibration(skeleton.spec.identity, protocol)
    if known is not None and not known.fits(skeleton.spec):
        raise StoreError(
            f"the stored calibration of {skeleton.spec.name} is damaged: it is of another shape; "
            + WAY_OUT.format("calibration")
        )
    return known


def calibrated(
    skeleton: ImageModel,
    load: Callable[[str, DType], ImageModel],
    storage: str | Path,
    images: int = 50,
    seed: int = 0,
    on_start: Callable[[], None] = lambda: None,
    on_step: Callable[[Step], None] = lambda step: None,
    place: tuple[str, DType] = ("cpu", "float32"),
) -> Calibration:
    """What the database knows of the model's weights; a pass over it, told by `on_start` and stored, if nothing.

    Args:
        skeleton: the model, with or without weights.
        load: reads the weights, which are large and only needed for a pass, to a device and in a number format.
        storage: the database.
        images: images to watch.
        seed: of the images.
        on_start: called before a pass.
        on_step: told how far it is.
        place: device and number format of a pass.

    Raises:
        Interrupted: Ctrl-C. What was done is kept, and the same call goes on.
    """
    device, dtype = place
    protocol = protocol_of(skeleton, images, seed, usual_noise(device), dtype)
    with Store(storage) as store:
        known = known_calibration(store, skeleton, protocol)
        if known is not None:
            return known
        on_start()
        try:
            found = calibrate(load(device, dtype), protocol, keep=_kept(store, skeleton, protocol), on_step=on_step)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; what was calibrated is kept, and the same command goes on") from None
        finally:
            clean()
        return store.save_calibration(found)


def _kept(store: Store, skeleton: ImageModel, protocol: CalibrationProtocol) -> Path:
    """Where a calibration that is not done is kept: beside an SQLite file, else in the working folder."""
    url = store.url
    beside = url.database if url.get_backend_name() == "sqlite" and url.database else "varsearch"
    return Path(f"{beside}.calibration-{skeleton.spec.identity[:12]}-{protocol.digest[:12]}.pt")


def starts_for(
    spec: ModelSpec, calibration: Calibration | None, siblings: Sequence[ModelSpec], assume: bool = False
) -> Starts:
    """Everything that fits the model; `siblings` are smaller ones with the same tokenizer.

    Without a calibration the systems that need one are missing, or have the papers' constants where `assume` says so.
    """
    found, missing = presets(spec, calibration, siblings)
    if calibration is None and assume and spec.family != "mvar":
        unknown = set(missing)
        found, missing = presets(spec, assumed(spec), siblings)
        return Starts(found, seeds(spec), missing, tuple(name for name in found if name in unknown))
    return Starts(found, seeds(spec), missing)
