"""Sample grids of a run's finalists, attached to their trials in the Optuna dashboard."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage
from sqlalchemy import URL

from varsearch.accel import apply, labels_for
from varsearch.db import RunRecord, Store
from varsearch.errors import UsageError
from varsearch.models import zoo
from varsearch.models.image_model import ImageModel, SamplingDefaults
from varsearch.models.pictures import grid_png
from varsearch.search.front import Front, FrontEntry, read_front
from varsearch.search.overview import find_run
from varsearch.search.study import open_storage

COLUMNS, ROWS = 10, 4
NAME = "samples.png"


def artifact_folder(url: URL) -> Path:
    """Where the pictures of a storage are: beside an SQLite file, else in the working directory."""
    if url.get_backend_name() == "sqlite" and url.database:
        return Path(f"{url.database}.artifacts")
    return Path(f"{url.database or 'varsearch'}.artifacts")


def attach(store: Store, run: RunRecord) -> int:
    """Gives every trial of the front, and the dense one, a grid and a note; returns how many were new.

    All grids show the same labels on the same noise, so that they can be compared picture by picture.
    """
    folder = artifact_folder(store.url)
    folder.mkdir(parents=True, exist_ok=True)
    with open_storage(store.url) as storage:
        return _attach(store, run, storage, folder)


def _attach(store: Store, run: RunRecord, storage: BaseStorage, folder: Path) -> int:
    front, artifacts = read_front(store, run), FileSystemArtifactStore(str(folder))
    study_id = storage.get_study_id_from_name(run.name)
    missing = [entry for entry in _finalists(front) if not _has_grid(storage, study_id, entry)]
    if missing:
        quality = front.settings.quality
        sampling = SamplingDefaults(quality.guidance, quality.top_k, quality.top_p)
        model = replace(zoo.load(front.settings.model), sampling=sampling)
        for entry in missing:
            _show(run, storage, study_id, front, entry, _picture(model, entry, quality.seed), artifacts)
    return len(missing)


def _picture(model: ImageModel, entry: FrontEntry, seed: int) -> bytes:
    with apply(model, entry.policy) as accelerated:
        return grid_png(accelerated.images(labels_for(COLUMNS * ROWS, model.spec.classes), seed), COLUMNS, zoom=3)


def _finalists(front: Front) -> list[FrontEntry]:
    dense = [front.dense] if front.dense and front.dense not in front.entries else []
    return [*dense, *front.entries]


def _artifact_prefix(trial_id: int) -> str:
    # Attributes of a finished trial are frozen, and only then is it known who is on the front. The dashboard also
    # looks for a trial's artifacts among the study's attributes, under this key.
    return f"dashboard:artifacts:{trial_id}:"


def _has_grid(storage: BaseStorage, study_id: int, entry: FrontEntry) -> bool:
    prefix = _artifact_prefix(storage.get_trial_id_from_study_id_trial_number(study_id, entry.number))
    attributes = storage.get_study_system_attrs(study_id)
    return any(NAME in str(value) for key, value in attributes.items() if key.startswith(prefix))


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
    identity = str(uuid.uuid4())
    artifacts.write(identity, io.BytesIO(png))
    meta = {"artifact_id": identity, "filename": NAME, "mimetype": "image/png", "encoding": None}
    storage.set_study_system_attr(study_id, _artifact_prefix(trial_id) + identity, json.dumps(meta))
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


def attach_to_all(storage: str) -> int:
    """`attach` for every run of a storage."""
    with Store(storage, create=False) as store:
        return sum(attach(store, run) for run in store.runs())


def serve(storage: str, host: str, port: int, on_start: Callable[[str], None]) -> None:
    """Serves the Optuna dashboard until interrupted; `on_start` gets its address.

    Raises:
        UsageError: the address cannot be listened on.
    """
    with Store(storage, create=False) as store:
        url = store.url
    with open_storage(url) as database:
        app = optuna_dashboard.wsgi(database, artifact_store=FileSystemArtifactStore(str(artifact_folder(url))))
        try:
            server = make_server(host, port, app, ThreadingServer, QuietHandler)
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        _serve(server, on_start)


def _serve(server: WSGIServer, on_start: Callable[[str], None]) -> None:
    with server:
        on_start(f"http://{server.server_name}:{server.server_port}/dashboard")
        with suppress(KeyboardInterrupt):
            server.serve_forever()


class ThreadingServer(ThreadingMixIn, WSGIServer):
    """Answers a browser's parallel requests in parallel."""

    daemon_threads = True


class QuietHandler(WSGIRequestHandler):
    """Does not print every request."""

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""


def attach_to_run(storage: str, name: str) -> int:
    """`attach` for a run by its name."""
    with Store(storage, create=False) as store:
        return attach(store, find_run(store, name))
