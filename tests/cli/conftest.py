from __future__ import annotations

from collections.abc import Iterator

import pytest

from varsearch.calibration import Calibration
from varsearch.search.setup import calibration


@pytest.fixture(scope="session", autouse=True)
def calibrated_once(mnist_calibration: Calibration) -> Iterator[None]:
    """Commands that run in this process and need a calibration get the session's, but not the one of other settings."""
    original = calibration.calibrate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            calibration,
            "calibrate",
            lambda model, protocol, **told: (
                mnist_calibration
                if (model.spec.fingerprint, protocol) == (mnist_calibration.fingerprint, mnist_calibration.protocol)
                else original(model, protocol, **told)
            ),
        )
        yield
