"""Finds a policy by any name: a file, a place in the library, or a trial of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from varsearch.db import Store
from varsearch.errors import PolicyError
from varsearch.library import load_policy
from varsearch.models import registry, zoo
from varsearch.policy_file import PolicyFile
from varsearch.search.results.export import export
from varsearch.search.results.front import read_front
from varsearch.search.results.runs import find_run, pick


@dataclass(frozen=True, slots=True)
class ResolvedPolicy:
    """A policy with the conditions that it was found under.

    Attributes:
        name: the user's name for it.
        file: the policy as it is or would be exported.
        model: name or folder of a model with the policy's weights.
        confirmed: whether the numbers are final; a file of an earlier version does not say.
    """

    name: str
    file: PolicyFile
    model: str
    confirmed: bool | None


def resolve_policy(
    reference: str,
    storage: str | Path,
    *,
    library: Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    prompts: str | None = None,
) -> ResolvedPolicy:
    """The policy called `reference`: a file, model/target/name in the library, or RUN:TRIAL.

    TRIAL is a number or a selection of the front such as "knee"; ":knee" is of the latest run. Only
    these open the database.

    Args:
        reference: the user's name for the policy.
        storage: database of runs.
        library: folder of the policy library; None is the user's.
        model: name or folder of the model; None takes the model that the policy names.
        weights: of a published model, the place of its weights.
        prompts: of a model that reads texts, its prompts.

    Raises:
        UsageError: there is no such run or trial.
        PolicyError: there is no such policy, or it is not for this model.
        ModelError: the model is gone or has other weights.
        StoreError: the database cannot be read.
    """
    run, colon, trial = reference.rpartition(":")
    if colon and not Path(reference).is_file():
        how = f"trial={trial}" if trial.isdigit() else trial
        with Store(storage, create=False) as store:
            record = find_run(store, run or None)
            front = read_front(store, record)
            entry = pick(store, record, front, how)
        named = registry.join(model or entry.settings.model, weights, prompts)
        settings = entry.settings.model_copy(update={"model": named})
        file = export(replace(entry, settings=settings))
    else:
        file = _load(reference, library)
        named = registry.join(model or file.model.name, weights, prompts)
        file.check_model(zoo.manifest(named).spec())
    return ResolvedPolicy(reference, file, named, file.provenance.confirmed)


def _load(reference: str, library: Path | None) -> PolicyFile:
    try:
        return load_policy(reference, library)
    except PolicyError as error:
        if Path(reference).is_file():
            raise
        raise PolicyError(f"{error}; a trial of a run is RUN:NUMBER") from None
