"""The calibration pass: samples images with the dense model and watches its attention and its linears."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varsearch.accel import labels_for
from varsearch.accel.decision import low_entropy
from varsearch.calibration import Calibration, CalibrationProtocol, Floats
from varsearch.evaluators import attention_statistics as statistics
from varsearch.evaluators.decisions import fit_skipvar
from varsearch.evaluators.workload import device_of
from varsearch.kernels.packing import quantize
from varsearch.models.families import blocks_of
from varsearch.models.image_model import ImageModel
from varsearch.models.sampling import PairedSampler
from varsearch.models.seams import AttentionMemory, BranchMemory, KVView, Plan, Sublayer
from varsearch.policy import Decision

BATCH = 10
"""Images at a time; attention maps are held for one layer at one scale."""

BITS = (8, 6, 4, 3)


class Mean:
    """Means of tensors by key, over calls, each counting as the images it stands for."""

    def __init__(self) -> None:
        self.images = 1
        self.sums: dict[Any, Tensor] = {}
        self.counts: defaultdict[Any, int] = defaultdict(int)

    def add(self, key: object, value: Tensor) -> None:
        """Counts `value` in."""
        weighted = self.images * value.double()
        self.sums[key] = self.sums[key] + weighted if key in self.sums else weighted
        self.counts[key] += self.images

    def __getitem__(self, key: object) -> Any:
        """The mean as nested lists or a number."""
        return (self.sums[key] / self.counts[key]).tolist()


def protocol_of(model: ImageModel, images: int = 50, seed: int = 0) -> CalibrationProtocol:
    """The protocol of a calibration with the model's own guidance and filters."""
    return CalibrationProtocol(images=images, seed=seed, **asdict(model.sampling))


def calibrate(model: ImageModel, protocol: CalibrationProtocol) -> Calibration:
    """Runs `protocol.images` images of every class in turn through the dense model; minutes at most.

    The same model and protocol give the same numbers on the same machine.
    """
    started, watch = time.perf_counter(), _Watch(model)
    with _inputs_watched(model, watch):
        for first in range(0, protocol.images, BATCH):
            images = range(first, min(first + BATCH, protocol.images))
            labels_N = labels_for(protocol.images, model.spec.classes, device_of(model))[images.start : images.stop]
            sampler = PairedSampler(protocol.seed, images, protocol.top_k, protocol.top_p)
            watch.mean.images = len(images)
            model.generate(labels_N, sampler, watch.plan, protocol.guidance)
    skipvar = fit_skipvar(model, seed=protocol.seed)
    return watch.result(protocol, skipvar, time.perf_counter() - started)


