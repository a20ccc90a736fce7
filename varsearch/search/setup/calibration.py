"""The calibration of a model: read from the database, or made once and stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from varsearch.calibration import Calibration, CalibrationProtocol
from varsearch.db import Store
from varsearch.db.rows import WAY_OUT
from varsearch.errors import Interrupted, StoreError
from varsearch.evaluators.calibrate import Step, calibrate, protocol_of
from varsearch.evaluators.faults import clean
from varsearch.models.image_model import ImageModel
from varsearch.models.noise import usual_noise
from varsearch.target import DType

IMAGES = 50
"""Published systems calibrate on as many images."""


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
    *,
    images: int = IMAGES,
    seed: int = 0,
    on_start: Callable[[], None] = lambda: None,
    on_step: Callable[[Step], None] = lambda step: None,
    place: tuple[str, DType] = ("cpu", "float32"),
) -> Calibration:
    """What the database knows of the model's weights; if nothing, one pass over the model.

    Args:
        skeleton: the model, with or without weights.
        load: reads the weights to a device and in a number format; only a pass needs them.
        storage: the database, which keeps the result.
        images: images to watch.
        seed: of the images.
        on_start: called before a pass.
        on_step: called after every batch of a pass.
        place: device and number format of a pass.

    Raises:
        Interrupted: Ctrl-C. What was done is kept, and the same call goes on.
        StoreError: the stored calibration is damaged.
    """
    device, dtype = place
    protocol = protocol_of(skeleton, images, seed, usual_noise(device), dtype)
    with Store(storage) as store:
        known = known_calibration(store, skeleton, protocol)
        if known is not None:
            return known
        on_start()
        keep = _kept(store, skeleton, protocol)
        try:
            found = calibrate(load(device, dtype), protocol, keep=keep, on_step=on_step)
        except KeyboardInterrupt:
            message = "interrupted; what was calibrated is kept, and the same command goes on"
            raise Interrupted(message) from None
        finally:
            clean()
        return store.save_calibration(found)


def _kept(store: Store, skeleton: ImageModel, protocol: CalibrationProtocol) -> Path:
    """The file of an unfinished calibration: beside an SQLite file, else in the working folder."""
    url = store.url
    beside = url.database if url.get_backend_name() == "sqlite" and url.database else "varsearch"
    identity = f"{skeleton.spec.identity[:12]}-{protocol.digest[:12]}"
    return Path(f"{beside}.calibration-{identity}.pt")
