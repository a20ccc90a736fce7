"""The report of a run: one HTML page with everything in it, which asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from varsearch.db import RunRecord, Store
from varsearch.db.engine import label
from varsearch.db.knowledge import known_before
from varsearch.errors import StoreError, UsageError, VarsearchError
from varsearch.evaluators.workload import zoo_skeleton
from varsearch.formatting import interval, quantity, ratio
from varsearch.policy.summary import summarize
from varsearch.report.charts import Chart, beside
from varsearch.report.dashboard import model_of
from varsearch.report.front_chart import COSTS, front_chart
from varsearch.report.hypervolume_chart import history, hypervolume_chart, published_volume
from varsearch.report.policy_charts import caption, policy_charts
from varsearch.report.provenance import command, provenance
from varsearch.report.samples import strips
from varsearch.report.work import WorkLeft
from varsearch.search.core.objectives import WORST
from varsearch.search.core.settings import RunSettings
from varsearch.search.results.baselines import baselines, presets_volume
from varsearch.search.results.claims import headline, not_drawn, regression_to_the_mean, shortfall
from varsearch.search.results.front import Front, FrontEntry, confirmed_trials, read_front
from varsearch.search.results.selection import require_entries, select

SELECTED = {"knee": "knee", "fastest": "fastest", "smallest": "smallest", "best-quality": "best quality"}
"""Policies of the front that are looked at closely: how they are selected, and what they are called."""


AXES = ("delta_fid", "fid", "speedup", "latency_ms", "peak_bytes")
"""Metrics that order policies as an axis of the front's charts does."""

DRAWN = ("speedup", "latency_ms", "peak_bytes")
"""Metrics that every trial has a place by, beside its ΔFID."""


@dataclass(frozen=True, slots=True)
class ChosenPolicy:
    """A chosen policy with its charts; `missing` says why there are none."""

    name: str
    entry: FrontEntry
    charts: Sequence[Chart] = ()
    caption: str = ""
    missing: str = ""


def report(store: Store, run: RunRecord) -> str:
    """The page. The same database and weights give the same text.

    Raises:
        UsageError: nothing is on the front, or dense, which all is relative to, has no numbers.
        StoreError: the database lost a number that every evaluation gives.
    """
    front, trials = read_front(store, run), store.trials(run)
    require_entries(front)
    if front.dense is None:
        raise UsageError("the dense policy has no numbers in this run: there is nothing to compare with")
    settings = RunSettings.parse(run.settings)
    entries = [_whole(trial, front) for trial in front.trials]
    chosen = chosen_entries(front)
    names = {entry.number: name for name, entry in chosen}
    stages, published = history(settings, trials, known_before(store, run)), published_volume(settings, trials)
    confirmed = [] if front.exact else confirmed_trials(store, run)
    return page(
        "report.html.jinja",
        run=run,
        front=front,
        headline=headline(front),
        remarks=list(filter(None, (not_drawn(settings, AXES), regression_to_the_mean(front), shortfall(front)))),
        judged=front.quality is not None,
        dense=front.dense,
        chosen=chosen,
        names=names,
        knee=select(front, "knee"),
        charts=front_charts(front, entries, names),
        volumes=[hypervolume_chart(stages, published, over_time=over_time) for over_time in (False, True)],
        alone=presets_volume(front),
        worst=WORST,
        baselines=baselines(front),
        policies=_chosen_policies(front, chosen),
        **_samples(run, front, chosen),
        provenance=provenance(run, front, trials, confirmed, label(store.url)),
        command=command(run, trials),
        evaluated=len(entries),
    )


def front_charts(front: Front, trials: Sequence[FrontEntry], names: Mapping[int, str]) -> list[Chart]:
    """The front against latency and against memory; one chart of both where quality was not evaluated."""
    assert front.dense is not None
    costs = COSTS if front.quality else COSTS[:1]
    return [front_chart(front, front.dense, trials, names, cost) for cost in costs]


