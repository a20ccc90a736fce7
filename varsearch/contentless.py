"""Tensors without content: a shape, a dtype and a storage on the CPU, of which operators make more.

`FakeTensorMode` says what an operator returns. Its answer takes longer than all else that tracing an operator does, and
models repeat operators on few shapes, so each question is asked once per process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

CPU = torch.device("cpu")
MOST_ANSWERS = 2**17
"""Answers that are remembered, a kilobyte or two each."""

_answers: dict[tuple[object, ...], Any] = {}


class Storage:
    """Stands in for a storage; a tensor and its views share it."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes

    @property
    def _cdata(self) -> int:
        return id(self)

    def nbytes(self) -> int:
        """Bytes that it would take with content."""
        return self._nbytes


class Contentless(Tensor):
    """A tensor without content; operators take it inside of `WithoutContent` only."""

    _storage: Storage
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def like(cls, t: Tensor, dtype: torch.dtype) -> Contentless:
        """A tensor of the shape and strides of `t`, in a storage of its own."""
        steps = zip(t.shape, t.stride(), strict=True)
        count = 1 + sum((size - 1) * stride for size, stride in steps) if t.numel() else 0
        return Layout(tuple(t.shape), t.stride(), 0, dtype, count * dtype.itemsize).made(None)

    def untyped_storage(self) -> Any:
        """What stands in for its storage."""
        return self._storage

    @classmethod
    def __torch_dispatch__(cls, func: OpOverload[..., Any], *_: object) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} on a tensor without content, outside of WithoutContent")


@dataclass(frozen=True, slots=True)
class Layout:
    """All there is to know of a tensor but its content; `nbytes` are those of its storage."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    nbytes: int

    @classmethod
    def of(cls, t: Tensor) -> Layout:
        """That of any tensor."""
        return cls(tuple(t.shape), t.stride(), int(t.storage_offset()), t.dtype, t.untyped_storage().nbytes())

    def made(self, storage: Storage | None) -> Contentless:
        """A tensor of this layout in `storage`, or in one of its own."""
        made: Contentless = Tensor._make_wrapper_subclass(
            Contentless, self.shape, strides=self.stride, storage_offset=self.offset, dtype=self.dtype, device=CPU
        )
        made._storage = storage or Storage(self.nbytes)
        return made


class WithoutContent(TorchDispatchMode):
    """While it is active operators compute nothing and return tensors without content."""

    def __init__(self) -> None:
        init: Any = super().__init__
        init()
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        # No question comes twice.
        self._fakes.cache_enabled = False

    def __torch_dispatch__(
        self, func: OpOverload[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The results of one operator."""
        kwargs = kwargs or {}
        if func is torch.ops.aten.lift_fresh.default:
            # What was made of Python's or numpy's numbers.
            return Contentless.like(args[0], args[0].dtype)
        if func._schema.is_mutable:
            if torch.Tag.inplace_view in func.tags and func is not torch.ops.aten.detach_.default:
                raise NotImplementedError(f"{func} changes the shape of a tensor without content")
            return args[0]
        is_view = func.is_view or func is torch.ops.aten._unsafe_view.default
        question = (func, *_signature(args, is_view), *_signature(kwargs.items(), is_view))
        if question not in _answers:
            if len(_answers) == MOST_ANSWERS:
                _answers.clear()
            _answers[question] = self._ask(func, args, kwargs)
        if not is_view:
            return _made(_answers[question], None)
        # PyTorch refuses views that belong to inference while what they are views of does not.
        with torch.inference_mode(args[0].is_inference()):
            return _made(_answers[question], args[0].untyped_storage())

    def _ask(self, func: OpOverload[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        fake_args, fake_kwargs = tree_map_only(Contentless, self._fake, (tuple(args), dict(kwargs)))
        with self._fakes:
            return tree_map_only(Tensor, Layout.of, func(*fake_args, **fake_kwargs))

    def _fake(self, t: Contentless) -> FakeTensor:
        whole = torch.empty(t.untyped_storage().nbytes() // t.dtype.itemsize, dtype=t.dtype, device="meta")
        return FakeTensor(self._fakes, whole.as_strided(t.shape, t.stride(), t.storage_offset()), CPU)


def _made(answer: Any, storage: Storage | None) -> Any:
    if isinstance(answer, list | tuple):
        return type(answer)([_made(part, storage) for part in answer])
    return answer.made(storage) if isinstance(answer, Layout) else answer


def _signature(values: Iterable[Any], is_view: bool) -> Iterator[object]:
    """What results depend on. 1, 1.0 and True are not the same, and of a tensor a view needs to know more."""
    for value in values:
        if isinstance(value, Tensor):
            yield value.dtype
            yield value.shape
            yield value.stride()
            if is_view:
                yield value.storage_offset()
        elif isinstance(value, list | tuple):
            yield len(value)
            yield from _signature(value, is_view)
        else:
            yield type(value)
            if not isinstance(value, torch.Generator):
                yield value
