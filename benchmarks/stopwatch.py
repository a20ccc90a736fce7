"""Where the time of a generation goes, part by part."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from varsearch.accel import Accelerated
from varsearch.accel.quantization import QuantizedLinear
from varsearch.evaluators.workload import default_sampler, device_of, parts_of, run_batch
from varsearch.models.batch import Sampler
from varsearch.models.seams import Attend, ScalePlan

PARTS = ("attention", "linears", "AdaLN", "sampling", "tokenizer")


class Stopwatch:
    """Adds up the time between the starts and ends of parts; a part within another counts for the outer one.

    On a CUDA device it is the device's time, by events, which are read at the end.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.marks: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self.running = False

    def timed(self, part: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn`, with its time added to `part`."""

        @wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.running:
                return fn(*args, **kwargs)
            self.running = True
            start = self.now()
            try:
                return fn(*args, **kwargs)
            finally:
                self.marks[part].append((start, self.now()))
                self.running = False

        return call

    def now(self) -> Any:
        """A mark of this moment: seconds, or an event on the device."""
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, part: str) -> float:
        """Time of a part so far."""
        return sum(self.between(*pair) for pair in self.marks[part])

    def between(self, start: Any, end: Any) -> float:
        """Seconds between two marks."""
        if not self.on_cuda:
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


class TimedSampler:
    """A sampler whose time is added to its part."""

    def __init__(self, sampler: Sampler, watch: Stopwatch) -> None:
        self.sampler, self.watch = sampler, watch

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        """See `Sampler`."""
        codes_NLC: Tensor = self.watch.timed("sampling", self.sampler)(logits_NLV, scale, codebook_VC)
        return codes_NLC

    def take(self, images_M: Tensor) -> TimedSampler:
        """See `Sampler.take`."""
        return TimedSampler(self.sampler.take(images_M), self.watch)


def shares(applied: Accelerated, batch_size: int) -> dict[str, float]:
    """Part of one batch's time that each part takes, and `rest`; run once before, so that nothing is new."""
    watch = Stopwatch(device_of(applied.model))
    timed = replace(applied, plan=replace(applied.plan, scales=_timed(applied.plan.scales, watch)))
    with _watched(applied, watch):
        start = watch.now()
        run_batch(timed, batch_size, TimedSampler(default_sampler(applied.model), watch))
        total = watch.between(start, watch.now())
    found = {part: watch.seconds(part) / total for part in PARTS}
    return found | {"rest": 1 - sum(found.values())}


def _timed(scales: tuple[ScalePlan, ...], watch: Stopwatch) -> tuple[ScalePlan, ...]:
    """The plans with timed attention; dense plans and those of policies alike."""

    def attend(fn: Attend) -> Attend:
        return watch.timed("attention", fn)

    return tuple(
        replace(
            scale,
            layers=tuple(replace(layer, attend=attend(layer.attend)) for layer in scale.layers),
            fork=scale.fork and replace(scale.fork, tails=tuple(_timed(tail, watch) for tail in scale.fork.tails)),
        )
        for scale in scales
    )


@contextmanager
def _watched(applied: Accelerated, watch: Stopwatch) -> Iterator[None]:
    """Times the calls of modules; afterwards they are as before."""
    tokenizer = applied.model.tokenizer
    places: list[tuple[nn.Module, str, str]] = [(tokenizer, "decode", "tokenizer")]
    places += [(tokenizer.quantize, name, "tokenizer") for name in ("accumulate", "pool")]
    transformers = (part for part in parts_of(applied.model) if part is not tokenizer)
    for name, module in chain.from_iterable(transformer.named_modules() for transformer in transformers):
        if name.split(".")[-1] in ("ada_lin", "shared_ada_lin"):
            places.append((module, "forward", "AdaLN"))
        elif isinstance(module, nn.Linear | QuantizedLinear):
            places.append((module, "forward", "linears"))
        elif hasattr(module, "normed"):
            places.append((module, "normed", "AdaLN"))
    try:
        for module, name, part in places:
            setattr(module, name, watch.timed(part, getattr(module, name)))
        yield
    finally:
        for module, name, _ in places:
            module.__dict__.pop(name, None)
