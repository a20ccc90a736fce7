"""The calibration pass: samples images with the dense model and watches its attention and its linears."""

from __future__ import annotations

import io
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varsearch.accel import Accelerated, labels_for
from varsearch.accel.decision import low_entropy
from varsearch.calibration import Calibration, CalibrationProtocol, Floats
from varsearch.errors import UsageError
from varsearch.evaluators import attention_statistics as statistics
from varsearch.evaluators.batches import Batches
from varsearch.evaluators.decisions import SkipVARFit
from varsearch.evaluators.extractors import check_finite
from varsearch.evaluators.workload import default_sampler, device_of, dtype_of
from varsearch.files import write_atomically
from varsearch.kernels.packing import quantize
from varsearch.models.families import blocks_of
from varsearch.models.image_model import ImageModel
from varsearch.models.sampling import PairedSampler
from varsearch.models.seams import AttentionMemory, BranchMemory, KVView, Plan, Sublayer
from varsearch.policy import Decision, Policy
from varsearch.target import DType, Noise

BATCH = 10
"""Images at a time where there is room for them."""

BLOCK_BYTES = 2**28
"""Of attention maps at once: a map is made for as many queries as fit, and thrown away, before those that follow."""

SAVE_SECONDS = 10.0
"""So much work is lost at most if the process is killed, or one batch."""

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
        return (self.sums[key] / self.counts[key]).cpu().tolist()


def protocol_of(
    model: ImageModel, images: int = 50, seed: int = 0, noise: Noise = "mt19937", dtype: DType = "float32"
) -> CalibrationProtocol:
    """The protocol of a calibration with the model's own guidance and filters."""
    return CalibrationProtocol(images=images, seed=seed, noise=noise, dtype=dtype, **asdict(model.sampling))


@dataclass(frozen=True, slots=True)
class Step:
    """How far a calibration is: images drawn and still to draw, and the seconds that those may take."""

    done: int
    left: int
    seconds_left: float


