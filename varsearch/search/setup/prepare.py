"""From a request to a problem: protocols, bounds, space, starts and resources."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from varsearch.db import Store
from varsearch.errors import ModelError, TargetError, UsageError
from varsearch.evaluators.calibrate import Step, protocol_of
from varsearch.evaluators.cost_model import predicted_protocol
from varsearch.evaluators.devices import named
from varsearch.evaluators.draws import BATCH
from varsearch.evaluators.quality import protocol_for as quality_protocol
from varsearch.evaluators.speed import protocol_for as speed_protocol
from varsearch.evaluators.worker import WorkerConfig, features
from varsearch.evaluators.workload import zoo_skeleton
from varsearch.measurement import METRICS, Origin, QualityProtocol, SpeedProtocol
from varsearch.models import zoo
from varsearch.models.manifest import Part
from varsearch.models.noise import usual_noise
from varsearch.search.core.bounds import Bound
from varsearch.search.core.settings import RunSettings, named_objectives
from varsearch.search.run.events import Resources
from varsearch.search.run.rungs import Rung, rungs_of
from varsearch.search.setup.bounds import resolve
from varsearch.search.setup.calibration import calibrated, known_calibration
from varsearch.search.setup.initial_design import Starts, starts_for
from varsearch.search.setup.request import Request
from varsearch.space import SearchSpace
from varsearch.target import DType, Target, check_dtype, default_target, find_device


@dataclass(frozen=True, slots=True)
class Problem:
    """What a search works on.

    Attributes:
        settings: what makes trials comparable.
        worker: what evaluates.
        space: where policies come from.
        starts: published systems and hand-made policies that fit the model.
        resources: of each worker.
    """

    settings: RunSettings
    worker: WorkerConfig
    space: SearchSpace
    starts: Starts
    resources: Resources

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Early looks at which policies may be given up."""
        return rungs_of(self.settings, predicted_protocol(self.settings.target), BATCH)


