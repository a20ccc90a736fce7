"""Who sees whom in attention."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from varsearch.target import MAX_SIDE, Frozen


def _no_window_is_empty(window: tuple[tuple[int | None, ...], ...]) -> tuple[tuple[int | None, ...], ...]:
    if len({len(heads) for heads in window}) > 1:
        raise ValueError("rows of different lengths: each scale needs one entry per head")
    return () if all(radius is None for heads in window for radius in heads) else window


Radius = Annotated[int, Field(ge=0, le=MAX_SIDE)]


class SparseAttention(Frozen):
    """Local windows: `window[scale][head]` is a radius in cells, or None for full attention.

    A query sees the keys of every scale whose cell lies within the radius (both axes) of the query's own place,
    projected onto that scale's grid. Coarse maps smaller than the window are seen in full.
    """

    window: Annotated[tuple[tuple[Radius | None, ...], ...], AfterValidator(_no_window_is_empty)] = ()
