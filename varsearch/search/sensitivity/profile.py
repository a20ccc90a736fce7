"""The sensitivity profile of a model for a target: made, found in the store, or completed.

A profile holds the effect of every setting alone, of pairs and of whole policies: loss of quality
on the same noise as dense, and cost by the cost model, or by the clock where the target is here.
Results are stored while they come, so an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from varsearch.db import Store
from varsearch.errors import Interrupted, ModelError
from varsearch.evaluators.costs import CostEvaluator
from varsearch.evaluators.extractors import Extractor, classifier_extractor
from varsearch.evaluators.sensitivity import SensitivityEvaluator
from varsearch.evaluators.speed import protocol_for as speed_protocol
from varsearch.interrupts import kept_interrupts, postponed_interrupts
from varsearch.models import zoo
from varsearch.models.image_model import ImageModel
from varsearch.policy import Policy
from varsearch.profile import (
    DENSE,
    CostProtocol,
    Costs,
    Effect,
    Profile,
    Sensitivity,
    SensitivityProtocol,
)
from varsearch.search.sensitivity.decomposition import Chosen, Probes, compose, probes
from varsearch.search.sensitivity.side_by_side import side_by_side
from varsearch.target import ModelSpec, Target

IMAGES = 32
"""Drawn per setting, and held-out images read: few, because there are hundreds of settings."""

SAVE_SECONDS = 10.0
"""Largest time whose work is lost if the process is killed."""


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of a profile.

    Attributes:
        done: measurements that this call made.
        left: measurements still to make, and `seconds_left` their expected time.
    """

    done: int
    left: int
    seconds_left: float


OnStep = Callable[[Step], None]


@contextmanager
def _all_cores() -> Iterator[None]:
    """Whole policies are timed on all cores; the number of threads is restored at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_all_cores()  # also while the protocol is written, which says how many
def profiled(
    model: str,
    target: Target,
    storage: str | Path,
    *,
    images: int = IMAGES,
    seed: int = 0,
    on_step: OnStep = lambda step: None,
) -> Profile:
    """The profile of a zoo model. Stored results are not measured again, new ones are stored.

    Args:
        model: name or folder.
        target: what costs refer to. Where it is this machine, whole policies are measured.
        storage: SQLAlchemy URL, or path of an SQLite file.
        images: drawn per setting, and held-out images read.
        seed: of the noise, and of the choice of pairs and whole policies.
        on_step: called after every measurement.

    Raises:
        Interrupted: Ctrl-C. The same call goes on from here.
        ModelError, TargetError, StoreError: what is needed is missing or damaged.
    """
    if refusal := profile_refusal(model):
        raise ModelError(f"{model} cannot be profiled: {refusal}")
    wanted = _Wanted.of(model, target, images, seed)
    with Store(storage) as store:
        measuring = wanted.known(store)
        dense = measuring.costs.policies.get(DENSE)
        evaluator = CostEvaluator(model, wanted.cost.speed, dense.latency_ms if dense else None)
        sets = wanted.probes
        with side_by_side(wanted.effects) as effects:
            measuring.run(
                [
                    _Table("effects", sets.singles | sets.pairs | sets.policies, effects),
                    _Table("parts", {DENSE: (), **sets.parts}, partial(map, evaluator.predicted)),
                    _Table(
                        "policies", {DENSE: (), **sets.policies}, partial(map, evaluator.end_to_end)
                    ),
                ],
                on_step,
            )
    return measuring.profile(wanted)


@_all_cores()
def known_profile(
    model: str, target: Target, storage: str | Path, images: int = IMAGES, seed: int = 0
) -> Profile | None:
    """The profile that the store has; None if a part of it is missing. See `profiled`."""
    wanted = _Wanted.of(model, target, images, seed)
    with Store(storage) as store:
        measuring = wanted.known(store)
    sets = wanted.probes
    names = {
        "effects": sets.singles.keys() | sets.pairs.keys() | sets.policies.keys(),
        "parts": {DENSE, *sets.parts},
        "policies": {DENSE, *sets.policies},
    }
    is_whole = all(names[table] <= measuring.tables[table].keys() for table in names)
    return measuring.profile(wanted) if is_whole else None


def profile_refusal(model: str) -> str:
    """Why a zoo model cannot be profiled; empty if it can."""
    if refusal := zoo.weights_refusal(model):
        return refusal
    if "classifier" not in zoo.manifest(model).files:
        return "it has no classifier, whose features tell how far images are from dense's"
    return "" if zoo.held_out(model) else "it has no held-out images"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The parts of a profile and the protocols that they are measured under."""

    model: str
    loaded: ImageModel
    siblings: tuple[ModelSpec, ...]
    extractor: Extractor
    probes: Probes
    quality: SensitivityProtocol
    cost: CostProtocol

    @classmethod
    def of(cls, model: str, target: Target, images: int, seed: int) -> _Wanted:
        loaded, siblings = zoo.load(model), zoo.siblings(model)
        extractor = classifier_extractor(zoo.load_classifier(model))
        wanted = probes(loaded.spec, siblings, seed)
        cost = CostProtocol(
            speed=speed_protocol(target),
            settings=_digest(loaded.spec, (wanted.parts, wanted.policies)),
        )
        quality = _sensitivity_protocol(loaded, extractor, wanted, images, seed)
        return cls(model, loaded, tuple(siblings), extractor, wanted, quality, cost)

    def effects(self) -> Callable[[Policy], Effect]:
        """Measures effects on a model of its own, because applying a policy changes the model."""
        held_out = zoo.held_out(self.model)
        assert held_out is not None
        return SensitivityEvaluator(
            zoo.load(self.model), self.quality, self.extractor, held_out
        ).effect

    def known(self, store: Store) -> _Measuring:
        """The results that the store has."""
        spec = self.loaded.spec
        fingerprint = spec.identity
        return _Measuring(
            spec,
            store,
            store.profile(Sensitivity, fingerprint, self.quality)
            or Sensitivity(fingerprint=fingerprint, protocol=self.quality),
            store.profile(Costs, fingerprint, self.cost)
            or Costs(fingerprint=fingerprint, protocol=self.cost),
        )


