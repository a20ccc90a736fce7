"""Types of the fields that policies are made of, and how a wrong one is told."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

GRID = 80
"""Fractions are multiples of 1/80, which holds all published ones: steps of 1/16 and of 5 %."""


def _on_grid(value: float) -> float:
    steps = round(value * GRID)
    if abs(steps / GRID - value) > 1e-9:
        raise ValueError(f"{value} is not a multiple of 1/{GRID}")
    return steps / GRID


def share_of(share: float, count: int) -> int:
    """`share` of `count`, rounded up, in integers: a product of floats may land above the whole number it means."""
    return -(-round(share * GRID) * count // GRID)


Share = Annotated[float, Field(ge=0, le=1), AfterValidator(_on_grid)]
Layer = Annotated[int, Field(ge=0)]


def describe(error: ValidationError) -> str:
    """The first problem of a validation error, in one line: where, what, and what was got."""
    first, more = error.errors()[0], error.error_count() - 1
    place = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        text = "unknown field"
    return f"{place + ': ' if place else ''}{text}" + (f" (and {more} more)" if more else "")
