"""How a search goes, line by line."""

from __future__ import annotations

from collections.abc import Container, Mapping

from varsearch.cli.render import announce_missing, console, duration, quantity
from varsearch.db import State, TrialRecord
from varsearch.policy import Policy
from varsearch.search.run.events import Confirmed, Event, Progress
from varsearch.search.setup.transfer import Knowledge

NAMED = 3
"""Runs that are named where many were of use."""


def announce_known(known: Knowledge) -> None:
    """Says what a search need not evaluate, and who did."""
    announce_missing("nothing is taken from", known.unread)
    if known.fresh:
        more = len(known.runs) - NAMED
        runs = ", ".join(known.runs[:NAMED]) + (f" and {more} more" if more > 0 else "")
        console.print(f"quality of {known.fresh} policies is known from {runs}: they come first, without any image")


class ProgressLines:
    """Prints a line for every trial that has its outcome or is confirmed, and in the end how many took no image.

    Args:
        starts: what the search starts from, by origin.
        judged: digests of the policies whose quality was known before.
    """

    def __init__(self, starts: Mapping[str, Policy], judged: Container[str]) -> None:
        self._width = min(max(22, *map(len, starts)), 50)
        self._judged, self._evaluated, self._blind = judged, 0, 0

    def __call__(self, event: Event) -> None:
        """Takes an event of the search."""
        if isinstance(event, Confirmed):
            self._print_confirmed(event)
            return
        judged = event.trial.policy.digest in self._judged
        self._evaluated += not event.reused
        self._blind += judged and not event.reused
        self._print(event, " (known already)" if event.reused else " (quality known)" if judged else "")

    def _print(self, event: Progress, known: str) -> None:
        trial, now = event.trial, event.status
        mark = "*" if trial.number in now.front else " "
        volume = "" if now.hypervolume is None else f", hypervolume {now.hypervolume:.3f}"
        console.print(
            f"{mark} {now.spent:>6.4g}/{now.budget} trial {trial.number:<3} {self._origin(trial)} {_told(trial)}{known}"
            f"  | front {len(now.front)}{volume}, ETA {duration(now.seconds_left)}"
        )
        if event.news:
            console.print(event.news)

    def _print_confirmed(self, event: Confirmed) -> None:
        old, new = event.trial.values, event.again.values
        told = f"failed: {event.error}"
        if not event.error:
            delta = [f"ΔFID {old['delta_fid']:+.2f} → {new['delta_fid']:+.2f}"] if "delta_fid" in old else []
            told = ", ".join([*delta, f"{old['speedup']:.2f}x → {new['speedup']:.2f}x"])
        console.print(
            f"confirmed {event.done:>3}/{event.total} trial {event.trial.number:<3} {self._origin(event.trial)} {told}"
            f"  | ETA {duration(event.seconds_left)}"
        )

    def _origin(self, trial: TrialRecord) -> str:
        return f"{trial.origin:<{self._width}}"

    def conclude(self) -> None:
        """Says how many evaluations took no image, if any did."""
        if self._blind:
            console.print(f"quality was known for {self._blind} of these {self._evaluated} evaluations: no image drawn")


def _told(trial: TrialRecord) -> str:
    if trial.state is State.STOPPED:
        return trial.error
    if trial.error:
        return f"failed: {trial.error}"
    v = trial.values
    delta = [f"ΔFID {v['delta_fid']:+.2f}"] if "delta_fid" in v else []
    return ", ".join([*delta, *(quantity(m, v[m]) for m in ("latency_ms", "speedup", "peak_bytes") if m in v)])
