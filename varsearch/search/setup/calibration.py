"""The calibration of a model: read from the database, or made once and stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from varsearch.calibration import Calibration
from varsearch.db import Store
from varsearch.db.rows import WAY_OUT
from varsearch.errors import StoreError
from varsearch.evaluators.calibrate import calibrate, protocol_of
from varsearch.models.image_model import ImageModel

IMAGES = 50
"""Published systems calibrate on as many images."""


def calibrated(
    skeleton: ImageModel,
    load: Callable[[], ImageModel],
    storage: str | Path,
    *,
    images: int = IMAGES,
    seed: int = 0,
    on_start: Callable[[], None] = lambda: None,
) -> Calibration:
    """What the database knows of the model's weights; if nothing, one pass over the model.

    Args:
        skeleton: the model, with or without weights.
        load: reads the weights, which are large and only a pass needs them.
        storage: the database, which keeps the result.
        images: images to watch.
        seed: of the images.
        on_start: called before a pass.

    Raises:
        StoreError: the stored calibration is damaged.
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
