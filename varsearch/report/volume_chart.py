"""How the hypervolume grew, over evaluations and over the time that they took."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from varsearch.db import State, TrialRecord
from varsearch.report.svg import Axis, Picture, steps_of
from varsearch.search.core.objectives import dense_trial, front_trials, front_volume, volume_of
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import DENSE, SourceKind, kind_of

WIDTH, HEIGHT = 560.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 544.0, 16.0, 248.0


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


def volume_chart(stages: Sequence[Stage], presets: float | None, *, over_time: bool) -> Picture:
    """Hypervolume against evaluations or minutes; a dashed line at what published systems and dense reach alone."""

    def at(stage: Stage) -> float:
        return stage.minutes if over_time else stage.evaluations

    what = "minutes of whole evaluations" if over_time else "evaluations"
    last = stages[-1]
    picture = Picture(WIDTH, HEIGHT, f"hypervolume over {what}: {last.volume:.3f} after {at(last):.4g}")
    top = max(last.volume, presets or 0.0) * 1.12 or 1.0
    x, y = Axis(0, at(last) or 1.0, LEFT, RIGHT), Axis(0, top, BOTTOM, TOP)
    for value in steps_of(x.high):
        picture.text(x(value), BOTTOM + 18, f"{value:g}", "soft", "middle")
    for value in steps_of(top):
        picture.add("line", "rule", x1=LEFT, y1=y(value), x2=RIGHT, y2=y(value))
        picture.text(LEFT - 8, y(value) + 4, f"{value:.3g}", "soft", "end")
    path, before = f"M{x(0):.1f} {y(0):.1f}", 0.0
    for stage in stages:
        path += f"H{x(at(stage)):.1f}" + (f"V{y(stage.volume):.1f}" if stage.volume != before else "")
        before = stage.volume
    picture.add("path", "stairs", d=path)
    if presets is not None:
        picture.add("line", "zero", x1=LEFT, y1=y(presets), x2=RIGHT, y2=y(presets))
        picture.text(RIGHT - 4, y(presets) + 15, f"published systems alone: {presets:.3f}", "small halo", "end")
    _risen(picture, stages, [x(at(stage)) for stage in stages], y)
    picture.text((LEFT + RIGHT) / 2, HEIGHT - 10, what, "", "middle")
    turned = f"rotate(-90 14 {(TOP + BOTTOM) / 2:.0f})"
    picture.add("text", text="hypervolume", x=14, y=(TOP + BOTTOM) / 2, text_anchor="middle", transform=turned)
    return picture


def _risen(picture: Picture, stages: Sequence[Stage], places: Sequence[float], y: Axis) -> None:
    """A dot at each trial that added something: round for proposals, a diamond for what the search started from."""
    before = 0.0
    for stage, x in zip(stages, places, strict=True):
        if stage.volume > before:
            tip = f"trial {stage.trial} ({stage.origin}): hypervolume {stage.volume:.3f}"
            h = y(stage.volume)
            if kind_of(stage.origin).is_start:
                picture.add("path", "preset", tip, d=f"M{x:.1f} {h - 5:.1f}l5 5l-5 5l-5 -5Z")
            else:
                picture.add("circle", "front", tip, cx=x, cy=h, r=4)
        before = stage.volume
