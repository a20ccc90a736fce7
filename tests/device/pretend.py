"""An accelerator that is none: tensors on the device "gpu" hold CPU data, and operators run on the CPU.

What a CUDA device would refuse is refused: operators that mix devices, generators of the CPU for tensors of the device.
What costs on a CUDA device is counted: launches, and transfers, which make the host wait. PyTorch's own registration of
back-ends in Python makes this possible (pytorch#157859, experimental).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "gpu"
CPU = torch.device("cpu")
OVERRIDEABLE = 4
"""PyTorch's number of an attention kernel that the back-end brings along: one fused launch."""

COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
TAKES_CPU_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""A CPU index is copied over, as on CUDA."""

RESERVES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "resize_"}
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "repeat_interleave"}
"""Operators whose result the host needs before it goes on."""

ATTENTION = "_scaled_dot_product_fused_attention_overrideable"
OWN_KERNELS = (
    "native_layer_norm", "native_group_norm", "gelu", "silu", "repeat", "addcmul", "lerp.Scalar",
    "arange", "arange.start", "arange.start_step",
)  # fmt: skip
"""What CUDA has one kernel for; the generic decomposition would count as many, or resize what it was given."""


@dataclass(slots=True)
class Log:
    """What happened on the device: numbers of launches by operator, and of transfers by kind and place in the code."""

    launches: Counter[str] = field(default_factory=Counter)
    transfers: Counter[str] = field(default_factory=Counter)


_logs: list[Log] = []


@contextmanager
def logged() -> Iterator[Log]:
    """Counts what happens inside."""
    _logs.append(Log())
    try:
        yield _logs[-1]
    finally:
        _logs.pop()


def _launched(name: str) -> None:
    for log in _logs:
        log.launches[name] += 1


def _transferred(kind: str) -> None:
    for log in _logs:
        log.transfers[f"{kind} at {_place()}"] += 1


def _place() -> str:
    """The innermost line of the package that is running."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        _, found, file = frame.f_code.co_filename.rpartition("/varsearch/")
        if found and "site-packages" not in frame.f_code.co_filename:
            return f"{file}:{frame.f_lineno}"
    return "?"


class OnDevice(Tensor):
    """A tensor on the device, whose data are `inner`, on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type[OnDevice], inner: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=int(inner.storage_offset()), dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return torch.device(NAME, 0)
        if func._overloadpacket.__name__ == ATTENTION:
            return _attention(*args, **kwargs)
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            return _attention_alone(*args, **kwargs)
        if _is_composite(func):
            return func._op_dk(COMPOSITE, *args, **kwargs)
        if func is torch.ops.aten.detach.default:
            return OnDevice(args[0].inner)
        if func is torch.ops.aten._to_copy.default:
            return _to_copy(*args, **kwargs)
        return _run(func, *args, **kwargs)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.inner!r})"


@cache
def _is_composite(func: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _inner(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return value.inner
    if isinstance(value, torch.device) and value.type == NAME:
        return CPU
    if isinstance(value, list | tuple):
        return type(value)(map(_inner, value))
    return value


def _outer(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, OnDevice):
        return OnDevice(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_outer, value))
    return value


def _to_copy(t: Tensor, *, dtype: Any = None, device: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
    made = torch.ops.aten._to_copy.default(_inner(t), dtype=dtype, memory_format=memory_format)
    to_cpu = device is not None and torch.device(device).type == "cpu"
    if not isinstance(t, OnDevice):
        _transferred("copy to the device")
    elif to_cpu:
        _transferred("copy to the host")
        return made
    else:
        _launched("_to_copy")
    return OnDevice(made)


def _copy(source: Tensor, target: Tensor) -> Tensor:
    with torch.no_grad():
        _inner(target).copy_(_inner(source))
    if isinstance(source, OnDevice) and isinstance(target, OnDevice):
        _launched("copy_")
    else:
        _transferred("copy to the device" if isinstance(target, OnDevice) else "copy to the host")
    return target


def _check_devices(func: Any, name: str, args: Any, kwargs: Any) -> None:
    """Refuses what CUDA refuses; numbers in tensors without dimensions may be the CPU's."""
    given = list(_tensors([*args, *kwargs.values()]))
    cpu = [t for t in given if not isinstance(t, OnDevice) and t.dim() > 0]
    if cpu and len(cpu) < len(given):
        if name not in TAKES_CPU_INDEX or not isinstance(args[0], OnDevice):
            raise RuntimeError(f"Expected all tensors to be on the same device: {func} mixes devices at {_place()}")
        _transferred("CPU index")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu" and any(isinstance(t, OnDevice) for t in given):
        raise RuntimeError(f"Expected a generator of the device for {func}, found one of the CPU at {_place()}")


