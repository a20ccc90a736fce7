"""What a set of images carries through the next-scale loop.

Shape suffixes: N images, M some of them, B rows, L tokens of one scale, C latent channels, H W latent map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from varsearch.models.families import Asked
from varsearch.models.infinity.transformer import BlockCondition
from varsearch.models.layers import Modulation
from varsearch.models.seams import LayerState, Rows

T = TypeVar("T")


def asked_rows(asked: Asked, rows: Rows) -> Asked:
    """What these images are asked for."""
    return rows(asked) if isinstance(asked, Tensor) else asked.take(rows)


def first_rows(n: int) -> Rows:
    """The first `n` rows: guidance ended."""
    # A slice would keep the whole tensor alive; the copy is what frees the unconditional half.
    return lambda t: t[:n].clone()


def rows_of(images_M: Tensor, n: int) -> Rows:
    """The rows of `images_M` among `n` images, conditional before unconditional."""
    index = {n: images_M, 2 * n: torch.cat((images_M, images_M + n))}
    return lambda t: t.index_select(0, index[len(t)])


class Sampler(Protocol):
    """Chooses the codes of one scale."""

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        """Codes (N, L, C) drawn from guided logits."""
        ...

    def take(self, images_M: Tensor) -> Sampler:
        """The sampler of these images only, by their indices among its own; for policies with decisions."""
        ...


@dataclass(slots=True)
class Batch:
    """Images that go the same way, and everything that they carry from scale to scale.

    `refined` says that the refiner has taken over. Until then `inputs` holds, if there is a refiner, each scale that
    ran and its pooled estimate (N, L, C), which scale 0 has none of.
    """

    asked: Asked
    cond_BD: Tensor
    conditions: Sequence[Modulation | BlockCondition]
    states: list[LayerState]
    f_hat_NCHW: Tensor
    sampler: Sampler
    guided: bool
    inputs: list[tuple[int, Tensor | None]]
    refined: bool = False

    def end_guidance(self) -> None:
        """Frees the unconditional rows."""
        n = len(self.f_hat_NCHW)
        rows, self.guided = first_rows(n), False
        self.cond_BD, self.conditions = rows(self.cond_BD), [c.take(lambda t: t[:n]) for c in self.conditions]
        for state in self.states:
            state.kv, state.recurrence = state.kv.take(rows), tuple(map(rows, state.recurrence))

    def split(self, images: list[Tensor]) -> list[Batch]:
        """One batch for each of these sets of images; this one has no states afterwards."""
        if len(images) == 1:
            return [self]
        rows = [rows_of(images_M, len(self.f_hat_NCHW)) for images_M in images]
        # One layer after the other, so that at most one is there twice.
        states = [
            [state.take(of_part, len(images_M)) for of_part, images_M in zip(rows, images, strict=True)]
            for state in _emptied(self.states)
        ]
        return [
            Batch(
                asked_rows(self.asked, of_part),
                of_part(self.cond_BD),
                [c.take(of_part) for c in self.conditions],
                [layer[i] for layer in states],
                of_part(self.f_hat_NCHW),
                self.sampler.take(images_M),
                self.guided,
                [(k, t if t is None else of_part(t)) for k, t in self.inputs],
                self.refined,
            )
            for i, (of_part, images_M) in enumerate(zip(rows, images, strict=True))
        ]


def _emptied(items: list[T]) -> Iterator[T]:
    while items:
        yield items.pop(0)
