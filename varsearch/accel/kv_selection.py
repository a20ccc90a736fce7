"""Scores by which heads choose the entries that their budgets are filled with.

HACK (arXiv 2504.09261) and ScaleKV (arXiv 2505.19602) let some queries of the current scale observe: an entry's score
is the softmax attention that they give it, on average. ScaleKV's code leaves the softmax out and takes queries without
their bias, norm and rotary positions, while the keys have them; here the score is the attention that takes place.
HACK++ (arXiv 2606.08302) needs no query for structural heads: it multiplies what the head is known to pay to an entry's
scale by the norm of the entry's value.

Shape suffixes: B rows, H heads, L tokens of the current scale, S entries in ascending order of their positions
(history, then the L new ones), O observing queries, N chosen entries, J scales, T positions, C head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import isqrt, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from varsearch.policy import Selection

Sizes = tuple[tuple[int, int], ...]

SINK, CENTRE, RECENT = 4.0, 2.0, 1.0
"""Added to the scores, which lie within 0 and 1, of entries that are always kept, so that they come in this order."""

OWN = 2.0**-10
"""Weight of an entry's own score beside its neighbourhood's: entries that pool the same neighbours tie without it."""


class Scorer:
    """Scores the entries of heads whose rules differ in nothing but the prior."""

    def __init__(self, rules: Sequence[Selection], sizes: Sizes) -> None:
        self.rule, self.sizes = rules[0], sizes
        self.starts = [sum(prod(size) for size in sizes[:k]) for k in range(len(sizes) + 1)]
        priors_KHJ = zip(*(rule.prior for rule in rules), strict=True)
        self.prior_KHJ = [10 ** (np.array(decibels_HJ) / -10) for decibels_HJ in priors_KHJ]
        self.tables: dict[tuple[str, int, torch.device], Tensor] = {}

    def __call__(self, scale: int, q_BHLC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, pos_BHS: Tensor) -> Tensor:
        """Scores at `scale`, (B, H, S), in single precision or better; `pos_BHS` may have one row and one head."""
        rule, length = self.rule, q_BHLC.shape[2]
        centre_BHO = self._centres(scale, pos_BHS[:, :1, -length:]).expand(*q_BHLC.shape[:2], -1) if rule.grid else None
        if self.prior_KHJ:
            score_BHS = self._expected(scale, v_BHSC, pos_BHS)
        elif centre_BHO is None:
            score_BHS = attention(spaced(q_BHLC, rule.queries), k_BHSC)
        else:
            score_BHS = attention(take(q_BHLC, centre_BHO), k_BHSC)
        if rule.pool:
            score_BHS = pooled(score_BHS, rule.pool, rule.kernel)
        if rule.sinks:
            score_BHS = score_BHS + SINK * (pos_BHS < self.starts[min(rule.sinks, len(self.sizes))])
        if centre_BHO is not None:
            place_BHO = centre_BHO + (k_BHSC.shape[2] - length)
            score_BHS = score_BHS.scatter_add(2, place_BHO, score_BHS.new_full((), CENTRE).expand_as(place_BHO))
        if rule.recent:
            score_BHS = score_BHS + RECENT * (pos_BHS >= self.starts[scale])
        return score_BHS

    def _centres(self, scale: int, pos_BHL: Tensor) -> Tensor:
        """Indices of the tokens at, or after pruning nearest to, the centres of the grid, (B or 1, 1, O)."""
        side = isqrt(self.rule.queries)
        count = min(prod(min(side, n) for n in self.sizes[scale]), pos_BHL.shape[2])
        rank_T = self._table("rank", scale, pos_BHL.device, lambda: centre_rank(self.sizes[scale], side))
        rank_BHL = rank_T[pos_BHL.long() - self.starts[scale]]
        return rank_BHL.topk(count, largest=False).indices

    def _expected(self, scale: int, v_BHSC: Tensor, pos_BHS: Tensor) -> Tensor:
        """HACK++'s structural score, relative to the best."""
        norm_BHS = v_BHSC.norm(dim=-1, dtype=precise(v_BHSC.dtype))
        tokens = [prod(size) for size in self.sizes[: scale + 1]]
        scale_T = self._table("scale", scale, v_BHSC.device, lambda: np.repeat(np.arange(scale + 1), tokens))
        scale_BHS = scale_T[pos_BHS.long()].expand_as(norm_BHS)
        prior_HJ = self._table("prior", scale, v_BHSC.device, lambda: self.prior_KHJ[scale]).to(norm_BHS)
        score_BHS = prior_HJ.expand(len(norm_BHS), -1, -1).gather(2, scale_BHS) * norm_BHS
        best_BH1 = score_BHS.amax(dim=-1, keepdim=True)
        return score_BHS / best_BH1.clamp_min(torch.finfo(score_BHS.dtype).tiny)

    def _table(self, name: str, scale: int, device: torch.device, make: Callable[[], npt.NDArray[Any]]) -> Tensor:
        """A table of a scale where it is needed; it is made and copied there once."""
        if (name, scale, device) not in self.tables:
            self.tables[name, scale, device] = torch.from_numpy(make()).to(device)
        return self.tables[name, scale, device]


