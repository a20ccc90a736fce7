"""Visual autoregressive models with the seams that techniques act on.

Names are loaded on first use, because torch takes seconds and `names.py` needs none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varsearch.models.image_model import ImageModel, SamplingDefaults
    from varsearch.models.zoo import load

__all__ = ["ImageModel", "SamplingDefaults", "load"]

_HOMES = {
    "ImageModel": "varsearch.models.image_model",
    "SamplingDefaults": "varsearch.models.image_model",
    "load": "varsearch.models.zoo",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'varsearch.models' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
