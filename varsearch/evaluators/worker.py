"""What runs in each worker: a resident model, and an evaluator for each protocol that it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from varsearch.evaluators.costs import predicting
from varsearch.evaluators.devices import named
from varsearch.evaluators.draws import Draws
from varsearch.evaluators.extractors import Extractor, classifier_extractor, inception_extractor
from varsearch.evaluators.quality import QualityEvaluator
from varsearch.evaluators.reference import Reference, load_reference, zoo_reference
from varsearch.evaluators.speed import SpeedEvaluator
from varsearch.measurement import Evidence, Job, Origin, Outcome, QualityProtocol, SpeedProtocol
from varsearch.models import zoo
from varsearch.models.image_model import ImageModel
from varsearch.policy import Policy
from varsearch.target import DType, Frozen

Clock = Callable[[Policy], Evidence]
"""Measures or predicts the speed and memory of a policy."""


class WorkerConfig(Frozen):
    """Everything a process needs to evaluate policies as the run asks; small, and safe to send anywhere.

    Args:
        model: name or folder of the model.
        device: where quality is evaluated, "cpu" or "cuda".
        threads: CPU threads; results may differ in the last bits between numbers of threads, so they are part of it.
        reference: file of reference statistics; None takes the one that ships with the model.
        inception: file of the Inception weights; None takes the classifier that ships with the model.
    """

    model: str
    device: str
    threads: int
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
        self._judges: dict[str, QualityEvaluator] = {}
        self._clocks: dict[str, Clock] = {}
        self._models: dict[tuple[str, DType], ImageModel] = {}

    def evaluate(self, job: Job) -> Outcome:
        """The evidence that the job asks for.

        Raises:
            VarsearchError: the policy does not fit, or gave no usable number.
        """
        speed = job.speed and self.speed(job.speed)(job.policy)
        quality = job.quality and self.quality(job.quality).evaluate(job.policy)
        return Outcome(number=job.number, quality=quality, speed=speed)

    def quality(self, protocol: QualityProtocol) -> QualityEvaluator:
        """Made on first use. Protocols that differ in the number of images alone share what was drawn."""
        if protocol.digest not in self._judges:
            extractor, reference = self._features
            model = self._model(self.config.device, protocol.dtype)
            self._judges[protocol.digest] = QualityEvaluator(
                model,
                protocol,
                extractor,
                reference,
                self._held_out,
                self._draws,
            )
        return self._judges[protocol.digest]

    def speed(self, protocol: SpeedProtocol) -> Clock:
        """Made on first use. Measures where the protocol says so, predicts otherwise."""
        if protocol.digest not in self._clocks:
            model, target = self.config.model, protocol.target
            if protocol.origin is Origin.MEASURED:
                loaded = self._model(named(target.device).kind, target.dtype)
                self._clocks[protocol.digest] = SpeedEvaluator(loaded, protocol).evaluate
            else:
                self._clocks[protocol.digest] = predicting(model, protocol)
        return self._clocks[protocol.digest]

    def _model(self, device: str, dtype: DType) -> ImageModel:
        """The model there and in that number format, once: what times it and what judges it share the weights."""
        if (device, dtype) not in self._models:
            self._models[device, dtype] = zoo.load(self.config.model, device, dtype)
        return self._models[device, dtype]

    @cached_property
    def _features(self) -> tuple[Extractor, Reference]:
        c = self.config
        return features(c.model, c.reference, c.inception, c.device)

    @cached_property
    def _held_out(self) -> tuple[list[Tensor], Tensor] | None:
        return zoo.held_out(self.config.model)

    @cached_property
    def _draws(self) -> Draws:
        return Draws(self._features[0])


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