@dataclass(frozen=True, slots=True)
class _Table:
    """Sets of settings by name, and the function that measures their policies in order."""

    name: str
    sets: Mapping[str, Chosen]
    measure: Callable[[Iterable[Policy]], Iterator[Any]]


class _Measuring:
    """Results so far of one model and target."""

    def __init__(
        self, spec: ModelSpec, store: Store, sensitivity: Sensitivity, costs: Costs
    ) -> None:
        self.spec, self.store = spec, store
        self.sensitivity, self.costs = sensitivity, costs
        self.tables: dict[str, dict[str, Any]] = {
            "effects": dict(sensitivity.effects),
            "parts": dict(costs.parts),
            "policies": dict(costs.policies),
        }
        self.seconds = {"effects": sensitivity.seconds, "parts": costs.seconds, "policies": 0.0}

    def profile(self, wanted: _Wanted) -> Profile:
        """The results as a profile."""
        return Profile(
            sensitivity=self.sensitivity,
            costs=self.costs,
            spec=wanted.loaded.spec,
            siblings=wanted.siblings,
        )

    def run(self, tables: Iterable[_Table], on_step: OnStep) -> None:
        """Measures missing results and stores them now and then, and at the end in any case."""
        todo = [
            (table, [name for name in table.sets if name not in self.tables[table.name]])
            for table in tables
        ]
        if not any(names for _, names in todo):
            return
        try:
            with kept_interrupts() as check:
                self._measure(todo, on_step, check)
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted; what was measured is stored, and the same command goes on"
            ) from None
        finally:
            self._save()

    def _measure(
        self, todo: list[tuple[_Table, list[str]]], on_step: OnStep, check: Callable[[], None]
    ) -> None:
        started = saved = ended = time.monotonic()
        done, left = 0, sum(len(names) for _, names in todo)
        for table, names in todo:
            policies = (compose(self.spec, table.sets[name]) for name in names)
            for name, result in zip(names, table.measure(policies), strict=True):
                self.tables[table.name][name] = result
                check()
                began, ended = ended, time.monotonic()
                self.seconds[table.name] += ended - began
                done, left = done + 1, left - 1
                on_step(Step(done, left, left * (ended - started) / done))
                if ended - saved > SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()

    def _save(self) -> None:
        """Another process may have stored results meanwhile; its numbers are taken over."""
        effects, parts, policies = (self.tables[name] for name in ("effects", "parts", "policies"))
        quality = self.sensitivity.model_copy(
            update={"effects": effects, "seconds": self.seconds["effects"]}
        )
        seconds = self.seconds["parts"] + self.seconds["policies"]
        cost = self.costs.model_copy(
            update={"parts": parts, "policies": policies, "seconds": seconds}
        )
        with postponed_interrupts():
            self.sensitivity, self.costs = (
                self.store.save_profile(quality),
                self.store.save_profile(cost),
            )


def _sensitivity_protocol(
    model: ImageModel, extractor: Extractor, wanted: Probes, images: int, seed: int
) -> SensitivityProtocol:
    sampling = model.sampling
    return SensitivityProtocol(
        extractor=extractor.identity,
        images=images,
        seed=seed,
        guidance=sampling.guidance,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        settings=_digest(model.spec, (wanted.singles, wanted.pairs, wanted.policies)),
    )


def _digest(spec: ModelSpec, sets: Iterable[Mapping[str, Chosen]]) -> str:
    """Sha256 of the policies that these settings make."""
    policies = (compose(spec, chosen).digest for wanted in sets for chosen in wanted.values())
    return hashlib.sha256("\n".join(policies).encode()).hexdigest()
