"""Sample grids of a run's finalists, attached to their trials in the Optuna dashboard."""

from __future__ import annotations

import tempfile
from pathlib import Path

import optuna
import optuna_dashboard
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.storages import BaseStorage
from sqlalchemy import URL

from varsearch.db import RunRecord, Store
from varsearch.evaluators.worker import WorkerConfig
from varsearch.models.pictures import grid_png
from varsearch.search.front import Front, FrontEntry, read_front

COLUMNS, ROWS = 10, 4
NAME = "samples.png"


def artifact_folder(url: URL) -> Path:
    """Where the pictures of a storage are: beside an SQLite file, else in the working directory."""
    if url.get_backend_name() == "sqlite" and url.database:
        return Path(f"{url.database}.artifacts")
    return Path(f"{url.database or 'varsearch'}.artifacts")


def attach(store: Store, run: RunRecord, storage: BaseStorage, worker: WorkerConfig) -> int:
    """Gives every trial of the front, and the dense one, a grid and a note; returns how many were new.

    All grids show the same labels on the same noise, so that they can be compared picture by picture.
    """
    folder = artifact_folder(store.url)
    folder.mkdir(parents=True, exist_ok=True)
    front, artifacts = read_front(store, run), FileSystemArtifactStore(folder)
    study_id = storage.get_study_id_from_name(run.name)
    missing = [entry for entry in _finalists(front) if not _has_grid(storage, study_id, entry)]
    evaluator = worker.make().quality if missing else None
    for entry in missing:
        assert evaluator is not None
        png = grid_png(evaluator.sample(entry.policy, COLUMNS * ROWS), COLUMNS, zoom=3)
        _show(run, storage, study_id, front, entry, png, artifacts)
    return len(missing)


def _finalists(front: Front) -> list[FrontEntry]:
    dense = [front.dense] if front.dense and front.dense not in front.entries else []
    return [*dense, *front.entries]


def _has_grid(storage: BaseStorage, study_id: int, entry: FrontEntry) -> bool:
    trial = storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study_id, entry.number))
    return any(meta.filename == NAME for meta in get_all_artifact_meta(trial, storage=storage))


def _show(
    run: RunRecord,
    storage: BaseStorage,
    study_id: int,
    front: Front,
    entry: FrontEntry,
    png: bytes,
    artifacts: FileSystemArtifactStore,
) -> None:
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, entry.number)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / NAME
        path.write_bytes(png)
        identity = upload_artifact(
            artifact_store=artifacts, file_path=str(path), study_or_trial=storage.get_trial(trial_id), storage=storage
        )
    rows = "\n".join(f"| {name} | {m.value:.6g} | {_interval(m.low, m.high)} |" for name, m in entry.metrics.items())
    note = (
        f"### {entry.origin}\n\n![samples](/artifacts/{study_id}/{trial_id}/{identity})\n\n"
        f"Each column is a class; all trials share the noise. Latency and memory are **{front.settings.origin.value}** "
        f"for {front.settings.target}.\n\n| metric | value | interval |\n| --- | --- | --- |\n{rows}\n"
    )
    study = optuna.load_study(study_name=run.name, storage=storage)
    optuna_dashboard.save_note(optuna.trial.Trial(study, trial_id), note)


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
