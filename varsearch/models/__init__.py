"""Visual autoregressive models with the seams that techniques act on."""

from varsearch.models.image_model import ImageModel, SamplingDefaults
from varsearch.models.zoo import load

__all__ = ["ImageModel", "SamplingDefaults", "load"]