def spaced(q_BHLC: Tensor, count: int) -> Tensor:
    """About `count` queries, evenly spaced."""
    step = max(1, q_BHLC.shape[2] // count)
    return q_BHLC[:, :, step // 2 :: step]


def attention(q_BHOC: Tensor, k_BHSC: Tensor) -> Tensor:
    """Mean softmax attention of the queries to each entry, (B, H, S)."""
    product_BHOS = q_BHOC @ k_BHSC.mT
    return product_BHOS.softmax(dim=-1, dtype=precise(product_BHOS.dtype)).mean(dim=2)


def pooled(score_BHS: Tensor, pool: str, kernel: int) -> Tensor:
    """Mean or largest score of an entry and its neighbours; beyond the ends it is 0."""
    near_BHSk = F.pad(score_BHS, (kernel // 2, kernel // 2)).unfold(-1, kernel, 1)
    return torch.lerp(near_BHSk.mean(dim=-1) if pool == "mean" else near_BHSk.amax(dim=-1), score_BHS, OWN)


def best(score_BHS: Tensor, counts: set[int]) -> dict[int, Tensor]:
    """Per count, the indices of so many highest scores, ascending, (B, H, count)."""
    order_BHN = score_BHS.topk(max(counts), dim=-1, sorted=len(counts) > 1).indices
    return {count: order_BHN[..., :count].sort(dim=-1).values for count in counts}


def take(t_BHSC: Tensor, index_BHN: Tensor) -> Tensor:
    """The entries at these indices, (B, H, N, C)."""
    rows, heads, length, _ = t_BHSC.shape
    # Whole entries by one index each are copied several times faster than by `gather`, which takes one per number.
    start_BH1 = torch.arange(0, rows * heads * length, length, device=t_BHSC.device).view(rows, heads, 1)
    taken = t_BHSC.flatten(0, 2).index_select(0, (start_BH1 + index_BHN).flatten())
    return taken.unflatten(0, index_BHN.shape)


def precise(dtype: torch.dtype) -> torch.dtype:
    """Single precision, or better where `dtype` is: half precision has too few steps between scores."""
    return torch.promote_types(dtype, torch.float32)


@lru_cache(maxsize=256)
def centre_rank(size: tuple[int, int], side: int) -> npt.NDArray[Any]:
    """Rank of each cell in raster order by its distance to the nearest centre of a `side` x `side` grid, (T).

    The centre of part i of g is cell ceil((2 i + 1) n / 2 g) - 1 of n. Where g divides n, that is the cell in ScaleKV's
    code; where it does not, the code leaves the end of the axis out. Maps smaller than the grid are seen in full.
    """
    squared = []
    for n in size:
        g = min(side, n)
        centre_G = np.array([-(-(2 * i + 1) * n // (2 * g)) - 1 for i in range(g)])
        squared.append(((np.arange(n)[:, None] - centre_G) ** 2).min(1))
    distance_T = (squared[0][:, None] + squared[1]).ravel()
    return distance_T.argsort(kind="stable").argsort()
