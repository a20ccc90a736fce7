"""Statistics of attention maps, each summed over images as they come.

A map may be some of the queries alone, one behind the other: means over queries are then of these.

Shape suffixes: B rows, H heads, L queries of scale k, S keys of scales 0..k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from varsearch.calibration import widths

NOISE = 0.003
"""Attention below this counts as none in LiteVAR's calibration."""

TOP = 0.1
"""Share of earlier keys that ScaleKV's index counts; the paper calls it the top K' and gives no figure."""


def column_moments(map_BHLS: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over queries of each key's attention and of its square, each (B, H, S) float64."""
    map_BHLS = map_BHLS.double()
    return map_BHLS.sum(2), map_BHLS.square().sum(2)


def column_variance(sum_BHS: Tensor, squares_BHS: Tensor, queries: int) -> Tensor:
    """Variance of each key's attention over so many queries, summed over keys, mean over rows: (H)."""
    variance_BHS = squares_BHS / queries - (sum_BHS / queries).square()
    return variance_BHS.sum(-1).mean(0)


def scale_mass(map_BHLS: Tensor, tokens: Sequence[int]) -> Tensor:
    """Mean attention of a query to each scale, (H, number of scales)."""
    return torch.stack([part.sum(-1).mean((0, 2)) for part in map_BHLS.split(list(tokens), dim=-1)], dim=-1)


def band_mass(map_BHLS: Tensor, tokens: Sequence[int], first: int = 0) -> list[Tensor]:
    """Per key scale the attention within each of `widths` of the query's place, (H, widths).

    Summed over queries, of which `first` is the first of the scale's, and mean over rows.

    Query i of L and key j of L_j are |i L_j / L - j| apart, in raster order; a half-width w holds distances below it.
    The last width holds the whole map, so dividing by its entry gives shares.
    """
    length, queries = tokens[-1], range(first, first + map_BHLS.shape[2])
    found = []
    for part_BHLJ in map_BHLS.where(map_BHLS >= NOISE, 0).split(list(tokens), dim=-1):
        n = part_BHLJ.shape[-1]
        place_L = torch.arange(queries.start, queries.stop, device=part_BHLJ.device) * n
        # floor of the distance in integers: |i n - j L| // L
        apart_LJ = (place_L[:, None] - torch.arange(n, device=place_L.device) * length).abs() // length
        inside_WLJ = apart_LJ < torch.tensor(widths(n), device=place_L.device)[:, None, None]
        inside_WLJ[-1] = True
        mass_HLJ = part_BHLJ.mean(0)
        found.append(mass_HLJ.flatten(1) @ inside_WLJ.flatten(1).to(mass_HLJ).T)
    return found


def history_top(map_BHLS: Tensor, length: int) -> Tensor:
    """Attention to the best tenth of the keys before the last `length`, mean over rows, heads and queries."""
    history_BHLS = map_BHLS[..., : map_BHLS.shape[-1] - length]
    if not history_BHLS.shape[-1]:
        return map_BHLS.new_zeros(())
    return history_BHLS.topk(math.ceil(TOP * history_BHLS.shape[-1]), dim=-1).values.sum(-1).mean()


def entropy(map_BHLS: Tensor) -> Tensor:
    """Entropy of each query's attention in nats, mean over heads, (B, L)."""
    return torch.special.entr(map_BHLS).sum(-1).mean(1)


def entropy_ratio(entropy_BL: Tensor, size: tuple[int, int]) -> Tensor:
    """First over second singular value of the map of entropies of all queries, mean over rows."""
    if min(size) < 2:
        return entropy_BL.new_ones(())
    wide = torch.promote_types(entropy_BL.dtype, torch.float32)
    values_BR = torch.linalg.svdvals(entropy_BL.unflatten(1, size).to(wide))
    return (values_BR[:, 0] / values_BR[:, 1].clamp_min(torch.finfo(torch.float32).eps)).mean()
