"""Names of all models, known without torch, so that a wrong name is refused at once."""

from __future__ import annotations

import os
import re
from pathlib import Path

from varsearch.errors import ModelError

WEIGHTS = Path(__file__).parent / "weights"

UNTRAINED = {"cifar10": "it was never trained; python -m recipes.cifar10 DATA OUT trains it on a CUDA device"}
"""Models that a recipe makes and whose weights do not ship yet."""

PUBLISHED_NAMES = (
    *(f"var-d{depth}" for depth in (16, 20, 24, 30, 36)),
    *(f"mvar-d{depth}" for depth in (12, 16, 20, 24, 30, 32)),
    *(f"infinity-{size}" for size in ("125m", "2b", "8b")),
)
"""In the order of `published.PUBLISHED`, which has their shapes and needs torch."""


def names() -> list[str]:
    """Names of the shipped models."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/manifest.json"))


def unknown(model: str) -> ModelError:
    """The error for a name that no model has."""
    return ModelError(
        f"unknown model {model!r}: shipped models are {', '.join(names())}, published ones "
        f"{', '.join(PUBLISHED_NAMES)}, or give a model's folder"
    )


def refuse_unknown(model: str) -> None:
    """Raises `ModelError` for a word that is no model's name; a path is judged when it is opened."""
    word = re.split("[@#]", model, maxsplit=1)[0]
    is_path = any(mark in model for mark in ("/", os.sep, "~", "."))
    known = word.partition(":")[0] in PUBLISHED_NAMES or model in names() or model in UNTRAINED
    if not is_path and not known:
        raise unknown(model)
