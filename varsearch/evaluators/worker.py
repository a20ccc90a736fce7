"""What runs in each worker: a resident model and the evaluators of one run."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from varsearch.evaluators.cost_model import CostModel
from varsearch.evaluators.extractors import Extractor, classifier_extractor, inception_extractor
from varsearch.evaluators.quality import QualityEvaluator
from varsearch.evaluators.reference import Reference, load_reference, zoo_reference
from varsearch.evaluators.speed import SpeedEvaluator
from varsearch.evaluators.workload import zoo_skeleton
from varsearch.measurement import Job, Origin, Outcome, QualityProtocol, SpeedProtocol
from varsearch.models import zoo
from varsearch.target import Frozen


class WorkerConfig(Frozen):
    """Everything a process needs to evaluate policies as the run asks; small, and safe to send anywhere.

    Args:
        model: name or folder of the model.
        device: where quality is evaluated, "cpu" or "cuda".
        quality: how quality is evaluated; None evaluates none.
        threads: CPU threads; results may differ in the last bits between numbers of threads, so they are part of it.
        reference: file of reference statistics; None takes the one that ships with the model.
        inception: file of the Inception weights; None takes the classifier that ships with the model.
    """

    model: str
    device: str
    threads: int
    quality: QualityProtocol | None
    speed: SpeedProtocol
    reference: str | None = None
    inception: str | None = None

    def make(self) -> PolicyWorker:
        """The worker, with this process's threads set."""
        torch.set_num_threads(self.threads)
        return PolicyWorker(self)


class PolicyWorker:
    """Evaluates one policy after the other on a model that stays in memory."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config

    def evaluate(self, job: Job) -> Outcome:
        """The evidence that the job lacks; no quality where the run evaluates none.

        Raises:
            VarsearchError: the policy does not fit, or gave no usable number.
        """
        speed = job.speed or self.speed.evaluate(job.policy)
        quality = job.quality or (self.quality and self.quality.evaluate(job.policy))
        return Outcome(number=job.number, quality=quality, speed=speed)

    @cached_property
    def quality(self) -> QualityEvaluator | None:
        """Made on first use: a run that only asks for another target needs no images."""
        c = self.config
        if c.quality is None:
            return None
        extractor, reference = features(c.model, c.reference, c.inception, c.device)
        return QualityEvaluator(zoo.load(c.model, c.device), c.quality, extractor, reference, zoo.held_out(c.model))

    @cached_property
    def speed(self) -> SpeedEvaluator | CostModel:
        """Measures where the protocol says so, predicts otherwise."""
        if self.config.speed.origin is Origin.MEASURED:
            return SpeedEvaluator(zoo.load(self.config.model), self.config.speed)
        return CostModel(zoo_skeleton(self.config.model), self.config.speed)


def features(model: str, reference: str | None, inception: str | None, device: str) -> tuple[Extractor, Reference]:
    """The extractor and the reference statistics that a run compares images with.

    Raises:
        ModelError: a file is missing or damaged.
        UsageError: the reference was made with another extractor.
    """
    if inception is None:
        extractor = classifier_extractor(zoo.load_classifier(model, device))
    else:
        extractor = inception_extractor(Path(inception), device)
    found = load_reference(Path(reference)) if reference else zoo_reference(model)
    found.require(extractor)
    return extractor, found
