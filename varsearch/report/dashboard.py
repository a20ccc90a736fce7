"""Sample grids of a run's finalists, attached to their trials in the Optuna dashboard."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard
import torch
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage
from sqlalchemy import URL

from varsearch.accel import apply
from varsearch.db import RunRecord, Store
from varsearch.errors import ModelError, OutputError, StoreError, UsageError, VarsearchError
from varsearch.evaluators.batches import Batches
from varsearch.evaluators.draws import Drawing
from varsearch.evaluators.workload import drawing_place
from varsearch.files import write_atomically
from varsearch.measurement import QualityProtocol
from varsearch.models import zoo
from varsearch.models.image_model import ImageModel, SamplingDefaults
from varsearch.models.pictures import grid_png
from varsearch.search.core.optuna_study import open_storage, study_errors
from varsearch.search.core.settings import RunSettings
from varsearch.search.results.claims import headline
from varsearch.search.results.front import Front, FrontEntry, read_front
from varsearch.search.results.runs import find_run

COLUMNS, ROWS = 10, 4


def artifact_folder(url: URL) -> Path:
    """Where the pictures of a storage are: beside an SQLite file, else in the working directory."""
    if url.get_backend_name() == "sqlite" and url.database:
        return Path(f"{url.database}.artifacts")
    return Path(f"{url.database or 'varsearch'}.artifacts")


def attach(store: Store, run: RunRecord) -> int:
    """Gives every trial of the front, and the dense one, a grid and a note; returns how many were new.

    All grids show the same labels on the same noise, so that they can be compared picture by picture. A run that did
    not evaluate quality gets none: it says nothing about images.

    Raises:
        ModelError: the model is gone, or its weights are not those that the run measured.
        OutputError: a picture cannot be written.
        StoreError: the database failed, or Optuna's study of the run was deleted.
    """
    front = read_front(store, run)
    quality = front.quality
    if quality is None:
        return 0
    folder = _made(artifact_folder(store.url))
    with open_storage(store.url) as storage, study_errors(store.url):
        shown = _shown(storage, run, front, folder)
        missing = [entry for entry in _finalists(front) if not shown.has_grid(entry)]
        if missing:
            model = model_of(run, front.settings, quality)
            for entry in missing:
                shown.add(entry, _picture(model, entry, quality))
    return len(missing)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder} for sample grids: {error.strerror}") from None
    return folder


def model_of(run: RunRecord, settings: RunSettings, quality: QualityProtocol) -> ImageModel:
    """The run's model, sampled as in the run.

    Raises:
        ModelError: it is gone, or has other weights, whose images would show what was never measured.
    """
    model = zoo.load(settings.model, *drawing_place(quality))
    if model.spec.identity != settings.fingerprint:
        raise ModelError(
            f"run {run.name!r} measured weights {settings.fingerprint[:12]}…, {settings.model} now has "
            f"{model.spec.identity[:12]}…"
        )
    return replace(model, sampling=SamplingDefaults.of(quality))


def _picture(model: ImageModel, entry: FrontEntry, quality: QualityProtocol) -> bytes:
    count = COLUMNS * ROWS
    drawing = Drawing(quality.seed, quality.noise, Batches(model, count).of(entry.policy))
    with apply(model, entry.policy) as accelerated:
        images = torch.cat([part.cpu() for part in drawing.images(accelerated, count)])
    return grid_png(images, COLUMNS, zoom=3)


def _finalists(front: Front) -> list[FrontEntry]:
    dense = [front.dense] if front.dense and front.dense not in front.entries else []
    return [*dense, *front.entries]


@dataclass(frozen=True, slots=True)
class _Shown:
    """Optuna's study of a run, with its identifiers of the finalists, and the folder of its pictures."""

    storage: BaseStorage
    study: optuna.Study
    study_id: int
    trial_ids: dict[int, int]
    front: Front
    folder: Path

    @property
    def _name(self) -> str:
        """Of the pictures: other noise makes other ones, and other numbers beside them."""
        return f"samples-{self.front.quality.seed}.png" if self.front.quality else ""

    def _prefix(self, entry: FrontEntry) -> str:
        # Attributes of a finished trial are frozen, and only then is it known who is on the front. The dashboard also
        # looks for a trial's artifacts among the study's attributes, under this key.
        return f"dashboard:artifacts:{self.trial_ids[entry.number]}:"

    def has_grid(self, entry: FrontEntry) -> bool:
        attributes = self.storage.get_study_system_attrs(self.study_id)
        return any(self._name in str(value) for key, value in attributes.items() if key.startswith(self._prefix(entry)))

    def add(self, entry: FrontEntry, png: bytes) -> None:
        trial_id, identity = self.trial_ids[entry.number], str(uuid.uuid4())
        meta = {"artifact_id": identity, "filename": self._name, "mimetype": "image/png", "encoding": None}
        path = self.folder / identity
        write_atomically(path, png)
        try:
            optuna_dashboard.save_note(optuna.trial.Trial(self.study, trial_id), self._note(entry, identity))
            # Last, because it is what `has_grid` asks for.
            self.storage.set_study_system_attr(self.study_id, self._prefix(entry) + identity, json.dumps(meta))
        except BaseException:
            path.unlink()
            raise

    def _note(self, entry: FrontEntry, identity: str) -> str:
        trial_id, settings = self.trial_ids[entry.number], self.front.settings
        rows = "\n".join(
            f"| {name} | {m.value:.6g} | {_interval(m.low, m.high)} |" for name, m in entry.metrics.items()
        )
        picture = f"/artifacts/{self.study_id}/{trial_id}/{identity}"
        return (
            f"### {entry.origin}\n\nThe front: {headline(self.front)}, in {', '.join(settings.objectives)}.\n\n"
            f"![samples]({picture})\n\n"
            f"Each column is a class; all trials share the noise. Latency and memory are **{settings.origin.value}** "
            f"for {settings.target}.\n\n| metric | value | interval |\n| --- | --- | --- |\n{rows}\n"
        )


def _shown(storage: BaseStorage, run: RunRecord, front: Front, folder: Path) -> _Shown:
    numbers = [entry.number for entry in _finalists(front)]
    try:
        study_id = storage.get_study_id_from_name(run.name)
        trial_ids = {n: storage.get_trial_id_from_study_id_trial_number(study_id, n) for n in numbers}
    except KeyError:
        raise StoreError(
            f"Optuna's study of run {run.name!r} was deleted or is not complete: "
            "the run's 'varsearch run' command, given again, makes it whole"
        ) from None
    study = optuna.load_study(study_name=run.name, storage=storage)
    return _Shown(storage, study, study_id, trial_ids, front, folder)


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.4g} to {high:.4g}"


def attach_to_all(storage: str, warn: Callable[[str], None]) -> int:
    """`attach` for every run of a storage; a run that cannot have grids is passed over with a warning."""
    drawn = 0
    with Store(storage, create=False) as store:
        runs = store.runs()
        _made(artifact_folder(store.url))
        for run in runs:
            try:
                drawn += attach(store, run)
            except VarsearchError as error:
                warn(f"no sample grids for run {run.name!r}: {error}")
    return drawn


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
