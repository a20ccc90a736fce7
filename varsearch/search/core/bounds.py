"""Bounds as users write them: "12ms", "8GB", "0.7x" of dense, "+0.5" above dense."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from varsearch.errors import UsageError

Bounded = Literal["latency", "memory", "fid"]

UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "ms": 1.0, "s": 1e3, "": 1.0}

ACCEPTED: dict[Bounded, str] = {
    "latency": "milliseconds as in 12ms, or a share of dense as in 0.7x",
    "memory": "bytes as in 8GB (B, kB, MB), or a share of dense as in 0.5x",
    "fid": "a distance above 0 as in 1.9, or one on top of dense as in +0.5",
}

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_FORMS: dict[Bounded, str] = {
    "latency": rf"{_NUMBER}\s*(ms|s|x)?",
    "memory": rf"{_NUMBER}\s*(B|kB|MB|GB|x)?",
    "fid": rf"\+?{_NUMBER}()",
}


@dataclass(frozen=True, slots=True)
class Bound:
    """One bound.

    Attributes:
        bounded: the quantity.
        text: the user's text.
        amount: milliseconds, bytes or a distance; or relative to dense.
        relative: whether dense is 1 (latency, memory) or 0 (FID).
    """

    bounded: Bounded
    text: str
    amount: float
    relative: bool

    @property
    def option(self) -> str:
        """The option of the command line, which messages name."""
        return f"--max-{self.bounded}"

    def limit(self, dense: Mapping[str, float]) -> tuple[str, float]:
        """The metric and its worst value that is allowed.

        Args:
            dense: metrics of the dense policy; only a relative bound on memory reads them.
        """
        if self.bounded == "fid":
            return ("delta_fid" if self.relative else "fid"), self.amount
        if self.bounded == "memory":
            return "peak_bytes", self.amount * (dense["peak_bytes"] if self.relative else 1.0)
        # The speed-up is measured side by side with dense, so it stays the same on a rerun.
        return ("speedup", 1 / self.amount) if self.relative else ("latency_ms", self.amount)


def parse_bound(bounded: Bounded, text: str) -> Bound:
    """Reads one bound; `UsageError` with the accepted forms for any other text."""
    text = text.strip()
    match = re.fullmatch(_FORMS[bounded], text)
    above_dense = text.startswith("+")
    # A policy may lose nothing at all. It cannot take no time or no memory, or be at no distance.
    if match is None or not (float(match[1]) > 0 or above_dense) or not math.isfinite(float(match[1])):
        raise UsageError(f"--max-{bounded} {text!r}: expected a number: {ACCEPTED[bounded]}")
    relative = match[2] == "x"
    scale = 1.0 if relative else UNITS[match[2] or ""]
    return Bound(bounded, text, float(match[1]) * scale, relative or above_dense)


def parse_bounds(latency: str | None, memory: str | None, fid: str | None) -> tuple[Bound, ...]:
    """The bounds that are not None, in this order; see `parse_bound`."""
    given: dict[Bounded, str | None] = {"latency": latency, "memory": memory, "fid": fid}
    return tuple(parse_bound(name, text) for name, text in given.items() if text is not None)
