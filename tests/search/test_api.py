"""A search from Python on the shipped model, in four objectives: everything that its front can do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from matplotlib.text import Text

import varsearch
from tests.search.support.fakes import SPACE, STARTS, FakeWorker, outcome, settings
from varsearch.calibration import Calibration
from varsearch.db import State, Store
from varsearch.errors import UsageError
from varsearch.measurement import Job, Measurement, Outcome
from varsearch.report.dashboard import attach
from varsearch.report.page import report
from varsearch.search.core.objectives import front_volume
from varsearch.search.core.pareto import dominates
from varsearch.search.run.driver import run
from varsearch.search.run.events import Event, Progress, Status
from varsearch.search.setup import calibration

OBJECTIVES = ("delta_fid", "latency_ms", "peak_bytes", "nll")


class Said(varsearch.Listener):
    """Remembers the status at the end and how many trials were confirmed."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.status: Status | None = None

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def on_end(self, status: Status) -> None:
        self.status = status


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api") / "runs.db"


@pytest.fixture(scope="module")
def front(path: Path, mnist_calibration: Calibration) -> varsearch.Front:
    """Four trials of 16 images each, and their confirmation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "calibrate", lambda model, protocol: mnist_calibration)
        said, trials = Said(), list[Progress]()
        found = varsearch.search(
            "mnist",
            "4090",
            budget=4,
            storage=path,
            objectives=OBJECTIVES,
            images=16,
            name="four",
            on_trial=trials.append,
            listener=said,
        )
        assert [done.trial.number for done in trials] == [0, 1, 2, 3]
        assert trials[-1].status.evaluated == 4 and len(said.events) > 4
        assert said.status is not None and said.status.run == found.run == "four"
        again = Said()
        same = varsearch.search(
            "mnist", "4090", budget=4, storage=path, objectives=OBJECTIVES, images=16, name="four", listener=again
        )
        assert same.entries == found.entries and not again.events
    return found


def words(front: varsearch.Front) -> str:
    """All text of a plot."""
    return "\n".join(text.get_text() for text in front.plot().findobj(Text))


def test_a_front_is_a_sequence_of_its_entries(front: varsearch.Front) -> None:
    assert len(front) == len(list(front)) == len(front.entries) > 0
    assert front[0] == next(iter(front)) and front.knee in list(front)
    assert front.dense is not None and front.dense.origin == "seed:dense"
    assert [baseline.name for baseline in front.baselines] == ["litevar", "litevar-w6", "litevar-85"]
    assert len(front.trials) == 4
    assert "front of four" in repr(front) and "ΔFID" in repr(front.knee)


def test_it_trades_off_all_four(front: varsearch.Front) -> None:
    losses = [front.settings.losses(entry.values) for entry in front]
    assert all(len(loss) == 4 for loss in losses)
    assert not any(dominates(a, b) for a in losses for b in losses)
    assert front.dense is not None and front.hypervolume is not None and front.hypervolume > 0
    volume = front_volume(front.settings, [entry.values for entry in front], front.dense.values)
    assert front.hypervolume == pytest.approx(volume)


def test_the_best_within_limits(front: varsearch.Front) -> None:
    least = min(entry.value("peak_bytes") for entry in front)
    best = front.best(memory=f"{least:.0f}B")
    assert best.value("peak_bytes") == least
    assert front.best().value("delta_fid") == min(entry.value("delta_fid") for entry in front)
    assert front.best(latency="10x", memory="10x").value("delta_fid") == front.best().value("delta_fid")
    assert front.best(fid="+1000").value("speedup") == max(entry.value("speedup") for entry in front)
    with pytest.raises(UsageError, match="no policy on the front has speedup of 100 or more: the most is"):
        front.best(latency="0.01x")
    with pytest.raises(UsageError, match="expected a number"):
        front.best(memory="little")


def test_tables_for_pandas_and_notebooks(front: varsearch.Front, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = front.to_dataframe()
    assert list(frame.index) == [entry.number for entry in front]
    assert frame.loc[front.knee.number, "nll"] == front.knee.value("nll")
    assert {"origin", "policy", "delta_fid_low", "peak_bytes"} <= set(frame.columns)
    html = front._repr_html_()
    assert "<table>" in html and "NLL" in html and "published systems" in html
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        front.to_dataframe()


def test_pictures_report_and_dashboard_say_what_they_show(front: varsearch.Front, path: Path) -> None:
    note = "4 objectives, not drawn: nll"
    assert note in words(front)
    with Store(path) as store:
        record = store.run("four")
        page = report(store, record)
        attach(store, record)
    assert note in page and ", ".join(OBJECTIVES) in page


def test_an_entry_is_exported_and_applied(front: varsearch.Front, tmp_path: Path) -> None:
    file = varsearch.load_policy(front.knee.export(tmp_path / "knee.json"))
    assert file.policy == front.knee.policy and file.provenance.run == "four" and file.provenance.confirmed
    model, labels = varsearch.load("mnist"), torch.arange(3)
    with front.knee.apply(model) as fast:
        images = fast.images(labels, seed=1)
    with varsearch.apply(model, file) as fast:
        assert torch.equal(images, fast.images(labels, seed=1))


def test_a_run_is_read_again(front: varsearch.Front, path: Path) -> None:
    found = varsearch.read_front(path)
    assert found.entries == front.entries and found.hypervolume == front.hypervolume
    with pytest.raises(UsageError, match="no run 'other'"):
        varsearch.read_front(path, "other")


def test_five_objectives_are_too_many(path: Path) -> None:
    chosen = (*OBJECTIVES, "kv_bytes")
    with pytest.raises(UsageError, match="objectives must be one to four different metrics"):
        varsearch.search("mnist", "4090", storage=path, objectives=chosen, images=16)


class FourNumbers(FakeWorker):
    """Caches shrink with latency, so that all four objectives disagree."""

    def evaluate(self, job: Job) -> Outcome:
        found = outcome(job)
        if found.speed is None:
            return found
        cache = Measurement(metric="kv_bytes", value=1e5 + 1e3 * found.values["speedup"])
        speed = found.speed.model_copy(update={"measurements": (*found.speed.measurements, cache)})
        return found.model_copy(update={"speed": speed})


def test_a_search_in_four_objectives_from_start_to_end(tmp_path: Path) -> None:
    chosen = settings(objectives=("delta_fid", "latency_ms", "peak_bytes", "kv_bytes"))
    storage, budget = tmp_path / "runs.db", 30
    status = run(chosen, SPACE, STARTS, FourNumbers, storage=storage, budget=budget, confirm=True)
    assert status.evaluated == budget and status.failed == 0
    with Store(storage) as store:
        assert sum(t.state is State.COMPLETE for t in store.trials(store.run(status.run))) == budget
    front = varsearch.read_front(storage)
    assert front.confirmed and len(front) > 4 and front.settings.objectives == chosen.objectives
    assert front.knee in list(front) and 0 < (front.hypervolume or 0) < 1
    assert "4 objectives, not drawn: kv_bytes" in words(front)
