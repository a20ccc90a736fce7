"""Who sees whom in attention."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from varsearch.policy.grid import Share
from varsearch.target import MAX_SIDE, Frozen

Radius = Annotated[int, Field(ge=0, le=MAX_SIDE)]
Width = Annotated[int, Field(ge=0, le=MAX_SIDE**2)]
Reach = int | tuple[int | None, ...] | None
"""What a head sees at a scale: within this distance on every map, or on each key scale's map; None is everything."""


def _one_for_all(reach: Reach) -> Reach:
    """A list of equal entries is that entry, so that equal policies are equal."""
    return reach[0] if isinstance(reach, tuple) and len(set(reach)) == 1 else reach


def _one_per_head(rows: tuple[tuple[Reach, ...], ...]) -> tuple[tuple[Reach, ...], ...]:
    if len({len(heads) for heads in rows}) > 1:
        raise ValueError("rows of different lengths: each scale needs one entry per head")
    for k, heads in enumerate(rows):
        for reach in heads:
            if isinstance(reach, tuple) and len(reach) != k + 1:
                raise ValueError(f"scale {k} sees the maps of scales 0..{k}, got {len(reach)} entries")
    return () if all(reach is None for heads in rows for reach in heads) else rows


Window = Annotated[Radius | tuple[Radius | None, ...] | None, AfterValidator(_one_for_all)]
Band = Annotated[Width | tuple[Width | None, ...] | None, AfterValidator(_one_for_all)]


class CrossScale(Frozen):
    """Keys chosen at one scale for all later ones (SparVAR's CS4A, arXiv 2602.04361).

    Attention is dense at `decision_scale`, and each head and group of queries notes its `keys` (a share of that scale's
    keys) of most attention. A group of a later scale sees the same places relative to its own scale, the first
    `sink_scales` in full, and its own map within `radius[k - decision_scale]` cells. `groups` equal parts of the
    raster order make the groups of every scale. `residual` adds what the sparse attention misses at the decision
    scale, upsampled.
    """

    decision_scale: Annotated[int, Field(ge=0)]
    keys: Share
    sink_scales: Annotated[int, Field(ge=1)]
    radius: tuple[Radius, ...]
    groups: Annotated[int, Field(ge=1, le=1024)] = 8
    residual: bool = True


class SparseAttention(Frozen):
    """What each head sees at each scale; None is everything.

    `window[scale][head]` is a radius in cells. A query sees the cells of a map that lie within the radius (both axes)
    of the query's own place, projected onto that map's grid. A list gives each key scale 0..scale its own radius.

    `band[scale][head]` is a half-width in raster order (LiteVAR, arXiv 2411.17178). Query i of L sees key j of L_j if
    |i L_j / L - j| is smaller; 0 drops a map. A list gives each key scale its own width.

    A head with both sees what both show. A query that sees no key gets zeros.
    """

    window: Annotated[tuple[tuple[Window, ...], ...], AfterValidator(_one_per_head)] = ()
    band: Annotated[tuple[tuple[Band, ...], ...], AfterValidator(_one_per_head)] = ()
    cross_scale: CrossScale | None = None

    @model_validator(mode="after")
    def _cross_scale_stands_alone(self) -> Self:
        if self.cross_scale is not None:
            first = self.cross_scale.decision_scale
            for name, rows in (("window", self.window), ("band", self.band)):
                if any(reach is not None for heads in rows[first:] for reach in heads):
                    raise ValueError(f"{name} and cross_scale both say what scales from {first} on see: choose one")
        return self