def calibrate(
    model: ImageModel,
    protocol: CalibrationProtocol,
    *,
    keep: Path | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Calibration:
    """Runs `protocol.images` images of every class in turn through the dense model, and fits SkipVAR's decision.

    The same model and protocol give the same numbers on the same machine. Statistics are made from blocks of queries,
    so memory is that of drawing images and a few hundred megabytes.

    Args:
        model: where it runs, in the protocol's number format.
        protocol: what is drawn.
        keep: file of what is done so far; a call that finds one of the same model and protocol goes on from there. It
            is written now and then, and removed at the end.
        on_step: told after every batch.

    Raises:
        UsageError: the model is in another number format than the protocol's.
        EvaluationError: there is not enough memory for a single image.
    """
    if dtype_of(model) != protocol.dtype:
        raise UsageError(f"the calibration is of {protocol.dtype}, the model in {dtype_of(model)}: load it in that")
    run = _Run(model, protocol, keep, on_step)
    run.watch_attention()
    skipvar = run.skipvar()
    found = run.watch.result(protocol, skipvar, run.seconds)
    if keep is not None:
        keep.unlink(missing_ok=True)
    return found


class _Run:
    """One calibration: what is done, what is left, and where that is kept."""

    def __init__(
        self, model: ImageModel, protocol: CalibrationProtocol, keep: Path | None, on_step: Callable[[Step], None]
    ) -> None:
        self.model, self.protocol, self.keep, self.on_step = model, protocol, keep, on_step
        self.watch, self.fit = _Watch(model), SkipVARFit(model, seed=protocol.seed, noise=protocol.noise)
        self.drawn, self._before, self._started = 0, 0.0, time.perf_counter()
        self._saved = self._started
        self._restore()
        self._first = self.done

    @property
    def seconds(self) -> float:
        """What it took so far, earlier calls included."""
        return self._before + time.perf_counter() - self._started

    @property
    def done(self) -> int:
        """Images drawn."""
        return self.drawn + self.fit.drawn

    def watch_attention(self) -> None:
        """Draws the dense model's images and watches its attention and its linears."""
        model, protocol, watch = self.model, self.protocol, self.watch
        labels_N = labels_for(protocol.images, model.spec.classes, device_of(model))
        dense = Policy.dense(model.spec.n_layers, len(model.spec.scales))
        batch = min(BATCH, Batches(model, BATCH, watching).of(dense)) if self.drawn < protocol.images else 1
        with _inputs_watched(model, watch):
            while self.drawn < protocol.images:
                images = range(self.drawn, min(self.drawn + batch, protocol.images))
                sampler = PairedSampler(protocol.seed, images, protocol.top_k, protocol.top_p, protocol.noise)
                watch.mean.images = len(images)
                drawn = model.generate(labels_N[images.start : images.stop], sampler, watch.plan, protocol.guidance)
                check_finite(drawn, "images")
                self.drawn = images.stop
                self._stepped()

    def skipvar(self) -> dict[float, Decision]:
        """Fits SkipVAR's decision."""
        for _ in self.fit.steps():
            self._stepped()
        return self.fit.result()

    def _stepped(self) -> None:
        left = self.protocol.images + self.fit.images - self.done
        now = time.perf_counter()
        if self.keep is not None and left and now - self._saved > SAVE_SECONDS:
            self._save(self.keep)
            self._saved = now
        self.on_step(Step(self.done, left, left * (now - self._started) / (self.done - self._first)))

    @property
    def _identity(self) -> str:
        return f"{self.model.spec.identity} {self.protocol.digest}"

    def _save(self, path: Path) -> None:
        state = {
            "identity": self._identity,
            "drawn": self.drawn,
            "seconds": self.seconds,
            "watch": self.watch.state(),
            "fit": self.fit.state(),
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(path, content.getvalue())

    def _restore(self) -> None:
        """Takes over what an interrupted call left; what is damaged or of something else is passed over."""
        if self.keep is None or not self.keep.is_file():
            return
        try:
            state = torch.load(self.keep, map_location=device_of(self.model), weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError):
            return
        if isinstance(state, dict) and state.get("identity") == self._identity:
            self.drawn, self._before = state["drawn"], state["seconds"]
            self.watch.restore(state["watch"])
            self.fit.restore(state["fit"])


def watching(applied: Accelerated, n: int) -> object:
    """The pass of a calibration, for `Batches`."""
    model = applied.model
    watch = _Watch(model)
    watch.mean.images = n
    with _inputs_watched(model, watch):
        return model.generate(labels_for(n, model.spec.classes), default_sampler(model), watch.plan)


class _Watch:
    """Collects statistics while the model generates."""

    def __init__(self, model: ImageModel) -> None:
        self.spec, self.mean = model.spec, Mean()
        self.entropy_NL = torch.zeros(())
        self.low_entropy: list[list[Tensor]] = [[] for _ in model.spec.scales]
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

    def state(self) -> dict[str, Any]:
        """What was seen, as tensors and numbers."""
        return {"sums": self.mean.sums, "counts": dict(self.mean.counts), "low_entropy": self.low_entropy}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        self.mean.sums, self.low_entropy = state["sums"], state["low_entropy"]
        self.mean.counts.update(state["counts"])

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
        (view,), last = views, k == len(self.spec.scales) - 1
        k_BHSC, blocks = _wide(view.k_BHSC), _Blocks(self.spec.tokens[: k + 1], last)
        per_query = 4 * k_BHSC[..., 0].numel()
        outputs = []
        for q_BHQC in q_BHLC.split(max(1, BLOCK_BYTES // per_query), dim=2):
            map_BHQS = (_wide(q_BHQC) @ k_BHSC.mT).softmax(-1)
            blocks.add(map_BHQS)
            outputs.append(map_BHQS.to(view.v_BHSC) @ view.v_BHSC)
            del map_BHQS
        entropy_BL = torch.cat(blocks.entropies, dim=1)
        self.mean.add(("entropy", k, layer), statistics.entropy_ratio(entropy_BL, self.spec.scales[k]))
        for name, value in blocks.means():
            self.mean.add((name[0], k, layer, *name[1:]), value)
        self._entropy(k, layer, entropy_BL[: self.mean.images])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def _entropy(self, k: int, layer: int, entropy_NL: Tensor) -> None:
        """Adds the layers' entropies up, and asks the images behind the last one."""
        self.entropy_NL = self.entropy_NL + entropy_NL if layer else entropy_NL
        if layer == self.spec.n_layers - 1:
            self.low_entropy[k].append(low_entropy(self.entropy_NL).flatten())

    def input_of(self, layer: int, name: str, linear: nn.Linear, x: Tensor) -> None:
        """Measures what rounding the weights of a linear does to its output on the last scale's tokens."""
        if x.shape[1] != self.spec.tokens[-1]:
            return
        pieces = x.split(max(1, BLOCK_BYTES // (8 * len(x) * linear.out_features)), dim=1)
        signal = sum(F.linear(piece, linear.weight).double().square().sum() for piece in pieces)
        for bits in BITS:
            q, scale = quantize(linear.weight, bits)
            rounded = q * scale
            errors = (F.linear(p, rounded).double() - F.linear(p, linear.weight).double() for p in pieces)
            noise = sum(error.square().sum() for error in errors)
            self.mean.add(("sqnr", layer, name, bits), 10 * torch.log10(torch.as_tensor(signal / noise)))

    def result(self, protocol: CalibrationProtocol, skipvar: dict[float, Decision], seconds: float) -> Calibration:
        """The means of everything seen, and what was trained beside."""
        mean, layers, scales = self.mean, range(self.spec.n_layers), range(len(self.spec.scales))
        names = {key[2] for key in mean.sums if key[0] == "sqnr"}
        return Calibration(
            fingerprint=self.spec.identity,
            protocol=protocol,
            column_variance=tuple(tuple(mean["variance", scales[-1], i]) for i in layers),
            scale_mass=tuple(tuple(tuple(map(tuple, mean["mass", k, i])) for i in layers) for k in scales),
            band_mass=tuple(tuple(self._bands(k, i) for i in layers) for k in scales),
            history_top=tuple(tuple(mean["top", k, i] for i in layers) for k in scales),
            entropy_ratio=tuple(tuple(mean["entropy", k, i] for i in layers) for k in scales),
            half_distance=tuple(tuple(mean["half", k, i] for i in layers) for k in scales),
            low_entropy=tuple(tuple(torch.cat(parts).cpu().tolist()) for parts in self.low_entropy),
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


class _Blocks:
    """Statistics of one attention map that comes in blocks of queries."""

    def __init__(self, tokens: Sequence[int], last: bool) -> None:
        self.tokens, self.last, self.seen = tokens, last, 0
        self.entropies: list[Tensor] = []
        self.sums: dict[tuple[Any, ...], Tensor] = {}

    def add(self, map_BHQS: Tensor) -> None:
        """Counts the next queries in."""
        queries, length = map_BHQS.shape[2], self.tokens[-1]
        share = queries / length
        self._add(("mass",), statistics.scale_mass(map_BHQS, self.tokens).double() * share)
        for j, mass_HW in enumerate(statistics.band_mass(map_BHQS, self.tokens, self.seen)):
            self._add(("band", j), mass_HW.double())
        self._add(("top",), statistics.history_top(map_BHQS, length).double() * share)
        self.entropies.append(statistics.entropy(map_BHQS))
        if self.last:
            for name, value in zip(("sum", "squares"), statistics.column_moments(map_BHQS), strict=True):
                self._add((name,), value)
        self.seen += queries

    def means(self) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        """All statistics by name, of all queries seen."""
        if self.last:
            moments = self.sums.pop(("sum",)), self.sums.pop(("squares",))
            yield ("variance",), statistics.column_variance(*moments, self.seen)
        yield from self.sums.items()

    def _add(self, name: tuple[Any, ...], value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value


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
