"""Exact memory of a run: every storage that exists, from its creation to its release."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_DEVICE_QUERY = torch.ops.prim.device.default


class StorageTracker(TorchDispatchMode):
    """Counts bytes of storages while it is active, for real and for fake tensors alike.

    Weights are storages given at the start; those that no operator touches (the tokenizer's encoder, the originals of
    quantized linears) do not count. Not seen: scratch memory inside one kernel, and the allocator's rounding.

    Args:
        weights: all tensors that the run may use as weights.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        init: Callable[[], None] = super().__init__
        init()
        self._weights = {_key(t): t.untyped_storage().nbytes() for t in weights}
        self._used: set[int] = set()
        self._live: dict[int, tuple[weakref.ref[object], int]] = {}
        self._live_bytes = 0
        self._peak_live_bytes = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that the run has used."""
        return sum(self._weights[key] for key in self._used)

    @property
    def peak_bytes(self) -> int:
        """Most bytes at once: the weights used and everything else that lived."""
        return self.weight_bytes + self._peak_live_bytes

    def __torch_dispatch__(
        self, func: OpOverload[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one operator and notes the storages that it reads and creates."""
        kwargs = kwargs or {}
        if func is _DEVICE_QUERY:
            return func(*args, **kwargs)
        if is_composite(func):
            return self.run_composite(func, args, kwargs)
        for t in tensors(args, kwargs):
            self._is_new(t)
        result = func(*args, **kwargs)
        created = [t for t in tensors(result) if self._is_new(t)]
        self.ran(func, args, kwargs, result, created)
        return result

    def run_composite(self, func: OpOverload[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Splits an operator that only calls others, as the dispatcher does, so that they are seen one by one.

        Inference mode hands composites to modes whole. `OpOverload.decompose` is no substitute: it prefers Python
        decompositions made for compilers, which are not what eager execution runs.
        """
        with self:
            return func._op_dk(_COMPOSITE, *args, **kwargs)

    def ran(
        self,
        func: OpOverload[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        result: Any,
        created: list[Tensor],
    ) -> None:
        """For subclasses: one operator ran; `created` are its results in new storages."""

    def _is_new(self, t: Tensor) -> bool:
        storage, key = t.untyped_storage(), _key(t)
        if key in self._weights:
            self._used.add(key)
            return False
        if key in self._live:
            return False
        # An address is reused as soon as its storage is gone, so the entry must go with it.
        self._live[key] = (weakref.ref(storage, lambda _: self._forget(key)), storage.nbytes())
        self._live_bytes += storage.nbytes()
        self._peak_live_bytes = max(self._peak_live_bytes, self._live_bytes)
        return True

    def _forget(self, key: int) -> None:
        self._live_bytes -= self._live.pop(key)[1]


def _key(t: Tensor) -> int:
    return t.untyped_storage()._cdata


@cache
def is_composite(func: OpOverload[..., Any]) -> bool:
    """Whether the dispatcher implements this operator by calling others."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE)


def tensors(*values: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and mappings."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(*value)
        elif isinstance(value, Mapping):
            yield from tensors(*value.values())
