"""Finds what caches and plans keep alive by walking the interpreter's references, whatever they say themselves."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import FunctionType, ModuleType

import torch
from torch import Tensor

from varsearch.accel import Accelerated
from varsearch.accel.kv_selection import Scorer
from varsearch.evaluators.workload import default_sampler
from varsearch.models.seams import LayerState


class CacheWatch:
    """A sampler that notes the most bytes that caches keep alive between two scales."""

    def __init__(self, applied: Accelerated) -> None:
        gc.collect()
        self.most_bytes = 0
        self.sampler = default_sampler(applied.model)

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        caches = [found.kv for found in gc.get_objects() if type(found) is LayerState]
        # int64 positions are the loop's own, one tensor for all layers.
        own = [t for t in tensors_of(caches, set()) if t.dtype != torch.int64]
        found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in own}
        # A scorer's tables belong to the plan, which keeps them from one generation to the next.
        scorers = [o.tables for o in gc.get_objects() if type(o) is Scorer]
        for table in tensors_of(scorers, set()):
            found.pop(table.untyped_storage()._cdata, None)
        self.most_bytes = max(self.most_bytes, sum(found.values()))
        return self.sampler(logits_NLV, scale, codebook_VC)

    def take(self, images_M: Tensor) -> CacheWatch:
        return self


def tensors_of(value: object, seen: set[int]) -> Iterator[Tensor]:
    for child in gc.get_referents(value):
        if isinstance(child, Tensor):
            yield child
        elif id(child) not in seen and not isinstance(child, type | ModuleType | FunctionType):
            seen.add(id(child))
            yield from tensors_of(child, seen)


def table_bytes(applied: Accelerated) -> int:
    """Bytes of the tables that a plan made when it ran: numpy's, which PyTorch's allocator does not see."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(applied.plan, set())}
    return sum(found.values())
