"""How the hypervolume grew, over evaluations and over the time that they took."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from varsearch.db import State, TrialRecord
from varsearch.report.charts import COLOURS, Chart, Tips
from varsearch.search.core.objectives import dense_trial, front_trials, front_volume, volume_of
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import DENSE, SourceKind, kind_of

WIDTH, HEIGHT = 560.0, 300.0


@dataclass(frozen=True, slots=True)
class Stage:
    """The front after an evaluation.

    Attributes:
        trial: its number, `origin` who proposed it.
        evaluations: how many there were so far, of those that were stopped early the share that was drawn; failed
            ones are not counted.
        minutes: that whole ones took, added up over all workers.
        volume: hypervolume of the front now.
    """

    trial: int
    origin: str
    evaluations: float
    minutes: float
    volume: float


def history(
    settings: RunSettings, trials: Sequence[TrialRecord], known: Container[tuple[int, str]] = ()
) -> list[Stage]:
    """The front's hypervolume after each evaluated trial, in their order; empty without dense.

    The reference is dense as it was measured in the end, so that all stages are on one scale. What was `known` before
    an evaluation, by number and kind, was no part of its time.
    """
    dense = dense_trial(trials)
    if dense is None:
        return []
    stages: list[Stage] = []
    front: list[TrialRecord] = []
    seconds = volume = evaluations = 0.0
    for trial in (t for t in trials if t.state in (State.COMPLETE, State.STOPPED)):
        evaluations += trial.cost
        if trial.state is State.STOPPED:
            continue
        if trial.attempts:
            seconds += sum(e.seconds for e in (trial.quality, trial.speed) if e and (trial.number, e.kind) not in known)
        grown = front_trials(settings, [*front, trial])
        if any(t is trial for t in grown):
            front, volume = grown, front_volume(settings, [t.values for t in grown], dense.values)
        stages.append(Stage(trial.number, trial.origin, evaluations, seconds / 60, volume))
    return stages


def published_volume(settings: RunSettings, trials: Sequence[TrialRecord]) -> float | None:
    """Hypervolume that published systems and dense reach alone, by the search's numbers; None without dense."""
    return volume_of(settings, [t for t in trials if t.origin == DENSE or kind_of(t.origin) is SourceKind.PRESET])


def hypervolume_chart(stages: Sequence[Stage], baselines: float | None, *, over_time: bool) -> Chart:
    """Hypervolume against evaluations or minutes.

    A dashed line shows the hypervolume that published systems and dense reach alone.
    """

    def at(stage: Stage) -> float:
        return stage.minutes if over_time else stage.evaluations

    what = "minutes of whole evaluations" if over_time else "evaluations"
    last = stages[-1]

    def draw(figure: FigureBase, tips: Tips) -> None:
        axes = figure.add_axes((0.11, 0.16, 0.86, 0.8))
        end = at(last) or 1.0
        axes.set_xlim(0, end)
        axes.set_ylim(0, max(last.volume, baselines or 0.0) * 1.12 or 1.0)
        axes.set_xlabel(what)
        axes.set_ylabel("hypervolume")
        axes.grid(axis="y", color=COLOURS["rule"], linewidth=0.8)
        axes.tick_params(length=0)
        axes.set_axisbelow(True)
        axes.step(
            [0.0, *(at(stage) for stage in stages)],
            [0.0, *(stage.volume for stage in stages)],
            where="post",
            color=COLOURS["front"],
            linewidth=1.5,
        )
        if baselines is not None:
            axes.axhline(baselines, color=COLOURS["soft"], linewidth=1, linestyle=(0, (5, 4)))
            words = f"published systems alone: {baselines:.3f}"
            axes.annotate(words, (end, baselines), (-4, -5), textcoords="offset points", ha="right", va="top")
        _growth(axes, stages, [at(stage) for stage in stages], tips)

    label = f"hypervolume over {what}: {last.volume:.3f} after {at(last):.4g}"
    return Chart(label, WIDTH, HEIGHT, draw)


def _growth(axes: Axes, stages: Sequence[Stage], places: Sequence[float], tips: Tips) -> None:
    """A mark at each trial that added something: a dot for proposals, a diamond for starts."""
    before = 0.0
    for stage, x in zip(stages, places, strict=True):
        if stage.volume > before:
            start = kind_of(stage.origin).is_start
            colour = COLOURS["baseline"] if start else COLOURS["front"]
            face = COLOURS["paper"] if start else colour
            (mark,) = axes.plot(
                x, stage.volume, "D" if start else "o", mfc=face, mec=colour, markersize=7, clip_on=False
            )
            tips.add(mark, f"trial {stage.trial} ({stage.origin}): hypervolume {stage.volume:.3f}")
        before = stage.volume
