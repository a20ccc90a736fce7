"""What it means that a head prefers some entries, entry by entry."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varsearch.policy import Selection

Sizes = tuple[tuple[int, int], ...]


def ranked(
    rule: Selection, sizes: Sizes, k: int, queries: dict[int, Tensor], keys: dict[int, Tensor], values: Tensor
) -> list[int]:
    """Positions of all keys, best first; `queries` and `keys` are vectors by position, `values` has one for each."""
    scale_of = [j for j, (h, w) in enumerate(sizes) for _ in range(h * w)]
    alive = sorted(keys)
    observers = centres(rule, sizes, k, sorted(queries)) if rule.grid else spaced(rule, sorted(queries))
    if rule.prior:
        score = {t: 10 ** (-rule.prior[k][scale_of[t]] / 10) * values[t].norm().item() for t in alive}
        most = max(score.values())
        score = {t: value / most for t, value in score.items()}
    else:
        product = torch.stack([queries[i] for i in observers]) @ torch.stack([keys[t] for t in alive]).T
        score = dict(zip(alive, product.softmax(-1).mean(0).tolist(), strict=True))
    if rule.pool:
        score = pooled(rule, alive, score)
    always = {
        t: (scale_of[t] < rule.sinks, rule.grid and t in observers, rule.recent and scale_of[t] == k) for t in alive
    }
    return sorted(alive, key=lambda t: (always[t], score[t]), reverse=True)


def spaced(rule: Selection, queries: list[int]) -> list[int]:
    step = max(1, len(queries) // rule.queries)
    return queries[step // 2 :: step]


def centres(rule: Selection, sizes: Sizes, k: int, queries: list[int]) -> list[int]:
    """The queries closest to a centre of the grid, as many as there are centres."""
    (height, width), start = sizes[k], sum(h * w for h, w in sizes[:k])
    parts = [min(math.isqrt(rule.queries), n) for n in (height, width)]
    grid = [
        (math.ceil((y + 0.5) * height / parts[0] - 1e-9) - 1, math.ceil((x + 0.5) * width / parts[1] - 1e-9) - 1)
        for y in range(parts[0])
        for x in range(parts[1])
    ]

    def distance(t: int) -> tuple[int, int]:
        y, x = divmod(t - start, width)
        return min((y - cy) ** 2 + (x - cx) ** 2 for cy, cx in grid), t

    return sorted(queries, key=distance)[: len(grid)]


def pooled(rule: Selection, alive: list[int], score: dict[int, float]) -> dict[int, float]:
    reach, found = rule.kernel // 2, {}
    for i, t in enumerate(alive):
        near = [score[u] for u in alive[max(0, i - reach) : i + reach + 1]]
        around = sum(near) / rule.kernel if rule.pool == "mean" else max(near)
        found[t] = around + (score[t] - around) / 1024
    return found
