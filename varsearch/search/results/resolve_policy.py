"""A policy by whatever name the user has for it: a file, a place in the library, or a trial of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from varsearch.db import Store
from varsearch.errors import PolicyError, StoreError
from varsearch.library import load_policy
from varsearch.models import registry, zoo
from varsearch.policy_file import PolicyFile
from varsearch.search.results.export import export
from varsearch.search.results.front import read_front
from varsearch.search.results.runs import find_run, pick


@dataclass(frozen=True, slots=True)
class Subject:
    """A policy with the conditions that it was found under.

    Attributes:
        name: what the user called it.
        file: the policy as it is or would be exported.
        model: name or folder of the model that it is for, which has the very weights.
        confirmed: whether its numbers are final; an old file does not say.
    """

    name: str
    file: PolicyFile
    model: str
    confirmed: bool | None


def find_subject(
    reference: str,
    storage: str,
    library: Path | None,
    model: str | None,
    weights: str | None = None,
    prompts: str | None = None,
) -> Subject:
    """The policy called `reference`: a file, model/target/name in the library, or RUN:TRIAL.

    TRIAL is a number or a selection of the front such as "knee", ":knee" one of the latest run; only then the database
    is opened.

    Args:
        reference: what the user said.
        storage: database of runs.
        library: folder of the policy library; None is the user's.
        model: name or folder of the model; None is the one that the policy names.
        weights: of a published model, where its weights are.
        prompts: of a model that reads texts, what it is asked for.

    Raises:
        UsageError: no such run or trial.
        PolicyError: no such policy, or it is not for this model.
        ModelError: the model is gone or has other weights.
        StoreError: the database cannot be read.
    """
    run, colon, trial = reference.rpartition(":")
    if colon and not Path(reference).is_file():
        return _of_run(reference, run, f"trial={trial}" if trial.isdigit() else trial, storage, model, weights, prompts)
    try:
        file = load_policy(reference, library)
    except PolicyError as error:
        raise error if Path(reference).is_file() else PolicyError(f"{error}; a trial of a run is RUN:NUMBER") from None
    named = registry.join(model or file.model.name, weights, prompts)
    file.check_model(zoo.manifest(named).spec())
    return Subject(reference, file, named, file.provenance.confirmed)


def _of_run(
    reference: str, run: str, how: str, storage: str, model: str | None, weights: str | None, prompts: str | None
) -> Subject:
    with Store(storage, create=False) as store:
        record = find_run(store, run or None)
        front = read_front(store, record)
        entry = pick(store, record, front, how)
    named = registry.join(model or front.settings.model, weights, prompts)
    settings = front.settings.model_copy(update={"model": named})
    try:
        file = export(entry, settings, record.name)
        return Subject(reference, file, settings.model, file.provenance.confirmed)
    except (KeyError, ValueError) as error:  # of the notes that an evaluation leaves in the database
        raise StoreError(f"the stored evidence of trial {entry.number} is damaged: {error}") from None