def _note(name: str, func: Any, args: Any) -> None:
    if name in WAITS:
        _transferred(name)
    elif not func.is_view and name not in RESERVES:
        _launched(name)
    if name in TAKES_CPU_INDEX and any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(list(args[1]))):
        _transferred("boolean index")


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operator: on the CPU, once it is known that the device would run it."""
    name = func._overloadpacket.__name__
    if name == "_fused_sdp_choice":
        return OVERRIDEABLE
    if name == "_copy_from":
        return _copy(args[0], args[1])
    if name == "copy_":
        return _copy(args[1], args[0])
    _check_devices(func, name, args, kwargs)
    _note(name, func, args)
    inner_kwargs = {key: _inner(value) for key, value in kwargs.items()}
    if isinstance(inner_kwargs.get("generator"), torch.Generator):
        inner_kwargs["generator"] = _generator(inner_kwargs["generator"])
    if "device" in inner_kwargs:
        inner_kwargs["device"] = CPU
    inner_kwargs.pop("pin_memory", None)
    with torch._C._AutoDispatchBelowAutograd():
        made = func(*_inner(list(args)), **inner_kwargs)
    if func._schema.is_mutable:
        return _written(func, args, kwargs)
    if func.is_view or name in ("_unsafe_view", "_reshape_alias", "lift_fresh", "alias"):
        base = next(_tensors(list(args)))
        with torch.inference_mode(base.is_inference()):
            return _outer(made)
    return _outer(made)


_generators: dict[int, torch.Generator] = {}


def _generator(of_device: torch.Generator) -> torch.Generator:
    """The CPU's generator that stands for one of the device."""
    if of_device.device.type == "cpu":
        return of_device
    return _generators.setdefault(id(of_device), torch.Generator().manual_seed(of_device.initial_seed()))


def _written(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operator returns that writes into its arguments: these."""
    names = [(i, a.name) for i, a in enumerate(func._schema.arguments) if a.alias_info and a.alias_info.is_write]
    found = [args[i] if i < len(args) else kwargs[name] for i, name in names]
    return found[0] if len(func._schema.returns) <= 1 else tuple(found)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0, is_causal: bool = False,
    return_mask: bool = False, *, scale: float | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    """One fused kernel; its nine results are those of PyTorch's schema, all but the first of them for gradients."""
    given = [t for t in (q, k, v, bias) if t is not None]
    if not all(isinstance(t, OnDevice) for t in given):
        raise RuntimeError(f"Expected all tensors to be on the same device: attention mixes devices at {_place()}")
    _launched("attention" if bias is None else "attention under a mask")
    fused = torch.nn.functional.scaled_dot_product_attention
    made = fused(*map(_inner, (q, k, v, bias)), dropout_p=dropout, is_causal=is_causal, scale=scale)
    nothing = OnDevice(torch.empty(0))
    return OnDevice(made), nothing, nothing, nothing, 0, 0, nothing, nothing, nothing


def _attention_alone(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    *, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    return _attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)[0]


_libraries: list[torch.library.Library] = []


@cache
def install() -> bool:
    """Registers the device, once per process; whether this PyTorch can."""
    setup: Callable[[str], None] | None = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        return False
    setup(NAME)
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_run, "PrivateUse1")
    own = torch.library.Library("aten", "IMPL")
    own.impl("_to_copy", _to_copy, "PrivateUse1")
    own.impl(ATTENTION, _attention, "PrivateUse1")
    for name in OWN_KERNELS:
        packet, _, overload = name.partition(".")
        func = getattr(getattr(torch.ops.aten, packet), overload or "default")
        own.impl(name, _own_kernel(func), "PrivateUse1")
    _libraries.extend((everything, own))
    return True


def _own_kernel(func: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: _run(func, *args, **kwargs)
