"""What one batch does: every operator with its FLOPs and bytes, and the exact memory.

No technique's tensor shapes depend on data, so the very code that generates images, run on tensors without
content, gives the exact cost of a policy on any device in a fraction of a second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from varsearch.accel import Accelerated, apply
from varsearch.accel.refiner import with_refiner
from varsearch.contentless import Contentless, WithoutContent
from varsearch.evaluators.memory import StorageTracker, tensors
from varsearch.evaluators.workload import default_sampler, parts_of, run_batch, with_tensors, zoo_skeleton
from varsearch.kernels.quantized_linear import Backend
from varsearch.models import registry
from varsearch.models.batch import Sampler
from varsearch.models.checkpoints import stored_as
from varsearch.models.families import Block
from varsearch.models.image_model import ImageModel
from varsearch.models.seams import KVCache, KVView, Rows
from varsearch.policy import Policy
from varsearch.target import AttentionBackend, Target, default_target, find_device

aten = torch.ops.aten
_ATTENTION = aten.scaled_dot_product_attention.default
_BLOCK_ATTENTION = torch.ops.varsearch.block_attention
_CPU_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
_OVERWRITE = {"copy_", "fill_", "zero_", "exponential_", "uniform_", "normal_"}
_GATHER = {"embedding", "index", "index_select", "gather"}
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}


@dataclass(frozen=True, slots=True)
class Op:
    """One operator that did work.

    Args:
        name: ATen name without overload, such as `addmm`.
        module: path of the innermost module that ran it.
        scale: index of the scale it belongs to; None for decoding the image.
        attention: whether it is part of scaled dot-product attention.
        dtype: torch name of its result's dtype.
        flops: floating-point operations of matrix products, a multiply-add counting two; 0 for other operators.
        bytes: read and written.
        in_block: whether a transformer block ran it outside its linears, where nothing is multiplied but queries, keys
            and values.
    """

    name: str
    module: str
    scale: int | None
    attention: bool
    dtype: str
    flops: int
    bytes: int
    in_block: bool = False

    @property
    def scoring(self) -> bool:
        """Whether it multiplies queries with keys for scores that a technique chooses tokens, entries or keys by."""
        return self.in_block and self.flops > 0 and not self.attention


@dataclass(frozen=True, slots=True)
class Trace:
    """Cost of one batch."""

    ops: tuple[Op, ...]
    weight_bytes: int
    kv_bytes: int
    peak_bytes: int

    @property
    def flops(self) -> int:
        """Floating-point operations of one batch."""
        return sum(op.flops for op in self.ops)

    @property
    def attention_flops(self) -> int:
        """The part of `flops` spent in the transformer's attention products, those of scoring included.

        The tokenizer's own attention is left out, as in published figures: no policy changes it.
        """
        return sum(op.flops for op in self.ops if op.in_block)


def trace(model: ImageModel, policy: Policy, target: Target) -> Trace:
    """Cost of `policy` on `target`, without computing anything; `model` may be on the meta device.

    Raises:
        PolicyError: the policy does not fit the model.
        ModelError: the model's refiner is not there.
    """
    model = with_refiner(model, policy)
    dtype: torch.dtype = getattr(torch, target.dtype)
    # Techniques keep index tables in numpy and turn them into tensors as they run.
    with WithoutContent():
        hollow = with_tensors(model, lambda name, t: Contentless.like(t, stored_as(name, t, dtype)))
        with apply(hollow, policy, backend_on(target), attention_on(target)) as applied:
            return record(applied, target.batch_size)


def dense_peaks(model: str, batches: Sequence[int] = (1, 8)) -> dict[int, int]:
    """Batch size -> peak bytes of a published model's dense sampling in 16 bits, by name; needs no weights."""
    bones = zoo_skeleton(registry.join(model, registry.RANDOM, None))
    policy = Policy.dense(bones.spec.n_layers, len(bones.spec.scales))
    target = default_target(find_device("h100"), spec=bones.spec)
    return {n: trace(bones, policy, target.model_copy(update={"batch_size": n})).peak_bytes for n in batches}


def backend_on(target: Target) -> Backend:
    """The backend of quantized linears that a well-equipped machine of the target's kind uses."""
    return "triton" if find_device(target.device).kind == "cuda" else "torch"


def attention_on(target: Target) -> AttentionBackend:
    """Who computes attention on a well-equipped machine of the target's kind."""
    return "sdpa+triton" if find_device(target.device).kind == "cuda" else "sdpa"


def record(applied: Accelerated, batch_size: int) -> Trace:
    """Runs one batch and accounts for all of it."""
    parts = parts_of(applied.model)
    recorder = Recorder([t for part in parts for t in (*part.parameters(), *part.buffers())])
    watch = ScaleWatch(applied, default_sampler(applied.model), recorder)
    with recorder.naming_modules(parts), recorder:
        run_batch(watch.applied, batch_size, watch)
    return Trace(tuple(recorder.ops), recorder.weight_bytes, watch.kv_bytes, recorder.peak_bytes)


