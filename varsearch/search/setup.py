"""From what a user asks for to what the search needs: protocols, bounds, space, seeds and resources."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from varsearch.errors import TargetError, UsageError
from varsearch.evaluators.cost_model import CostModel, predicted_protocol
from varsearch.evaluators.quality import protocol_for as quality_protocol
from varsearch.evaluators.speed import protocol_for as speed_protocol
from varsearch.evaluators.worker import WorkerConfig, features
from varsearch.evaluators.workload import zoo_skeleton
from varsearch.measurement import METRICS, Origin, SpeedProtocol
from varsearch.models import zoo
from varsearch.search.progress import Resources
from varsearch.search.settings import RunSettings, default_objectives
from varsearch.search.starts import Starts, calibrated, starts_for
from varsearch.space import SearchSpace
from varsearch.target import AttentionName, Target, default_target, find_device

MAX_NAME = 200
"""Characters of a run's name that the database has room for."""

UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for; every default is the command line's.

    Args:
        model: name or folder of the model.
        target: name of a row of the device table.
        batch_size: images per batch that latency and memory refer to; None takes the device's usual one.
        attention: who computes attention where speed is measured; see `accel.apply`.
        images: images behind every quality number.
        objectives: one to three metrics to trade off; None takes `default_objectives`.
        max_latency: "12ms" or relative to dense, "0.7x".
        max_memory: "40MB" or relative to dense, "0.8x".
        max_fid: "1.9" or relative to dense, "+0.5".
        seed: of the images' noise and of the sampler.
        workers: processes on Ray, or 0 to evaluate in this one.
        cpus_per_worker: cores of each worker; None divides this machine's.
        gpus_per_worker: GPUs of each worker, fractions allowed.
        ray_address: a running Ray cluster.
        reference: file of reference statistics; None takes the model's own.
        inception: file of Inception weights; None takes the model's own classifier.
    """

    model: str = "mnist"
    target: str = "cpu"
    batch_size: int | None = None
    attention: AttentionName = "sdpa"
    images: int = 512
    objectives: tuple[str, ...] | None = None
    max_latency: str | None = None
    max_memory: str | None = None
    max_fid: str | None = None
    seed: int = 0
    workers: int = 0
    cpus_per_worker: int | None = None
    gpus_per_worker: float = 0.0
    ray_address: str | None = None
    reference: str | None = None
    inception: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything `search.run` takes."""

    settings: RunSettings
    worker: WorkerConfig
    space: SearchSpace
    starts: Starts
    resources: Resources


def check_budget(budget: int, minutes: float | None) -> None:
    """Refuses a budget that evaluates nothing, before anything is loaded."""
    if budget < 1:
        raise UsageError(f"the budget must be at least 1 trial, got {budget}")
    if minutes is not None and not 0 < minutes < float("inf"):
        raise UsageError(f"the time must be a positive number of minutes, got {minutes}")


def check_name(name: str) -> None:
    """Refuses a name for a run that cannot be stored, or not be shown in one line."""
    if not (name.strip() and name.isprintable() and len(name) <= MAX_NAME):
        raise UsageError(f"the run's name {name!r} is not 1 to {MAX_NAME} printable characters: give another --name")


def prepare(request: Request, storage: str | Path, on_calibrate: Callable[[], None] = lambda: None) -> Plan:
    """Loads what is needed to know what the run is about, and refuses what cannot work before anything is evaluated.

    Args:
        request: what the user asks for.
        storage: database that knows the model's calibration, or gets it.
        on_calibrate: called before a calibration pass, which takes a while.

    Raises:
        UsageError: a bound that nothing can satisfy, or workers that would disturb each other's measurements.
        ModelError, TargetError: the model or target is unknown or damaged.
    """
    target = default_target(find_device(request.target), request.batch_size)
    resources = _resources(request)
    threads = max(1, int(resources.cpus))
    torch.set_num_threads(threads)
    speed = _speed_protocol(request, target, resources)
    _check_exclusive(request, speed)
    model = zoo.load(request.model)
    extractor, reference = features(request.model, request.reference, request.inception, "cpu")
    available = len(zoo.held_out(request.model)[1])
    quality = quality_protocol(
        model,
        extractor,
        reference,
        n_images=request.images,
        nll_images=min(request.images, available, 256),
        seed=request.seed,
    )
    settings = RunSettings(
        model=request.model,
        fingerprint=model.spec.fingerprint,
        quality=quality,
        speed=speed,
        objectives=default_objectives(speed.origin) if request.objectives is None else request.objectives,
        bounds=_bounds(request, SearchSpace(model.spec), speed),
        seed=request.seed,
    )
    calibration = calibrated(model, storage, on_start=on_calibrate)
    starts = starts_for(model.spec, calibration, zoo.siblings(request.model))
    space = SearchSpace(model.spec, starts.presets)
    settings = settings.model_copy(update={"space": space.digest})
    worker = WorkerConfig(
        model=request.model,
        device="cuda" if request.gpus_per_worker else "cpu",
        threads=threads,
        quality=quality,
        speed=speed,
        reference=request.reference,
        inception=request.inception,
    )
    return Plan(settings, worker, space, starts, resources)


