"""How many images go through a pass at once: the usual number, or as many as the device has room for.

The code that generates images runs on tensors without content, as for the cost model, and the peak of what it holds
tells the memory of any pass with any number of images.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Hashable
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch

from varsearch.accel import Accelerated, apply, default_backend, labels_for
from varsearch.accel.refiner import with_refiner
from varsearch.contentless import Contentless, WithoutContent
from varsearch.errors import EvaluationError
from varsearch.evaluators.memory import StorageTracker
from varsearch.evaluators.workload import (
    default_sampler,
    device_of,
    parts_of,
    run_batch,
    with_tensors,
)
from varsearch.models.checkpoints import stored_as
from varsearch.models.image_model import ImageModel
from varsearch.policy import Policy

Pass = Callable[[Accelerated, int], object]
"""Sends so many images through a model under a policy."""

_answers: dict[Hashable, int] = {}
"""Of `needed_bytes`; evaluators of one model ask the same."""

SLACK = 1.25
"""Bytes to have ready for each one that is traced: allocators round up, and libraries have workspaces."""

PLENTY = 4
"""Where dense has room for so many times the usual number, no policy's own memory is looked at."""


def drawing(applied: Accelerated, n: int) -> object:
    """The pass that draws images. The published sampler stands for all of them: they hold about as much."""
    return run_batch(applied, n, default_sampler(applied.model))


def reading(applied: Accelerated, n: int) -> object:
    """The pass that reads the likelihood of held-out tokens."""
    tokens = [torch.zeros(n, length, dtype=torch.int64) for length in applied.model.spec.tokens]
    return applied.likelihood(labels_for(n, applied.model.spec.classes), tokens)


def needed_bytes(
    model: ImageModel, policy: Policy, n: int, run: Pass = drawing, dtype: torch.dtype | None = None
) -> int:
    """Most bytes that the pass with `n` images holds at once besides the weights of `model`.

    Args:
        model: on any device, the meta device too.
        policy: what is applied; what it stores of its own, such as quantized weights, counts.
        n: number of images.
        run: the pass.
        dtype: number format of the weights; None is the model's own.

    Raises:
        PolicyError: the policy does not fit the model.
    """
    wide = dtype or model.transformer.pos_start.dtype
    model = with_refiner(model, policy)
    shape = repr((model.transformer.config, model.tokenizer.config, model.sampling))
    question = shape, policy.digest, n, run, wide, device_of(model).type
    if question not in _answers:
        _answers[question] = _needed(model, policy, n, run, wide)
    return _answers[question]


def _needed(model: ImageModel, policy: Policy, n: int, run: Pass, wide: torch.dtype) -> int:
    backend = default_backend(device_of(model), wide)
    with WithoutContent():
        hollow = with_tensors(model, lambda name, t: Contentless.like(t, stored_as(name, t, wide)))
        parts = parts_of(hollow)
        tracker = StorageTracker(chain.from_iterable((*part.parameters(), *part.buffers()) for part in parts))
        with apply(hollow, policy, backend) as applied, tracker:
            run(applied, n)
    return tracker.peak_bytes - tracker.weight_bytes


def largest(one: int, many: int, n: int, free: int) -> int:
    """Most images whose pass needs no more than `free` bytes; 0 if one image needs more.

    Every moment of a pass holds an amount that grows in proportion to the images added, so the peak is a convex
    function of their number, and nowhere above its chord.

    Args:
        one: bytes that one image needs.
        many: bytes that `n` images need.
        n: more than one.
        free: bytes that there are.
    """
    return 0 if one > free else 1 + int((free - one) / max((many - one) / (n - 1), 1e-9))


class Batches:
    """Numbers of images at once for one model and one kind of pass.

    Args:
        model: where it is and in its number format.
        usual: most images at once.
        run: the pass.
        free: bytes that there are; None asks the device when it is first needed.
    """

    def __init__(self, model: ImageModel, usual: int, run: Pass = drawing, free: int | None = None) -> None:
        self.model, self.usual, self.run = model, usual, run
        self._given = free

    @cached_property
    def free(self) -> int:
        """Bytes that a pass may hold."""
        found = free_bytes(device_of(self.model)) if self._given is None else self._given
        return int(found / SLACK)

    @cached_property
    def _is_plenty(self) -> bool:
        spec = self.model.spec
        dense = Policy.dense(spec.n_layers, len(spec.scales))
        return needed_bytes(self.model, dense, PLENTY * self.usual, self.run) <= self.free

    def of(self, policy: Policy) -> int:
        """Images at once under `policy`.

        Raises:
            EvaluationError: there is not enough memory for a single image.
        """
        if self._is_plenty:
            return self.usual
        n = max(2, self.usual)
        one, many = (needed_bytes(self.model, policy, count, self.run) for count in (1, n))
        found = largest(one, many, n, self.free)
        if not found:
            raise EvaluationError(
                f"one image needs {one / 1e9:.1f} GB besides the weights, and {self.free / 1e9:.1f} GB are free"
            )
        return min(found, self.usual)


def free_bytes(device: torch.device) -> int:
    """Bytes that can be taken on `device` now, those that PyTorch holds without use included."""
    if device.type != "cuda":
        return _available_memory()
    gc.collect()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _available_memory() -> int:
    """What the system says that can be taken without swapping, or less where a container has a limit."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = _read("/proc/meminfo").splitlines()
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdecimal() and used.isdecimal():
        available.append(int(limit) - int(used))
    return min([whole, *available])


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
