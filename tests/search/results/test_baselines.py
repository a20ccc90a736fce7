"""What is said about published systems agrees with the definition of the front."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import pytest

from benchmarks import front as benchmark
from benchmarks import losses
from tests.search.support.fakes import DENSE, SPACE, STARTS, FakeWorker, settings
from tests.search.support.harness import front_of
from tests.search.support.interacting import with_loss
from tests.search.support.trials import with_values
from varsearch.db import Store, TrialRecord
from varsearch.policy import LayerPolicy, Policy, Quantization, Weights
from varsearch.search.core.objectives import front_trials, front_volume
from varsearch.search.core.pareto import dominates
from varsearch.search.results.baselines import baselines, presets_volume
from varsearch.search.results.front import Front, read_front
from varsearch.search.run.driver import run

BOUNDED = settings(bounds={"delta_fid": 1.5})


def policy(bits: tuple[int | None, ...]) -> Policy:
    layers = (LayerPolicy(weights=Weights(qkv=Quantization(bits=b) if b else None)) for b in bits)
    return Policy(layers=tuple(layers), scales=DENSE.scales)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Front:
    """Of a search that also tried what it calls published systems."""
    path = tmp_path_factory.mktemp("baselines") / "runs.db"
    presets = {f"preset:{n}": policy((3,) * n + (None,) * (4 - n)) for n in (1, 2, 3, 4)}
    status = run(BOUNDED, SPACE, {**STARTS, **presets}, FakeWorker, storage=path, budget=60)
    with Store(path) as store:
        return read_front(store, store.run(status.run))


def test_every_published_system_is_on_the_front_or_beaten_or_out_of_bounds(front: Front) -> None:
    found = baselines(front)
    assert [baseline.entry.origin for baseline in found] == [f"preset:{n}" for n in (1, 2, 3, 4)]
    members = {entry.number for entry in front.entries}
    for baseline in found:
        if baseline.beaten_by is not None:
            losses = [front.settings.losses(e.values) for e in (baseline.beaten_by, baseline.entry)]
            assert dominates(*losses) and baseline.feasible and baseline.beaten_by.number in members
        else:
            assert (baseline.entry.number in members) == baseline.feasible
    assert {baseline.feasible for baseline in found} == {True, False}
    assert any(baseline.beaten_by for baseline in found), "the search finds better ones among 60"


def test_the_search_adds_to_what_published_systems_reach(front: Front) -> None:
    alone = presets_volume(front)
    assert alone is not None and front.hypervolume is not None
    assert 0 < alone < front.hypervolume


def test_the_benchmark_tells_what_the_front_shows(front: Front) -> None:
    told = benchmark.lines(front)
    beaten = [baseline for baseline in baselines(front) if baseline.beaten_by]
    assert f"{len(beaten)} of 4 published systems are dominated" in told
    assert sum(line.startswith("    by trial") and line.endswith("% sure") for line in told) == len(beaten) > 0
    deltas = [(e.metrics["delta_fid"], e.value("speedup")) for e in front.entries]
    fastest = max(speedup for delta, speedup in deltas if (delta.value if delta.low is None else delta.low) <= 0)
    assert any("  fastest: trial" in line and f"speed-up {fastest:.2f}x" in line for line in told)


def test_what_is_fast_is_beaten_in_loss_or_speed_by_nothing(front: Front) -> None:
    fast = losses.fast(front)
    assert 0 < len(fast) < len(front.entries)
    for entry in front.entries:
        own = (entry.value("delta_fid"), -entry.value("speedup"))
        points = [(e.value("delta_fid"), -e.value("speedup")) for e in front.entries]
        assert any(p[0] <= own[0] and p[1] <= own[1] and p != own for p in points) != (entry in fast)
    assert [e.value("speedup") for e in fast] == sorted((e.value("speedup") for e in fast), reverse=True)
    members = [fast[-1].number, fast[0].number]
    assert [e.number for e in losses.chosen(front, members)] == members[::-1]
    with pytest.raises(SystemExit, match="trial 999 is neither on the front"):
        losses.chosen(front, [*members, 999])


def test_what_beats_a_published_system_says_how_surely() -> None:
    """Judged by errors of 1, with a loss that is 1 less: by how much a difference of two exceeds 0."""
    exact = {"fid": 4.0, "speedup": 1.0}
    dense = replace(with_values(0, delta_fid=0.0, latency_ms=100.0, peak_bytes=1e6, **exact), origin="seed:dense")

    def judged(number: int, loss: float, peak: float, origin: str = "sampler") -> TrialRecord:
        plain = with_values(number, delta_fid=loss, latency_ms=50.0, peak_bytes=peak, **exact)
        return replace(with_loss(plain, loss, 1.96), origin=origin)

    preset, better, less_sure = judged(1, 6.0, 5e5, "preset:a"), judged(2, 5.0, 5e5), judged(3, 5.9, 4e5)
    (baseline,) = baselines(front_of([dense, preset, better, less_sure]))
    assert baseline.beaten_by == baseline.nearest and baseline.beaten_by is not None and baseline.beaten_by.number == 2
    assert baseline.probability == pytest.approx(NormalDist().cdf(1 / 2**0.5), abs=0.08)
    (left,) = baselines(front_of([dense, preset, judged(4, 7.0, 4e5)]))
    assert left.beaten_by is None and left.nearest is not None and left.nearest.number == 4
    assert left.probability == pytest.approx(NormalDist().cdf(-1 / 2**0.5), abs=0.08)
    (by_another,) = baselines(front_of([dense, preset, judged(5, 0.1, 1e5, "preset:b")]))[:1]
    assert by_another.beaten_by is not None and by_another.beaten_by.origin == "preset:b"
    (ours_first, _) = baselines(front_of([dense, preset, judged(5, 0.1, 2e5, "preset:b"), judged(6, 4.0, 1e5)]))
    assert ours_first.beaten_by is not None and ours_first.beaten_by.number == 6


def test_of_several_that_beat_it_the_cheapest_is_named(tmp_path: Path) -> None:
    base = {"fid": 4.0, "speedup": 1.0}
    dense = replace(with_values(0, delta_fid=0.0, latency_ms=100.0, peak_bytes=1e6, **base), origin="seed:dense")
    preset = replace(with_values(1, delta_fid=1.0, latency_ms=90.0, peak_bytes=9e5, **base), origin="preset:a")
    little = with_values(2, delta_fid=0.9, latency_ms=90.0, peak_bytes=8e5, **base)
    much = with_values(3, delta_fid=0.95, latency_ms=20.0, peak_bytes=2e5, **base)
    other = replace(with_values(4, delta_fid=0.0, latency_ms=99.0, peak_bytes=9.9e5, **base), origin="preset:b")
    found = front_of([dense, preset, little, much, other])
    first, second = baselines(found)
    assert first.beaten_by is not None and first.beaten_by.number == 3
    assert second.beaten_by is None and second.feasible
    values = [t.values for t in front_trials(settings(), [dense, preset, other])]
    assert presets_volume(found) == pytest.approx(front_volume(settings(), values, dense.values))


def test_without_presets_there_are_no_rivals(tmp_path: Path) -> None:
    assert baselines(front_of([with_values(0, delta_fid=0.0, latency_ms=1.0, peak_bytes=1.0)])) == []
    assert presets_volume(front_of([])) is None