def _resources(request: Request) -> Resources:
    if request.workers < 0:
        raise UsageError(f"workers must be 0 (in this process) or more, got {request.workers}")
    if request.ray_address is not None and request.workers == 0:
        raise UsageError("--ray-address needs --workers of 1 or more: 0 evaluates in this process, without Ray")
    cores = os.cpu_count() or 1
    cpus = request.cpus_per_worker or max(1, cores // max(1, request.workers))
    if not request.ray_address and cpus * max(1, request.workers) > cores:
        raise UsageError(
            f"{max(1, request.workers)} x {cpus} cores are more than the {cores} of this machine: "
            "lower --cpus-per-worker or --workers"
        )
    return Resources(cpus=cpus, gpus=request.gpus_per_worker)


def _speed_protocol(request: Request, target: Target, resources: Resources) -> SpeedProtocol:
    asked = target, request.attention, zoo.manifest(request.model).spec().head_dim
    if request.ray_address and request.workers:
        from varsearch.search.ray_workers import ask  # importing Ray takes seconds

        found: SpeedProtocol = ask(request.ray_address, resources, speed_protocol, *asked)
        return found
    return speed_protocol(*asked)


def _check_exclusive(request: Request, speed: SpeedProtocol) -> None:
    """Two workers on one device would measure each other."""
    if speed.origin is not Origin.MEASURED:
        return
    if find_device(speed.target.device).kind == "cpu" and request.workers > 1:
        raise UsageError(
            f"latency on {speed.target.device} is measured, and {request.workers} workers would disturb each other: "
            "use --workers 0 or 1, or a target that is predicted"
        )
    if request.gpus_per_worker % 1:
        raise TargetError(
            f"latency on {speed.target.device} is measured, which needs a whole GPU per worker, "
            f"got {request.gpus_per_worker:g}"
        )


def _bounds(request: Request, space: SearchSpace, speed: SpeedProtocol) -> dict[str, float]:
    bounds: dict[str, float] = {}
    costs = Costs(space, request.model, speed)
    if request.max_latency is not None:
        amount, relative = _amount(request.max_latency, "--max-latency", ("ms", "s"))
        # Relative to dense is a bound on the speed-up: it is measured side by side, and stays the same on a rerun.
        bounds |= {"speedup": 1 / amount} if relative else {"latency_ms": amount}
        costs.require("latency_ms", amount * costs.dense["latency_ms"] if relative else amount, "--max-latency")
    if request.max_memory is not None:
        amount, relative = _amount(request.max_memory, "--max-memory", ("B", "kB", "MB", "GB"))
        bounds["peak_bytes"] = amount * costs.dense["peak_bytes"] if relative else amount
        costs.require("peak_bytes", bounds["peak_bytes"], "--max-memory")
    if request.max_fid is not None:
        amount, _ = _amount(request.max_fid.removeprefix("+"), "--max-fid", ())
        bounds["delta_fid" if request.max_fid.startswith("+") else "fid"] = amount
    return bounds


def _amount(text: str, option: str, units: tuple[str, ...]) -> tuple[float, bool]:
    """A positive number with a unit; true if it is relative ("0.7x")."""
    suffixes = "|".join((*units, "x") if units else ())
    found = re.fullmatch(rf"(\d+(?:\.\d*)?|\.\d+)\s*({suffixes})?", text)
    if found is None or float(found[1]) <= 0:
        forms = f"a number, with one of {', '.join(units)}, or relative to dense as in 0.7x" if units else "2.0 or +0.5"
        raise UsageError(f"{option} {text!r}: expected {forms}, above 0")
    return float(found[1]) * UNITS.get(found[2] or "", 1.0), found[2] == "x"


class Costs:
    """Cost-model figures of the dense policy and of the cheapest one the space has.

    Where latency is measured they only serve to refuse the impossible, with a margin.
    """

    def __init__(self, space: SearchSpace, model: str, speed: SpeedProtocol) -> None:
        self.space, self.speed = space, speed
        self.model = CostModel(zoo_skeleton(model), predicted_protocol(speed.target))

    @property
    def dense(self) -> dict[str, float]:
        """Figures of the unmodified model."""
        return self.model.evaluate(self.space.decode({})).values

    def require(self, metric: str, limit: float, option: str) -> None:
        """Raises `UsageError` if even the cheapest policy exceeds `limit`."""
        cheapest = self.space.decode({name: levels - 1 for name, levels in self.space.own.items()})
        least = self.model.evaluate(cheapest).values[metric]
        measured_latency = metric == "latency_ms" and self.speed.origin is Origin.MEASURED
        if limit < least * (0.5 if measured_latency else 1.0):
            unit = METRICS[metric].unit
            raise UsageError(
                f"{option}: no policy has {metric} of {limit:.4g} {unit}; the least reachable is {least:.4g} {unit}"
            )