class _Watch:
    """Collects statistics while the model generates."""

    def __init__(self, model: ImageModel) -> None:
        self.spec, self.mean = model.spec, Mean()
        self.entropy_NL = torch.zeros(())
        self.low_entropy: list[list[float]] = [[] for _ in model.spec.scales]
        dense = model.dense_plan()
        scales = tuple(
            replace(
                scale,
                layers=tuple(
                    replace(layer, attn=partial(self._halves, k, i), attend=partial(self._attend, k, i))
                    for i, layer in enumerate(scale.layers)
                ),
            )
            for k, scale in enumerate(dense.scales)
        )
        self.plan = Plan(scales, dense.new_cache)

    def _halves(
        self, k: int, layer: int, fn: Sublayer, x_BLD: Tensor, pos_BL: Tensor, memory: BranchMemory, n_images: int
    ) -> Tensor:
        y_BLD = fn(x_BLD, pos_BL)
        cond, uncond = _wide(y_BLD).split(n_images)
        self.mean.add(("half", k, layer), (cond - uncond).norm() / cond.norm())
        return y_BLD

    def _attend(
        self,
        k: int,
        layer: int,
        q_BHLC: Tensor,
        pos_BL: Tensor,
        views: tuple[KVView, ...],
        memory: AttentionMemory,
    ) -> Tensor:
        (view,), tokens, key = views, self.spec.tokens[: k + 1], (k, layer)
        map_BHLS = (_wide(q_BHLC) @ _wide(view.k_BHSC).mT).softmax(-1)
        self.mean.add(("mass", *key), statistics.scale_mass(map_BHLS, tokens))
        for j, mass_HW in enumerate(statistics.band_mass(map_BHLS, tokens)):
            self.mean.add(("band", *key, j), mass_HW)
        self.mean.add(("top", *key), statistics.history_top(map_BHLS, tokens[-1]))
        self.mean.add(("entropy", *key), statistics.entropy_ratio(map_BHLS, self.spec.scales[k]))
        self._entropy(k, layer, map_BHLS[: self.mean.images])
        if k == len(self.spec.scales) - 1:
            self.mean.add(("variance", layer), statistics.column_variance(map_BHLS))
        return map_BHLS.to(view.v_BHSC) @ view.v_BHSC

    def _entropy(self, k: int, layer: int, map_NHLS: Tensor) -> None:
        """Adds the layers' entropies up, and asks the images behind the last one."""
        entropy_NL = torch.special.entr(map_NHLS).sum(-1).mean(1)
        self.entropy_NL = self.entropy_NL + entropy_NL if layer else entropy_NL
        if layer == self.spec.n_layers - 1:
            self.low_entropy[k] += low_entropy(self.entropy_NL).flatten().tolist()

    def input_of(self, layer: int, name: str, linear: nn.Linear, x: Tensor) -> None:
        """Measures what rounding the weights of a linear does to its output on the last scale's tokens."""
        if x.shape[1] != self.spec.tokens[-1]:
            return
        y = F.linear(x, linear.weight).double()
        for bits in BITS:
            q, scale = quantize(linear.weight, bits)
            error = F.linear(x, q * scale).double() - y
            self.mean.add(("sqnr", layer, name, bits), 10 * torch.log10(y.square().sum() / error.square().sum()))

    def result(self, protocol: CalibrationProtocol, skipvar: dict[float, Decision], seconds: float) -> Calibration:
        """The means of everything seen, and what was trained beside."""
        mean, layers, scales = self.mean, range(self.spec.n_layers), range(len(self.spec.scales))
        names = {key[2] for key in mean.sums if key[0] == "sqnr"}
        return Calibration(
            fingerprint=self.spec.identity,
            protocol=protocol,
            column_variance=tuple(tuple(mean["variance", i]) for i in layers),
            scale_mass=tuple(tuple(tuple(map(tuple, mean["mass", k, i])) for i in layers) for k in scales),
            band_mass=tuple(tuple(self._bands(k, i) for i in layers) for k in scales),
            history_top=tuple(tuple(mean["top", k, i] for i in layers) for k in scales),
            entropy_ratio=tuple(tuple(mean["entropy", k, i] for i in layers) for k in scales),
            half_distance=tuple(tuple(mean["half", k, i] for i in layers) for k in scales),
            low_entropy=tuple(map(tuple, self.low_entropy)),
            skipvar=skipvar,
            sqnr=tuple({name: {b: mean["sqnr", i, name, b] for b in BITS} for name in sorted(names)} for i in layers),
            seconds=seconds,
        )

    def _bands(self, k: int, layer: int) -> tuple[tuple[Floats, ...], ...]:
        by_source = [self.mean["band", k, layer, j] for j in range(k + 1)]
        return tuple(
            tuple(tuple(x / max(mass[h][-1], 1e-12) for x in mass[h]) for mass in by_source)
            for h in range(self.spec.n_heads)
        )


def _wide(t: Tensor) -> Tensor:
    """Float32 or better."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


@contextmanager
def _inputs_watched(model: ImageModel, watch: _Watch) -> Iterator[None]:
    handles = []
    for i, block in enumerate(blocks_of(model.transformer)):
        for name in ("qkv", "proj", "fc1", "fc2"):
            parent, attribute = block.linears[name]

            def hook(module: nn.Module, inputs: tuple[Tensor], i: int = i, name: str = name) -> None:
                assert isinstance(module, nn.Linear)
                watch.input_of(i, name, module, inputs[0])

            handles.append(getattr(parent, attribute).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
