"""Origins keep their written form, whoever wrote it."""

from __future__ import annotations

import pytest

from varsearch.search.core.source import DENSE, Source, SourceKind, kind_of

WRITTEN = {
    "seed:dense": (SourceKind.SEED, "dense"),
    "preset:fastvar": (SourceKind.PRESET, "fastvar"),
    "warm:3": (SourceKind.WARM, "3"),
    "known:mnist-4090-1a2b3c4d/7": (SourceKind.KNOWN, "mnist-4090-1a2b3c4d/7"),
    "known:a:b/7": (SourceKind.KNOWN, "a:b/7"),
    "surrogate": (SourceKind.SURROGATE, ""),
    "sampler": (SourceKind.SAMPLER, ""),
    "mutation": (SourceKind.MUTATION, ""),
    "rival": (SourceKind.BASELINE, ""),
}


@pytest.mark.parametrize(("written", "source"), WRITTEN.items())
def test_every_origin_of_a_database_is_a_kind_and_a_name(written: str, source: tuple[SourceKind, str]) -> None:
    found = Source.parse(written)
    assert (found.kind, found.name) == source
    assert str(found) == str(Source(*source)) == written


@pytest.mark.parametrize("written", ["", "random", "seed:", ":dense", "sampler:", "Seed:dense", "moved:x"])
def test_what_is_not_known_keeps_its_text(written: str) -> None:
    assert str(Source.parse(written)) == written


def test_starts_and_proposals() -> None:
    assert DENSE == "seed:dense"
    starts = {written for written in WRITTEN if kind_of(written).is_start}
    assert starts == {written for written in WRITTEN if ":" in written}
    assert kind_of("random") is SourceKind.OTHER
