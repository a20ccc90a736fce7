"""Policies side by side, under one protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from varsearch.db import Store
from varsearch.errors import EvaluationError, PolicyError
from varsearch.evaluators.cost_model import CostModel
from varsearch.evaluators.worker import PolicyWorker
from varsearch.formatting import data_frame, interval, quantity, ratio
from varsearch.library import index, load_policy
from varsearch.measurement import Evidence, Job, Measurement
from varsearch.policy import Policy
from varsearch.search.core.settings import RunSettings
from varsearch.search.results.table import BLIND, Table, html, known
from varsearch.search.setup.initial_design import Starts
from varsearch.space.presets import PRESETS, seeds
from varsearch.target import ModelSpec, Target

if TYPE_CHECKING:
    from pandas import DataFrame

RATIOS = {
    "flops": "FLOPs",
    "attention_flops": "attention",
    "kv_bytes": "KV",
    "weight_bytes": "weights",
    "peak_bytes": "peak",
}
"""Metrics that are shown relative to dense, with their columns."""


@dataclass(frozen=True, slots=True)
class Row:
    """One policy's numbers by metric: those of the protocol, and the speed that a second target would have."""

    metrics: dict[str, Measurement]
    predicted: dict[str, Measurement]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Policies side by side.

    Attributes:
        rows: by name of the policy, dense among them.
        settings: protocols of the numbers.
        second: target whose latency is predicted besides; equal to the settings' if there is none.
        missing: published systems that are not compared, with the reason.
    """

    rows: Mapping[str, Row]
    settings: RunSettings
    second: Target
    missing: Mapping[str, str]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Row:
        return self.rows[name]

    def table(self) -> Table:
        """All policies relative to dense, as text."""
        settings, quality, dense = self.settings, self.settings.quality, self.rows["dense"]
        judged = f"quality of {quality.n_images} images" if quality else BLIND
        origin = settings.origin.value.upper()
        title = f"{settings.model} on {settings.target}; latency and memory are {origin}; {judged}"
        speeds = ["latency", "speed-up"]
        if dense.predicted:
            title += f"; {self.second.device}: PREDICTED for {self.second}"
            speeds += [self.second.device, "speed-up"]
        judgements = ("ΔFID [95 %]", "distance", "NLL") if quality else ()
        columns = ("<policy", *judgements, *RATIOS.values(), *speeds)
        rows = [[name, *_cells(row, dense, has_quality=quality is not None)] for name, row in self.rows.items()]
        return Table(title, columns, rows)

    def to_dataframe(self) -> DataFrame:
        """A row per policy, a column per metric; `UsageError` if pandas is not installed."""
        rows: list[dict[str, object]] = []
        for name, row in self.rows.items():
            cells: dict[str, object] = {"policy": name}
            for metric, m in row.metrics.items():
                cells[metric] = m.value
            for metric, m in row.predicted.items():
                cells[f"{self.second.device}_{metric}"] = m.value
            rows.append(cells)
        return data_frame(rows, index="policy")

    def __repr__(self) -> str:
        return f"<comparison of {', '.join(self.rows)}>"

    def _repr_html_(self) -> str:
        return html(self.table())


def _cells(row: Row, dense: Row, *, has_quality: bool) -> list[str]:
    cells: list[str] = []
    if has_quality:
        cells.append(interval(known(row.metrics, "delta_fid")))
        cells.append(f"{known(row.metrics, 'feature_distance').value:.3f}")
        cells.append(f"{row.metrics['nll'].value:.3f}" if "nll" in row.metrics else "")
    cells += [ratio(row.metrics, dense.metrics, metric) for metric in RATIOS]
    for speeds in filter(None, (row.metrics, row.predicted)):
        cells.append(quantity("latency_ms", known(speeds, "latency_ms").value))
        cells.append(f"{known(speeds, 'speedup').value:.2f}x")
    return cells


def filed_policies(names: Sequence[str], spec: ModelSpec, folder: Path | None) -> dict[str, Policy]:
    """Those of the names that are policy files or library references, with their policies.

    Raises:
        PolicyError: neither of these, nor a published system, nor a hand-made policy; or made for another model.
    """
    made = seeds(spec)
    return {name: _filed(name, made, spec, folder) for name in names if name not in PRESETS and name not in made}


def _filed(name: str, made: Iterable[str], spec: ModelSpec, folder: Path | None) -> Policy:
    try:
        file = load_policy(name, folder)
    except PolicyError as error:
        if Path(name).exists() or name in index(folder):
            raise
        raise PolicyError(
            f"{error}; published systems are {', '.join(PRESETS)}; hand-made policies are {', '.join(made)}"
        ) from None
    file.check_model(spec)
    return file.policy


def chosen_policies(names: Sequence[str], filed: Mapping[str, Policy], starts: Starts) -> dict[str, Policy]:
    """The policies of these names, without names all published systems; and dense, which all are compared with.

    Raises:
        PolicyError: a published system that does not fit the model.
    """
    known = {**filed, **starts.by_name}
    for name in names:
        if name not in known:
            raise PolicyError(f"{name} cannot be compared: {starts.missing[name]}")
    chosen = {name: known[name] for name in names or starts.presets}
    return chosen if "dense" in chosen else {"dense": known["dense"], **chosen}


def compare_rows(
    policies: Mapping[str, Policy],
    settings: RunSettings,
    worker: PolicyWorker,
    store: Store,
    cost_model: CostModel | None = None,
    on_row: Callable[[str, bool], None] = lambda name, reused: None,
) -> dict[str, Row]:
    """The numbers of each policy; what the store knows already is not evaluated again.

    Args:
        policies: by name.
        settings: the protocols.
        worker: evaluates under them.
        store: keeps what was evaluated.
        cost_model: predicts the speed on a second target.
        on_row: called with each name, and whether everything was known.

    Raises:
        EvaluationError: a policy gave no usable number; the message names it.
    """
    rows: dict[str, Row] = {}
    for name, policy in policies.items():
        try:
            evidence, reused = _evaluated(policy, settings, worker, store)
        except EvaluationError as error:
            raise EvaluationError(f"{name}: {error}") from None
        predicted = cost_model.evaluate(policy).measurements if cost_model else ()
        rows[name] = Row(
            {m.metric: m for e in evidence for m in e.measurements},
            {m.metric: m for m in predicted},
        )
        on_row(name, reused)
    return rows


def _evaluated(
    policy: Policy, settings: RunSettings, worker: PolicyWorker, store: Store
) -> tuple[list[Evidence], bool]:
    """All evidence of a policy under a run's protocols, and whether the store knew it."""
    quality = store.find("quality", policy.digest, settings.fingerprint, settings.quality_digest)
    speed = store.find("speed", policy.digest, settings.fingerprint, settings.speed.digest)
    job = Job(
        number=0,
        policy=policy,
        quality=None if quality else settings.quality,
        speed=None if speed else settings.speed,
    )
    outcome = worker.evaluate(job)
    if outcome.error:
        raise EvaluationError(outcome.error)
    known = [found for found in (quality, speed) if found]
    new = [store.save(found) for found in (outcome.quality, outcome.speed) if found]
    return [*known, *new], not new
