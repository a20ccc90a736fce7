"""How a search goes, line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from varsearch.cli.profile import print_step
from varsearch.cli.render import (
    announce_calibration,
    announce_missing,
    bound,
    console,
    duration,
    print_calibration_step,
    quantity,
)
from varsearch.db import State, TrialRecord
from varsearch.evaluators.calibrate import Step as CalibrationStep
from varsearch.policy import Policy
from varsearch.search.core.source import kind_of
from varsearch.search.results.table import BLIND
from varsearch.search.run.events import Confirmed, Event, Progress, Status
from varsearch.search.sensitivity.profile import Step
from varsearch.search.setup.listener import Listener
from varsearch.search.setup.prepare import Problem
from varsearch.search.setup.transfer import Transfer

NAMED = 3
"""Runs that are named where many were of use."""

ALWAYS = ("latency_ms", "speedup", "peak_bytes")
"""Metrics that each line of progress shows besides ΔFID."""

KINDS = {
    "preset": "published systems",
    "warm": "policies of the profile",
    "seed": "hand-made policies",
    "known": "policies of other runs",
}
"""Kinds of origins in the initial design."""


@dataclass
class ProgressLines(Listener):
    """Prints a line for everything that happens in a search.

    Args:
        storage: the database.
        budget: evaluations in total.
        minutes: after which no evaluation begins.
        patience: evaluations without growth of the hypervolume.
    """

    storage: str
    budget: int
    minutes: float | None = None
    patience: int | None = None
    _width: int = 22
    _objectives: tuple[str, ...] = ()
    _has_quality: Container[str] = field(default_factory=frozenset)
    _evaluated: int = 0
    _blind: int = 0

    def on_calibration(self) -> None:
        """Says why nothing seems to happen."""
        announce_calibration()

    def on_calibration_step(self, step: CalibrationStep) -> None:
        """Shows how far a calibration is."""
        print_calibration_step(step)

    def on_no_profile(self, reason: str) -> None:
        """Says why a search knows less than it could."""
        console.print(f"no profile: {reason}")

    def on_profile(self) -> None:
        """Says why nothing is searched yet."""
        console.print("profiling every setting of the model, once per database; --no-profile goes without …")

    def on_profile_step(self, step: Step) -> None:
        """Shows how far a profile is."""
        print_step(step)

    def on_start(self, run: str, problem: Problem, design: Mapping[str, Policy], known: Transfer) -> None:
        """Says what is searched, and what need not be evaluated."""
        self._width = min(max(22, *map(len, design)), 50)
        self._has_quality, self._objectives = known.has_quality, problem.settings.objectives
        self._announce(run, problem, design)
        announce_missing("nothing is taken from", known.unread)
        if known.fresh:
            more = len(known.runs) - NAMED
            runs = ", ".join(known.runs[:NAMED]) + (f" and {more} more" if more > 0 else "")
            console.print(f"quality of {known.fresh} policies is known from {runs}: they come first, without any image")

    def _announce(self, run: str, problem: Problem, design: Mapping[str, Policy]) -> None:
        settings, quality = problem.settings, problem.settings.quality
        about = f"{run}: {settings.model} on {settings.target}, latency and memory {settings.origin.value}"
        console.print(about, style="bold")
        if quality is None:
            console.print(BLIND)
        spend = f"{self.budget} evaluations" + (f" or {self.minutes:g} minutes" if self.minutes else "")
        spend += f", patience {self.patience}" if self.patience else ""
        limits = ", ".join(bound(metric, limit) for metric, limit in settings.bounds.items()) or "none"
        console.print(
            f"budget {spend}, {quality.n_images if quality else 'no'} images each; {len(problem.space.knobs)} knobs; "
            f"starts from {_counted(design)}; bounds: {limits}; storage {self.storage}"
        )
        announce_missing("not among them", problem.starts.missing)
        if problem.starts.assumed:
            names = ", ".join(problem.starts.assumed)
            console.print(f"constants of the papers are assumed, as no quality is evaluated: {names}")

    def on_event(self, event: Event) -> None:
        """Prints the outcome of a trial or of a confirmation."""
        if isinstance(event, Confirmed):
            self._print_confirmed(event)
            return
        has_quality = event.trial.policy.digest in self._has_quality
        self._evaluated += not event.reused
        self._blind += has_quality and not event.reused
        self._print(event, " (known already)" if event.reused else " (quality known)" if has_quality else "")

    def _print(self, event: Progress, known: str) -> None:
        trial, now = event.trial, event.status
        mark = "*" if trial.number in now.front else " "
        volume = "" if now.hypervolume is None else f", hypervolume {now.hypervolume:.3f}"
        console.print(
            f"{mark} {now.spent:>6.4g}/{now.budget} trial {trial.number:<3} {self._origin(trial)} "
            f"{self._outcome(trial)}{known}  | front {len(now.front)}{volume}, ETA {duration(now.seconds_left)}"
        )
        if event.news:
            console.print(event.news)

    def _print_confirmed(self, event: Confirmed) -> None:
        old, new = event.trial.values, event.again.values
        outcome = f"failed: {event.error}"
        if not event.error:
            delta = [f"ΔFID {old['delta_fid']:+.2f} → {new['delta_fid']:+.2f}"] if "delta_fid" in old else []
            outcome = ", ".join([*delta, f"{old['speedup']:.2f}x → {new['speedup']:.2f}x"])
        console.print(
            f"confirmed {event.done:>3}/{event.total} trial {event.trial.number:<3} {self._origin(event.trial)} "
            f"{outcome}  | ETA {duration(event.seconds_left)}"
        )

    def _origin(self, trial: TrialRecord) -> str:
        return f"{trial.origin:<{self._width}}"

    def _outcome(self, trial: TrialRecord) -> str:
        if trial.state is State.STOPPED:
            return trial.error
        if trial.error:
            return f"failed: {trial.error}"
        v = trial.values
        delta = [f"ΔFID {v['delta_fid']:+.2f}"] if "delta_fid" in v else []
        others = (name for name in self._objectives if name not in (*ALWAYS, "delta_fid", "fid"))
        named = [f"{name} {quantity(name, v[name])}" for name in others if name in v]
        return ", ".join([*delta, *(quantity(m, v[m]) for m in ALWAYS if m in v), *named])

    def on_end(self, status: Status) -> None:
        """Says why a search ended, and how many evaluations took no image."""
        why = "no untried policy is left" if status.exhausted else "budget or time spent"
        if status.plateau:
            why = (
                f"the hypervolume did not grow in the last {self.patience} evaluations; "
                "a larger --patience, or none, goes on"
            )
        console.print(
            f"{why}: {status.evaluated} evaluated, {status.stopped} stopped early, {status.reused} known already, "
            f"{status.failed} failed"
        )
        for rung in status.rungs:
            outcome = "switched off" if rung.is_off else f"stopped {rung.stopped}"
            rank = "not known from so few trials" if rung.rank is None else f"{rung.rank:.2f}"
            console.print(f"rung of {rung.name}: {outcome}; rank correlation with the final numbers {rank}")
        if self._blind:
            console.print(f"quality was known for {self._blind} of these {self._evaluated} evaluations: no image drawn")


def _counted(design: Mapping[str, Policy]) -> str:
    found = Counter(kind_of(origin).value for origin in design)
    return " and ".join(f"{found[kind]} {name}" for kind, name in KINDS.items() if found[kind])