def front_picture(front: Front) -> Chart:
    """The charts of the front as one, with a headline. Objectives that have no axis are named.

    Raises:
        UsageError: the run has no front.
    """
    require_entries(front)
    if front.dense is None:
        raise UsageError("the dense policy has no numbers in this run: there is nothing to compare with")
    settings, quality = front.settings, front.quality
    names = {entry.number: name for name, entry in chosen_entries(front)}
    images = f"{quality.n_images} images per policy" if quality else "quality NOT evaluated"
    about = f"{settings.model} on {settings.target}: latency and memory {settings.origin.value}"
    charts = front_charts(front, [_whole(trial, front) for trial in front.trials], names)
    lines = [about, f"{images}; {headline(front)}", not_drawn(settings, AXES)]
    return beside(charts, f"front of {front.run}", "\n".join(filter(None, lines)))


def chosen_entries(front: Front) -> list[tuple[str, FrontEntry]]:
    """The selected entries, each once, with the names of all selections that it answers."""
    names: dict[int, list[str]] = {}
    entries = {how: select(front, how) for how in SELECTED if front.quality or how != "best-quality"}
    for how, entry in entries.items():
        names.setdefault(entry.number, []).append(SELECTED[how])
    by_number = {entry.number: entry for entry in entries.values()}
    return [(", ".join(found), by_number[number]) for number, found in names.items()]


def _whole(entry: FrontEntry, front: Front) -> FrontEntry:
    needed = ("delta_fid", *DRAWN) if front.quality else DRAWN
    missing = [metric for metric in needed if metric not in entry.metrics]
    if missing:
        raise StoreError(f"the stored evidence of trial {entry.number} is damaged: it has no {missing[0]}")
    return entry


def _chosen_policies(front: Front, chosen: Sequence[tuple[str, FrontEntry]]) -> list[ChosenPolicy]:
    try:
        work = WorkLeft(zoo_skeleton(front.settings.model), front.settings.target)
    except VarsearchError as error:
        return [ChosenPolicy(name, entry, missing=str(error)) for name, entry in chosen]
    return [_chosen_policy(work, name, entry) for name, entry in chosen]


def _chosen_policy(work: WorkLeft, name: str, entry: FrontEntry) -> ChosenPolicy:
    try:
        drawn = policy_charts(entry.policy, work.model.spec, work.of(entry.policy))
    except VarsearchError as error:
        return ChosenPolicy(name, entry, missing=str(error))
    return ChosenPolicy(name, entry, drawn, caption(entry.policy))


def _samples(run: RunRecord, front: Front, chosen: Sequence[tuple[str, FrontEntry]]) -> dict[str, Any]:
    """Image strips of dense and of the chosen policies, or why there are none."""
    assert front.dense is not None
    quality = front.quality
    if quality is None:
        return {"plain": None, "strips": [], "no_strips": "the run did not evaluate quality"}
    others = [(name, entry) for name, entry in chosen if entry != front.dense]
    try:
        model = model_of(run, front.settings, quality)
    except VarsearchError as error:
        return {"plain": None, "strips": [], "no_strips": str(error)}
    drawn = strips(model, [("dense", front.dense), *others], quality)
    entries = [entry for _, entry in others]
    return {"plain": drawn[0], "strips": list(zip(drawn[1:], entries, strict=True)), "no_strips": ""}


def page(template: str, **values: Any) -> str:
    """A template filled in, with the style sheet and the script inside; whatever is no markup is escaped."""
    environment = Environment(
        loader=PackageLoader("varsearch.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"summarize": summarize, "interval": interval, "quote": shlex.quote}
    here = Path(__file__).parent
    script = (here / "page.js").read_text()
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        **values,
        style=Markup((here / "page.css").read_text()),
        script=Markup(script),
        allowed=allowed,
        quantity=quantity,
        ratio=ratio,
    )
