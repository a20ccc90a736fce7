"""Comparisons in double precision, for results that hang on a decision.

A token, a rounded activation or a threshold turns the last place of a number into a step, and processors differ in the
last place. In double precision that happens as good as never, and steps and rounding are far apart.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tests.conftest import build_tiny
from varsearch.models.image_model import ImageModel


@cache
def exact(shared_adaln: bool = False, cosine: bool = True) -> ImageModel:
    """The tiny model, and the one beside it, in double precision."""
    model = build_tiny(shared_adaln, cosine)
    for part in (model.transformer, model.tokenizer, model.sibling("small").transformer):
        part.double()
    return model


def same_images(found: Tensor, want: Tensor) -> None:
    """The same tokens were drawn: another one moves pixels by 1e-3 and more, rounding in the decoder by 1e-13."""
    assert found.dtype == want.dtype == torch.float64
    torch.testing.assert_close(found, want, atol=1e-10, rtol=0)
