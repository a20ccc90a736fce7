"""How many images go through a pass at once: the usual number, or as many as the device has room for.

The code that generates images runs on tensors without content, as for the cost model, and the peak of what it holds
tells the memory of any pass with any number of images.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch

from varsearch.accel import Accelerated, apply, default_backend, labels_for
from varsearch.accel.refiner import with_refiner
from varsearch.contentless import Contentless, WithoutContent
from varsearch.errors import EvaluationError
from varsearch.evaluators.memory import StorageTracker
from varsearch.evaluators.workload import device_of, dtype_of, parts_of, with_tensors
from varsearch.models.checkpoints import stored_as
from varsearch.models.image_model import ImageModel
from varsearch.models.noise import usual_noise
from varsearch.policy import Policy

Pass = Callable[[Accelerated, int], object]
"""Sends so many images through a model under a policy."""

SLACK = 1.25
"""Bytes to have ready for each one that is traced: allocators round up, and libraries have workspaces."""

PLENTY = 4
"""Where dense has room for so many times the usual number, no policy's own memory is looked at."""


def drawing(applied: Accelerated, n: int) -> object:
    """The pass that draws images."""
    labels_N = labels_for(n, applied.model.spec.classes)
    return applied.images(labels_N, seed=0, noise=usual_noise("cuda"))


def reading(applied: Accelerated, n: int) -> object:
    """The pass that reads the likelihood of held-out tokens."""
    tokens = [torch.zeros(n, length, dtype=torch.int64) for length in applied.model.spec.tokens]
    return applied.likelihood(labels_for(n, applied.model.spec.classes), tokens)


def needed_bytes(model: ImageModel, policy: Policy, n: int, run: Pass = drawing, dtype: torch.dtype | None = None) -> int:
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
    wide = dtype or dtype_of(model)
    model = with_refiner(model, policy)
    backend = default_backend(device_of(model), wide)
    with WithoutContent():
        hollow = with_tensors(model, lambda name, t: Contentless.like(t, stored_as(name, t, wide)))
        parts = parts_of(hollow)
        tracker = StorageTracker(chain.from_iterable((*part.parameters(), *part.buffers()) for part in parts))
        with apply(hollow, policy, backend) as applied, tracker:
            run(applied, n)
    return tracker.peak_bytes - tracker.weight_bytes


def largest(needed: Callable[[int], int], usual: int, free: int) -> int:
    """Most images, up to `usual`, whose pass needs no more than `free` bytes; 0 if one image needs more.

    Args:
        needed: bytes by number of images, which rise at least in proportion to the images added.
        usual: the most to answer.
        free: bytes that there are.
    """
    n = usual
    while n and (bytes_n := needed(n)) > free:
        if n == 1:
            return 0
        # What a chord through one image and n allows is not too little, because the curve is nowhere above it.
        one = needed(1)
        n = min(n - 1, 1 + int((free - one) / max((bytes_n - one) / (n - 1), 1e-9))) if one <= free else 1
    return n


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
        found = largest(lambda n: needed_bytes(self.model, policy, n, self.run), self.usual, self.free)
        if not found:
            one = needed_bytes(self.model, policy, 1, self.run)
            raise EvaluationError(
                f"one image needs {one / 1e9:.1f} GB besides the weights, and {self.free / 1e9:.1f} GB are free"
            )
        return found


def free_bytes(device: torch.device) -> int:
    """Bytes that can be taken on `device` now, those that PyTorch holds without use included."""
    if device.type != "cuda":
        return _available_memory()
    gc.collect()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _available_memory() -> int:
    """The system's own estimate of what can be taken without swapping; without limits of containers."""
    info = Path("/proc/meminfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    import os

    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
