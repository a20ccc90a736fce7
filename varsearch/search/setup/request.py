"""What a user asks a search for; the command line and Python ask with the same words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypedDict

from varsearch.errors import UsageError
from varsearch.models import registry
from varsearch.search.core.bounds import Bound, parse_bounds
from varsearch.search.run.stopping import check_limits
from varsearch.target import AttentionName

MAX_NAME = 200
"""Characters of a run's name that the database has room for."""


@dataclass(frozen=True, slots=True)
class Request:
    """A search; every default is also the command line's.

    Args:
        model: name or folder of the model.
        weights: of a published model, the place of its weights; see `models.registry`.
        prompts: of a model that reads texts, a file of its prompts.
        target: name of a row of the device table.
        budget: evaluations in total, earlier calls included.
        name: name of the run; None makes one from model, target and settings.
        objectives: one to four to trade off, see `named_objectives`. Without a metric of quality
            none is evaluated.
        images: images behind every quality number.
        batch_size: images per batch that latency and memory refer to; None takes the device's
            usual one.
        dtype: number format; None takes the device's usual one.
        attention: who computes attention where speed is measured; see `accel.apply`.
        max_latency: "12ms" or relative to dense, "0.7x".
        max_memory: "40MB" or relative to dense, "0.8x".
        max_fid: "1.9" or relative to dense, "+0.5".
        minutes: no evaluation begins after this time.
        patience: evaluations without growth of the hypervolume that end the search.
        profile: whether proposals may use a sensitivity profile. Budgets from 100 on make one.
        warm_starts: policies of the profile, from mild to strong, that are tried first.
        rungs: whether policies may be given up after a part of their images.
        confirm: whether finalists are evaluated again on fresh noise at the end.
        seed: of the images' noise and of the sampler.
        workers: processes on Ray, or 0 to evaluate in this one.
        cpus_per_worker: cores of each worker; None divides this machine's.
        gpus_per_worker: GPUs of each worker, fractions allowed. Images are drawn on one if there is
            any, or if latency is measured on one. None is 1 where workers measure on a GPU, else 0.
        ray_address: a running Ray cluster.
        reference: file of reference statistics; None takes the model's own.
        inception: file of Inception weights; None takes the model's own classifier.
        quality_dtype: number format of drawn images; None is the target's where they are drawn on a
            GPU, else float32.
    """

    model: str = "mnist"
    weights: str | None = None
    prompts: str | None = None
    target: str = "cpu"
    budget: int = 50
    name: str | None = None
    objectives: tuple[str, ...] | None = None
    images: int = 512
    batch_size: int | None = None
    dtype: str | None = None
    attention: AttentionName = "sdpa"
    max_latency: str | None = None
    max_memory: str | None = None
    max_fid: str | None = None
    minutes: float | None = None
    patience: int | None = None
    profile: bool = True
    warm_starts: int = 0
    rungs: bool = False
    confirm: bool = True
    seed: int = 0
    workers: int = 0
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None
    ray_address: str | None = None
    reference: str | None = None
    inception: str | None = None
    quality_dtype: str | None = None

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """The bounds on latency, memory and FID; `UsageError` if one cannot be read."""
        return parse_bounds(self.max_latency, self.max_memory, self.max_fid)

    def joined(self) -> Request:
        """The request with weights and prompts in the model's name.

        Raises:
            UsageError: they do not belong to the model.
        """
        model = registry.join(self.model, self.weights, self.prompts)
        return replace(self, model=model, weights=None, prompts=None)

    def check(self) -> None:
        """Raises `UsageError` for a request that makes no sense for any model."""
        check_limits(self.budget, self.minutes, self.patience)
        if self.warm_starts and not self.profile:
            raise UsageError("--warm-starts come from a profile, without which --no-profile goes: give one of the two")
        if self.name is not None:
            check_name(self.name)


class Options(TypedDict, total=False):
    """The less common fields of `Request`, as keyword arguments of `varsearch.search`."""

    weights: str | None
    prompts: str | None
    name: str | None
    images: int
    batch_size: int | None
    dtype: str | None
    attention: AttentionName
    max_latency: str | None
    max_memory: str | None
    max_fid: str | None
    minutes: float | None
    patience: int | None
    profile: bool
    warm_starts: int
    rungs: bool
    confirm: bool
    seed: int
    workers: int
    cpus_per_worker: int | None
    gpus_per_worker: float | None
    ray_address: str | None
    reference: str | None
    inception: str | None
    quality_dtype: str | None


def check_name(name: str) -> None:
    """Raises `UsageError` for a run's name that cannot be stored, or not be shown in one line."""
    if not (name.strip() and name.isprintable() and len(name) <= MAX_NAME):
        raise UsageError(f"the run's name {name!r} is not 1 to {MAX_NAME} printable characters: give another --name")
