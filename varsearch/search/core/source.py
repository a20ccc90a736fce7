"""Where a trial comes from: an enum of kinds, and a name within the kind.

Databases, studies and JSON output keep the written form: "seed:dense", "preset:fastvar", "warm:3",
"known:run/7", "surrogate". Only the code says baseline for what is written "rival", because old
databases must open.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Self


class SourceKind(StrEnum):
    """Who proposed a policy; the value is its written form."""

    SEED = "seed"  # dense and the hand-made policies
    PRESET = "preset"  # a published system
    WARM = "warm"  # a profile of the model
    KNOWN = "known"  # another run, which evaluated its quality
    SURROGATE = "surrogate"
    SAMPLER = "sampler"
    MUTATION = "mutation"
    BASELINE = "rival"  # proposed to dominate a published system
    OTHER = ""  # a benchmark, or another version of this program

    @classmethod
    def _missing_(cls, value: object) -> Self:
        return cls("")

    @property
    def is_start(self) -> bool:
        """Whether a search starts from such policies, and does not propose them."""
        kind = SourceKind
        return self in (kind.SEED, kind.PRESET, kind.WARM, kind.KNOWN)


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of a trial.

    Attributes:
        kind: who proposed the policy.
        name: its name within the kind; empty for proposals. Of `SourceKind.OTHER` the whole text.
    """

    kind: SourceKind
    name: str = ""

    @staticmethod
    @cache
    def parse(origin: str) -> Source:
        """The source with this written form; every text has one."""
        kind, _, name = origin.partition(":")
        source = Source(SourceKind(kind), name)
        # Without this a kind that we do not know would lose its text.
        return source if str(source) == origin else Source(SourceKind.OTHER, origin)

    def __str__(self) -> str:
        """The written form."""
        return f"{self.kind}:{self.name}" if self.kind and self.name else self.kind + self.name


def kind_of(origin: str) -> SourceKind:
    """The kind of an origin in its written form."""
    return Source.parse(origin).kind


DENSE = str(Source(SourceKind.SEED, "dense"))
"""Origin of the trial that all others are compared with."""