class Recorder(StorageTracker):
    """Lists operators; whoever sees a scale end says which one it was."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__(weights)
        self.ops: list[Op] = []
        self._labelled = 0
        self._modules: list[tuple[str, bool]] = [("", False)]
        self._attention = False

    def scale_ended(self, scale: int) -> None:
        """Everything since the last call belongs to `scale`; what follows the last call decodes the image."""
        self.ops[self._labelled :] = [dataclasses.replace(op, scale=scale) for op in self.ops[self._labelled :]]
        self._labelled = len(self.ops)

    @contextmanager
    def naming_modules(self, parts: Sequence[nn.Module]) -> Iterator[None]:
        """Notes which module runs, for the labels."""
        handles = []
        for part in parts:
            for name, module in part.named_modules():
                entry = f"{type(part).__name__}.{name}", isinstance(module, Block)
                handles.append(module.register_forward_pre_hook(lambda *_, entry=entry: self._modules.append(entry)))
                handles.append(module.register_forward_hook(lambda *_: self._modules.pop() and None))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run_composite(self, func: OpOverload[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Marks the parts of attention, whichever kernel it is made of."""
        outer, self._attention = self._attention, self._attention or func is _ATTENTION
        try:
            return super().run_composite(func, args, kwargs)
        finally:
            self._attention = outer

    def ran(
        self,
        func: OpOverload[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        result: Any,
        created: list[Tensor],
    ) -> None:
        """Adds an operator to the list, unless it only made a view or reserved memory."""
        name = func._overloadpacket.__name__
        if name in _FREE or not (created or func._schema.is_mutable):
            return
        dtype = next(tensors(result)).dtype
        flops, moved = flops_of(func, args, kwargs, result), bytes_of(func, args, kwargs, result)
        label = str(dtype).removeprefix("torch.")
        module, in_block = self._modules[-1]
        attention = self._attention or func._overloadpacket is _BLOCK_ATTENTION
        self.ops.append(Op(name, module, None, attention, label, flops, moved, in_block))


class ScaleWatch:
    """Stands in for the sampler to see each scale end: tells the recorder, and weighs the caches."""

    def __init__(self, applied: Accelerated, sampler: Sampler, recorder: Recorder) -> None:
        self.sampler, self.recorder = sampler, recorder
        self.kv_bytes = 0
        self._caches: WeakSet[WatchedKV] = WeakSet()
        plan = applied.plan
        new_cache, refiner_cache = (tuple(map(self._watched, make)) for make in (plan.new_cache, plan.refiner_cache))
        watched = dataclasses.replace(plan, new_cache=new_cache, refiner_cache=refiner_cache)
        self.applied = dataclasses.replace(applied, plan=watched)

    def _watched(self, make: Callable[[], KVCache]) -> Callable[[], KVCache]:
        return lambda: WatchedKV(make(), self._caches)

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        """Samples; in between caches only grow, or are gone before a refiner's grow, so sizes now are the largest."""
        codes_NLC = self.sampler(logits_NLV, scale, codebook_VC)
        self.kv_bytes = max(self.kv_bytes, sum(kv.nbytes for kv in self._caches))
        self.recorder.scale_ended(scale)
        return codes_NLC

    def take(self, images_M: Tensor) -> ScaleWatch:
        """Itself: the published sampler serves all images of a batch."""
        return self


class WatchedKV:
    """A cache that is found among `alive` for as long as a generation holds it, and so are those taken from it."""

    def __init__(self, inner: KVCache, alive: WeakSet[WatchedKV]) -> None:
        self.inner, self.alive = inner, alive
        alive.add(self)

    def extend(self, q: Tensor, k: Tensor, v: Tensor, pos_BL: Tensor, *, room: int) -> tuple[KVView, ...]:
        """See `KVCache.extend`."""
        return self.inner.extend(q, k, v, pos_BL, room=room)

    def take(self, rows: Rows) -> WatchedKV:
        """See `KVCache.take`."""
        return WatchedKV(self.inner.take(rows), self.alive)

    @property
    def nbytes(self) -> int:
        """See `KVCache.nbytes`."""
        return self.inner.nbytes


def flops_of(func: OpOverload[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """FLOPs by PyTorch's own formulas, and by that of attention for the CPU kernel it has none for."""
    packet = func._overloadpacket
    if packet is _CPU_ATTENTION:
        return int(sdpa_flop_count(*(t.shape for t in args[:3])))
    formula = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=result)) if formula else 0


def bytes_of(func: OpOverload[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Bytes that the operator must read and write, each operand once."""
    name = func._overloadpacket.__name__
    written, read = list(tensors(result)), list(tensors(args, kwargs))
    if name in _GATHER:
        # Reads as much of the table as it returns.
        read = [*read[1:], *written]
    elif name in _OVERWRITE:
        read = read[1:]
    elif name == "index_put_":
        # Touches as much of the table as it is given.
        written, read = [args[2]], read[1:]
    return sum(map(extent, written)) + sum(map(extent, read))


def extent(t: Tensor) -> int:
    """Bytes of the elements that exist: expanded dimensions count once."""
    n = t.element_size()
    for size, stride in zip(t.shape, t.stride(), strict=True):
        n *= size if stride else 1
    return n
