"""What later scales see of a layer's keys and values."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from varsearch.policy.grid import Share
from varsearch.target import Frozen


def _keep_all_is_empty(keep: tuple[float, ...]) -> tuple[float, ...]:
    return () if all(share == 1 for share in keep) else keep


def _full_table_is_empty(table: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    if len({len(heads) for heads in table}) > 1:
        raise ValueError("rows of different lengths: each scale needs one entry per head")
    return () if all(share == 1 for heads in table for share in heads) else table


Decibels = Annotated[int, Field(ge=0, le=100)]
SomeShare = Annotated[Share, Field(gt=0)]


class Selection(Frozen):
    """Which entries a head prefers where its budget is too small for all.

    An entry's score is the attention that some queries of the current scale give it, on average.

    Args:
        queries: about how many queries observe, evenly spaced in raster order (HACK, arXiv 2504.09261, uses 32).
        grid: the observing queries are those at the centres of a square grid of so many cells, and their own entries
            are always kept (ScaleKV, arXiv 2505.19602, uses 4 x 4).
        pool: the score becomes the mean or the largest among neighbouring entries (ScaleKV's mean, HACK++'s largest).
        kernel: so many neighbours, the entry among them.
        sinks: the entries of so many first scales are always kept.
        recent: the entries of the current scale are always kept.
        prior: `prior[k][j]` is how much less, in decibels, a query of scale k attends to one entry of scale j than to
            one of the scale it likes best. The score then is this attention times the norm of the entry's value, and
            no query observes (HACK++, arXiv 2606.08302).

    Where a budget is too small for all that is always kept, sinks go first, then grid centres, then the current scale,
    each by score.
    """

    queries: Annotated[int, Field(ge=1, le=1024)] = 16
    grid: bool = False
    pool: Literal["mean", "max"] | None = None
    kernel: Literal[3, 5, 7] = 5
    sinks: Annotated[int, Field(ge=0, le=64)] = 0
    recent: bool = False
    prior: tuple[tuple[Decibels, ...], ...] = ()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.grid and math.isqrt(self.queries) ** 2 != self.queries:
            raise ValueError(f"a square grid needs a square number of queries, got {self.queries}")
        if any(len(row) != k + 1 for k, row in enumerate(self.prior)):
            raise ValueError("prior needs one entry per scale up to its own in each row")
        return self


class KVCompression(Frozen):
    """What a layer's queries see of keys and values, and what stays of them.

    Shares are of all tokens that the scales up to the current one ran.

    Args:
        keep: per head, the share that stays in the cache after each scale; an empty tuple keeps all, 0 leaves a head
            with its own scale only.
        cache_budget: `[scale][head]`, the same with different shares after each scale; the last row has no effect.
        attention_budget: `[scale][head]`, the share that the queries of a scale attend to, of its own keys too.
        selection: per head, which entries these budgets are filled with.
        bits: storage precision of keys and values.
    """

    keep: Annotated[tuple[Share, ...], AfterValidator(_keep_all_is_empty)] = ()
    cache_budget: Annotated[tuple[tuple[Share, ...], ...], AfterValidator(_full_table_is_empty)] = ()
    attention_budget: Annotated[tuple[tuple[SomeShare, ...], ...], AfterValidator(_full_table_is_empty)] = ()
    selection: tuple[Selection, ...] = ()
    bits: Literal[8, 4] | None = None

    @field_validator("selection", mode="after")
    @classmethod
    def _no_effect_is_empty(cls, rules: tuple[Selection, ...], info: ValidationInfo) -> tuple[Selection, ...]:
        budgets = any(info.data.get(name) for name in ("keep", "cache_budget", "attention_budget"))
        return rules if budgets and any(rule != Selection() for rule in rules) else ()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.keep and self.cache_budget:
            raise ValueError("keep is the budget after every scale and cache_budget after each: set one of them")
        return self

    def check_scales(self, layer: int, n_scales: int) -> None:
        """Raises `ValueError` if a table of this layer has another number of rows."""
        tables = {"cache_budget": self.cache_budget, "attention_budget": self.attention_budget}
        tables |= {f"selection[{i}].prior": rule.prior for i, rule in enumerate(self.selection)}
        for name, table in tables.items():
            if len(table) not in (0, n_scales):
                raise ValueError(f"layers[{layer}].kv.{name} has {len(table)} rows for {n_scales} scales")

    @property
    def head_counts(self) -> set[int]:
        """For how many heads the fields have entries; more than one number is a mistake."""
        rows = (self.keep, self.selection, *self.cache_budget, *self.attention_budget)
        return {len(row) for row in rows if row}

    def cached(self, scale: int, n_heads: int) -> tuple[float, ...]:
        """Per head, the share that stays after `scale`."""
        return (self.cache_budget[scale] if self.cache_budget else self.keep) or (1.0,) * n_heads

    def attended(self, scale: int, n_heads: int) -> tuple[float, ...]:
        """Per head, the share that the queries of `scale` attend to."""
        return self.attention_budget[scale] if self.attention_budget else (1.0,) * n_heads
