"""The benchmark of searches, run small: equal evaluations, honest counts, a record that is replayed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import rungs, search, search_methods
from benchmarks.search_methods import METHODS
from benchmarks.search_problem import Recorded
from benchmarks.search_synthetic import SPEC, Synthetic
from tests.search.support import fakes
from tests.search.support.looks import MANY, RUNGS, WHOLE, climb
from varsearch.errors import UsageError
from varsearch.measurement import Job, Outcome
from varsearch.search.run.broker import Broker, Search
from varsearch.space.settings import candidates, compose


def test_every_method_makes_its_evaluations_and_the_table_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search.main(["synthetic", "--budget", "24", "--seeds", "1", "--out", str(tmp_path / "found.json")])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["packages"].keys() >= {"varsearch", "optuna"} and found["machine"]
    assert [run["method"] for run in found["runs"]] == list(METHODS)
    for run in found["runs"]:
        assert run["trials"] == 24 and 0 < run["volumes"][0] < 1
        assert f"{run['method']:<22}" in printed and f"{run['volumes'][0]:.4f}" in printed
    best = {run["method"]: run["volumes"][-1] for run in found["runs"]}
    assert best["ours"] > 1.5 * max(best["TPE cold"], best["NSGA-II cold"], best["random"])


def test_the_table_counts_wins_and_ratios() -> None:
    rows = [
        {"method": method, "seed": seed, "volumes": [0.1, volume], "seconds": 1.0}
        for method, volumes in {"TPE cold": (0.1, 0.3), "TPE warm": (0.4, 0.5), "ours": (0.6, 0.5)}.items()
        for seed, volume in enumerate(volumes)
    ]
    table = search.summarized(rows, [60, 200])
    (ours,) = [line for line in table if line.startswith("ours")]
    assert "1 of 2" in ours and "0.5500 [0.5000, 0.6000]" in ours and " 2.75 " in ours


def test_the_synthetic_problem_does_not_add_up() -> None:
    """Whole policies lose more or less than their settings do, by factors."""
    problem = Synthetic(0)
    found = candidates(SPEC)
    ratios = []
    for first in range(0, len(found) - 40, 40):
        chosen = tuple({setting.unit: setting for setting in found[first : first + 40]}.values())
        ratios.append(problem.loss(chosen) / sum(problem.loss((setting,)) for setting in chosen))
    assert max(ratios) > 3 * min(ratios)
    assert problem.values(compose(SPEC, ()))["delta_fid"] == 0


def test_what_was_recorded_is_replayed_and_nothing_else(tmp_path: Path) -> None:
    evaluated: list[Job] = []

    class Worker:
        def evaluate(self, job: Job) -> Outcome:
            evaluated.append(job)
            return fakes.outcome(job)

    def problem(record: bool) -> Recorded:
        made = Recorded(str(tmp_path / "record.db"), record=record)
        made.__dict__["_prepared"] = SimpleNamespace(settings=fakes.settings(), worker=SimpleNamespace(make=Worker))
        return made

    with pytest.raises(UsageError, match="--record"):
        problem(record=False).evaluate(fakes.DENSE)
    recording = problem(record=True)
    first = recording.evaluate(fakes.DENSE)
    assert recording.evaluate(fakes.DENSE) == first
    assert recording.counts == {"replayed": 1, "evaluated": 1}
    replaying = problem(record=False)
    assert replaying.evaluate(fakes.DENSE) == first and replaying.counts == {"replayed": 1, "evaluated": 0}
    assert len(evaluated) == 1


def test_what_the_record_lacks_ends_a_search_and_is_no_failed_policy() -> None:
    class Forgetful(Synthetic):
        def answer(self, job: Job) -> Outcome:
            if job.number > 2:
                raise UsageError("run again with --record")
            return super().answer(job)

    with pytest.raises(UsageError, match="--record"):
        search_methods.search(Forgetful(), "ours", 0, 6)


def test_rows_of_other_seeds_and_methods_stay_when_more_are_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*given: str) -> list[tuple[str, int]]:
        search.main(["synthetic", "--budget", "3", "--out", str(tmp_path / "found.json"), *given])
        runs = json.loads((tmp_path / "found.json").read_text())["runs"]
        return [(row["method"], row["seed"]) for row in runs]

    assert run("--methods", "TPE cold", "--seeds", "2") == [("TPE cold", 0), ("TPE cold", 1)]
    capsys.readouterr()
    assert run("--methods", "random", "TPE cold", "--seeds", "1", "--add") == [
        ("random", 0),
        ("TPE cold", 0),
        ("TPE cold", 1),
    ]
    printed = capsys.readouterr().out
    assert "\nrandom" in printed and "\nTPE cold" in printed, "the table is of the whole file"
    with pytest.raises(UsageError, match="another problem"):
        run("--methods", "random", "--seeds", "1", "--add", "--problem-seed", "7")
    assert run("--methods", "random", "--seeds", "1") == [("random", 0)]


def test_the_benchmark_of_rungs_reads_what_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.db"
    broker = Broker(Search(WHOLE, fakes.SPACE, MANY, path, len(MANY), rungs=RUNGS))
    climb(broker, noise=0.0)
    broker.close("finished")
    rungs.main(["--storage", str(path)])
    printed = capsys.readouterr().out
    (exact,) = [line for line in printed.splitlines() if line.startswith("64 images: delta_fid")]
    assert exact.split()[3:] == [str(len(MANY) - 1), "1.000", "1.000", "0.000", "0%"]
    assert "192 images: kid" in printed and "192 images: feature_distance" in printed
