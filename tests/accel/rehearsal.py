"""A stand-in for a CUDA graph on a CPU: operators are recorded, and repeated on the very tensors of the recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from varsearch.evaluators.memory import is_composite, tensors

aten = torch.ops.aten
QUESTIONS = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select}
"""Operators whose results the host waits for."""


class HostNeededError(RuntimeError):
    """A capture on a GPU would fail here."""


class Recording(TorchDispatchMode):
    """Operators of one run. Tensors that none of them made must be `known`, unless it is None and they become so."""

    def __init__(self, known: dict[int, Tensor] | None) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Sequence[Any], dict[str, Any], Any]] = []
        self.known: dict[int, Tensor] = {} if known is None else known
        self.learning, self.made = known is None, dict[int, Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_composite(func):
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        if not self.learning and func._overloadpacket in QUESTIONS:
            raise HostNeededError(f"{func} waits for the device")
        for t in tensors(args, kwargs):
            self._check(t, func)
        out = func(*args, **kwargs)
        for t in tensors(out):
            if key(t) not in self.known:
                self.made.setdefault(key(t), t)
        self.calls.append((func, args, kwargs, out))
        return out

    def _check(self, t: Tensor, func: Any) -> None:
        if key(t) in self.made or key(t) in self.known:
            return
        if not self.learning:
            raise HostNeededError(f"{func} reads a tensor of shape {tuple(t.shape)} that the host has just made")
        self.known[key(t)] = t

    def replay(self) -> None:
        with torch.inference_mode():
            for func, args, kwargs, out in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tensors(out), tensors(again), strict=True):
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)


def key(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def recorded(fn: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """See `graphs.Record`: a first run shows what there is before a generation, the second is recorded."""
    with Recording(None) as first:
        fn()
    known = first.known | {key(t): t for t in first.made.values()}
    with Recording(dict(known)) as second:
        out = fn()
    second.first = first  # type: ignore[attr-defined]  # keeps storages, so that no address comes again
    return out, second.replay
