"""How a search goes, line by line."""

from __future__ import annotations

from collections.abc import Container, Mapping

from varsearch.cli.render import announce_missing, console, duration, quantity
from varsearch.policy import Policy
from varsearch.search.knowledge import Knowledge
from varsearch.search.progress import Progress

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
    """Prints a line for every trial that has its outcome, and in the end how many took no image.

    Args:
        starts: what the search starts from, by origin.
        judged: digests of the policies whose quality was known before.
    """

    def __init__(self, starts: Mapping[str, Policy], judged: Container[str]) -> None:
        self._width = min(max(22, *map(len, starts)), 50)
        self._judged, self._evaluated, self._blind = judged, 0, 0

    def __call__(self, event: Progress) -> None:
        """Takes an event of the search."""
        judged = event.trial.policy.digest in self._judged
        self._evaluated += not event.reused
        self._blind += judged and not event.reused
        self._print(event, " (known already)" if event.reused else " (quality known)" if judged else "")

    def _print(self, event: Progress, known: str) -> None:
        trial, now = event.trial, event.status
        mark = "*" if trial.number in now.front else " "
        if trial.error:
            told = f"failed: {trial.error}"
        else:
            v = trial.values
            delta = [f"ΔFID {v['delta_fid']:+.2f}"] if "delta_fid" in v else []
            told = ", ".join([*delta, *(quantity(m, v[m]) for m in ("latency_ms", "speedup", "peak_bytes") if m in v)])
        origin = f"{trial.origin:<{self._width}}"
        volume = "" if now.hypervolume is None else f", hypervolume {now.hypervolume:.3f}"
        console.print(
            f"{mark} {now.evaluated:>3}/{now.budget} trial {trial.number:<3} {origin} {told}{known}"
            f"  | front {len(now.front)}{volume}, ETA {duration(now.seconds_left)}"
        )

    def conclude(self) -> None:
        """Says how many evaluations took no image, if any did."""
        if self._blind:
            console.print(f"quality was known for {self._blind} of these {self._evaluated} evaluations: no image drawn")