def prepare(
    request: Request,
    storage: str | Path,
    on_calibrate: Callable[[], None] = lambda: None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Problem:
    """Loads what is needed to know what the run is about, and refuses what cannot work before anything is evaluated.

    Args:
        request: what the user asks for.
        storage: database that knows the model's calibration, or gets it.
        on_calibrate: called before a calibration pass, which takes a while.
        on_step: told how far the pass is.

    Raises:
        UsageError: a bound that nothing can satisfy, or workers that would disturb each other's measurements.
        ModelError, TargetError: the model or target is unknown or damaged.
    """
    request, bounds = request.joined(), request.bounds
    spec = zoo.manifest(request.model).spec()
    target = default_target(named(request.target), request.batch_size, check_dtype(request.dtype), spec)
    resources = _resources(request)
    threads = max(1, int(resources.cpus))
    torch.set_num_threads(threads)
    speed = _speed_protocol(request, target, resources)
    resources = replace(resources, gpus=_gpus(request, speed))
    device = "cuda" if resources.gpus or _is_measured_on(speed, "cuda") else "cpu"
    quality_dtype = check_dtype(request.quality_dtype) or (target.dtype if device == "cuda" else "float32")
    objectives = named_objectives(request.objectives, speed.origin)
    settings = RunSettings(
        model=request.model,
        fingerprint=spec.identity,
        quality=_quality(
            request, objectives, bounds, (device, quality_dtype), measured=speed.origin is Origin.MEASURED
        ),
        speed=speed,
        objectives=objectives,
        bounds=resolve(bounds, SearchSpace(spec), request.model, speed),
        seed=request.seed,
    )
    # On a cluster the GPU may be elsewhere, and a calibration runs here.
    place = (device, quality_dtype) if device == "cpu" or torch.cuda.is_available() else ("cpu", "float32")
    starts = _starts(request, storage, settings.quality is not None, place, (on_calibrate, on_step))
    space = SearchSpace(spec, starts.presets)
    settings = settings.model_copy(update={"space": space.digest})
    worker = WorkerConfig(
        model=zoo.absolute(request.model),
        device=device,
        threads=threads,
        reference=request.reference and str(Path(request.reference).resolve()),
        inception=request.inception and str(Path(request.inception).resolve()),
    )
    return Problem(settings, worker, space, starts, resources)


def _quality(
    request: Request,
    objectives: tuple[str, ...],
    bounds: tuple[Bound, ...],
    place: tuple[str, DType],
    *,
    measured: bool,
) -> QualityProtocol | None:
    """How quality is evaluated; None if no objective asks for it. Reads the files, so that damage shows early."""
    if not any(METRICS[name].kind == "quality" for name in objectives):
        options = [bound.option for bound in bounds if bound.bounded == "fid"]
        options += ["--reference"] * bool(request.reference) + ["--inception-weights"] * bool(request.inception)
        if options:
            raise UsageError(f"{options[0]} needs quality, which is not evaluated: add fid to --objectives")
        if measured:
            zoo.load(request.model, dtype=place[1])
        return None
    own: dict[Part, str | None] = {"classifier": request.inception, "reference": request.reference}
    needed = [part for part, given in own.items() if given is None]
    refusal = zoo.quality_refusal(request.model, needed)
    if refusal:
        others = "" if zoo.weights_refusal(request.model) else "give --reference and --inception-weights; "
        raise ModelError(
            f"the quality of {request.model} cannot be evaluated: {refusal}; {others}"
            "for latency and memory alone give --objectives latency,memory"
        )
    extractor, reference = features(request.model, request.reference, request.inception, "cpu")
    held_out = zoo.held_out(request.model)
    available = len(held_out[1]) if held_out else 0
    return quality_protocol(
        zoo.load(request.model, dtype=place[1]),
        extractor,
        reference,
        n_images=request.images,
        nll_images=min(request.images, available, 256),
        seed=request.seed,
        noise=usual_noise(place[0]),
    )


def _starts(
    request: Request,
    storage: str | Path,
    judged: bool,
    place: tuple[str, DType],
    told: tuple[Callable[[], None], Callable[[Step], None]],
) -> Starts:
    """What the search starts from; without the systems that need a calibration where there can be none.

    A run that evaluates no quality pays for no calibration: it takes one that is known, or the papers' constants.
    """
    bones, siblings = zoo_skeleton(request.model), zoo.siblings(request.model)
    calibration = None
    if zoo.calibration_refusal(request.model) is None:
        if judged:
            load = partial(zoo.load, request.model)
            calibration = calibrated(bones, load, storage, on_start=told[0], on_step=told[1], place=place)
        else:
            with Store(storage) as store:
                protocol = protocol_of(bones, noise=usual_noise(place[0]), dtype=place[1])
                calibration = known_calibration(store, bones, protocol)
    return starts_for(bones.spec, calibration, siblings, assume=not judged)


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
    return Resources(cpus=cpus, gpus=request.gpus_per_worker or 0.0)


def _speed_protocol(request: Request, target: Target, resources: Resources) -> SpeedProtocol:
    asked = target, request.attention, zoo.manifest(request.model).spec().head_dim
    if request.ray_address and request.workers:
        from varsearch.search.run.ray import ask  # importing Ray takes seconds

        found: SpeedProtocol = ask(request.ray_address, resources, speed_protocol, *asked)
        return found
    return speed_protocol(*asked)


def _is_measured_on(speed: SpeedProtocol, kind: str) -> bool:
    return speed.origin is Origin.MEASURED and find_device(speed.target.device).kind == kind


def _gpus(request: Request, speed: SpeedProtocol) -> float:
    """GPUs of each worker; refuses what would have two workers measure each other."""
    asked = request.gpus_per_worker
    if speed.origin is not Origin.MEASURED:
        return asked or 0.0
    if _is_measured_on(speed, "cpu") and request.workers > 1:
        raise UsageError(
            f"latency on {speed.target.device} is measured, and {request.workers} workers would disturb each other: "
            "use --workers 0 or 1, or a target that is predicted"
        )
    if _is_measured_on(speed, "cpu"):
        return asked or 0.0
    if asked is None:
        asked = float(request.workers > 0)
    if asked % 1 or (request.workers and not asked):
        raise TargetError(
            f"latency on {speed.target.device} is measured, which needs a whole GPU per worker, got {asked:g}: "
            "leave --gpus-per-worker out, or give 1"
        )
    there = torch.cuda.device_count()
    if not request.ray_address and asked * request.workers > there:
        raise TargetError(
            f"{request.workers} workers of {asked:g} GPU each measure latency, and {there} GPUs are here: "
            f"use --workers {there} or fewer"
        )
    return asked
