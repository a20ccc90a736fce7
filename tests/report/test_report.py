"""The page of a run: complete, the same every time, and of a piece."""

from __future__ import annotations

import re
import shlex
import shutil
import sqlite3
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.conftest import write
from tests.report.runs import POLICIES, SPEC, make_run, settings
from varsearch.cli.main import main
from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.measurement import Origin
from varsearch.policy import Policy
from varsearch.report.page import report
from varsearch.report.provenance import command, provenance
from varsearch.search.core.bounds import parse_bounds
from varsearch.search.core.protocols import Protocols, confirming
from varsearch.search.results.front import Front, read_front
from varsearch.search.setup.bounds import resolve
from varsearch.space import SearchSpace


class Page(HTMLParser):
    """Everything that a test asks of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._hidden = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        self.words += "" if self._hidden else data

    def values(self, tag: str, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for name, attrs in self.tags if name == tag and attribute in attrs]


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written.read_text())


def test_the_same_database_gives_the_same_bytes(database: Path, written: Path) -> None:
    assert write(database, "1").read_bytes() == written.read_bytes()


def test_everything_is_inside_and_small(page: Page, written: Path) -> None:
    assert written.stat().st_size < 5e6
    sources = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "data")]
    assert sources and all(str(source).startswith(("data:", "#")) for source in sources)
    assert "@import" not in written.read_text() and "url(" not in written.read_text()
    assert "http:" not in written.read_text() and "https:" not in written.read_text()


def test_the_front_is_drawn_and_listed(page: Page, database: Path) -> None:
    with Store(database) as store:
        front = read_front(store, store.run("made up"))
    numbers = {entry.number for entry in front.entries}
    assert numbers == {0, 2, 3, 4}
    assert {f"trial-{n}" for n in numbers} == {i for i in page.values("tr", "id") if i.startswith("trial-")}
    links = page.values("a", "href")
    assert all(links.count(f"#trial-{n}") >= 2 for n in numbers), "each is a point of both charts"
    for told in ("+0.20 [+0.05, +0.35]", "1.67×", "0.30×", "weights 4-bit x1; KV kept 96%; guidance off at 5"):
        assert told in page.words, told
    assert f"{front.hypervolume:.3f}" in page.words
    ids = [value for _, attrs in page.tags for name, value in attrs.items() if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_published_systems_and_what_beats_them(page: Page, written: Path) -> None:
    row = re.search(r'data-label="published">worse</th>(.*?)</tr>', written.read_text(), re.DOTALL)
    assert row and "trial 3</a> (seed:lean), 96 % sure" in row[1]
    row = re.search(r'data-label="published">code</th>(.*?)</tr>', written.read_text(), re.DOTALL)
    assert row and "nothing: it is on the front" in row[1]
    assert written.read_text().count(">worse</text>") == 2, "labelled in both charts"


def test_chosen_policies_have_pictures_and_images(page: Page, written: Path) -> None:
    for told in (
        "knee, smallest: trial 3",
        "fastest: trial 4",
        "best quality: trial 0",
        "by layer and scale",
        "--run 'made up' --select trial=3",
    ):
        assert told in page.words, told
    alternatives = page.values("img", "alt")
    assert len(alternatives) == 4 and all(len(alt) > 30 for alt in alternatives), "two policies beside dense"
    pictures = page.values("img", "src")
    assert pictures[0] == pictures[2] != pictures[1] != pictures[3]
    assert all(page.values("svg", "aria-label")) and len(page.values("svg", "aria-label")) == 4 + 3 * 3


def test_provenance(page: Page) -> None:
    chosen = settings()
    for told in (SPEC.fingerprint, chosen.digest, chosen.quality.digest, chosen.speed.digest, "predicted", "a CPU"):
        assert told in page.words, told
    assert "6 with numbers (0 of them known already), 0 stopped early, 1 failed" in page.words
    told = "varsearch run --model mnist --target 4090 --budget 7 --batch-size 256 --dtype float16 --images 512 --seed 0"
    assert told in page.words


def test_the_command_sets_the_same_bounds() -> None:
    chosen = settings(speedup=1.25, peak_bytes=2e8, delta_fid=0.5)
    run = RunRecord("x", "mnist", SPEC.fingerprint, "", "", chosen.model_dump_json())
    words = shlex.split(command(run, []))
    assert words[words.index("--dtype") + 1] == "float16" and "--attention" not in words
    given = dict(zip(words[2::2], words[3::2], strict=True))
    goals = parse_bounds(given["--max-latency"], given["--max-memory"], given["--max-fid"])
    assert resolve(goals, SearchSpace(SPEC), "mnist", chosen.speed) == pytest.approx(chosen.bounds)


def test_provenance_has_the_bound_on_fid_that_was_asked_for() -> None:
    """That among confirmed numbers, which the front has, is another."""
    asked = settings(fid=5.0)
    run = RunRecord("x", "mnist", SPEC.fingerprint, "", "", asked.model_dump_json())
    shown = Front(
        settings=settings(fid=3.5), entries=(), complete=0, dense=None, presets=(), hypervolume=None, best_values={},
        run="x", trials=(),
        protocols=Protocols.of(asked), confirmed=False, unconfirmed=0, optimism=None,
    )  # fmt: skip
    facts = dict(dict(provenance(run, shown, [], [], "a database"))["Run"])
    assert facts["bounds"] == "fid 5" and facts["settings (sha256)"] == asked.digest


def test_the_command_gives_bounds_to_the_last_digit() -> None:
    chosen = settings(speedup=1 / 0.7, peak_bytes=4e8 / 3)
    words = shlex.split(command(RunRecord("x", "mnist", SPEC.fingerprint, "", "", chosen.model_dump_json()), []))
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert given["--max-latency"] == "0.7x"
    goals = parse_bounds(given["--max-latency"], given["--max-memory"], None)
    assert resolve(goals, SearchSpace(SPEC), "mnist", chosen.speed) == chosen.bounds


def test_the_command_names_warm_starts_and_rungs_where_there_were_some() -> None:
    policy = Policy.dense(SPEC.n_layers, len(SPEC.scales))
    run = RunRecord("x", "mnist", SPEC.fingerprint, "", "", settings().model_dump_json())

    def told(origins: list[str], last: State) -> str:
        trials = [TrialRecord(i, policy, o, State.COMPLETE, attempts=1, cost=1.0) for i, o in enumerate(origins)]
        return command(run, [*trials, TrialRecord(len(trials), policy, "sampler", last, cost=0.1)])

    assert told(["seed:dense", "warm:0", "warm:1"], State.STOPPED).endswith("--warm-starts 2 --rungs")
    plain = told(["seed:dense"], State.COMPLETE)
    assert "warm" not in plain and "rungs" not in plain


def test_the_command_names_what_is_not_usual() -> None:
    chosen = settings(delta_fid=1e-5, latency_ms=2.5e7)
    target = chosen.speed.target.model_copy(update={"dtype": "float32"})
    unusual = chosen.model_copy(
        update={"speed": chosen.speed.model_copy(update={"target": target, "attention": "reference"})}
    )
    told = command(RunRecord("x", "mnist", SPEC.fingerprint, "", "", unusual.model_dump_json()), [])
    assert "--dtype float32" in told and "--attention reference" in told
    assert "--max-fid +0.00001" in told and "--max-latency 25000000ms" in told


def test_a_run_without_quality_shows_latency_against_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    costs = settings("./gone").model_copy(update={"quality": None, "objectives": ("latency_ms", "peak_bytes")})
    make_run(path, "costs", costs, POLICIES)
    with Store(path) as store:
        found = Page(report(store, store.runs()[0]))
    assert "ΔFID" not in found.words and "NLL" not in found.words and "Images" not in found.words
    for told in (
        "quality was not evaluated",
        "2 on the front",
        "code 1.25× 0.60×",
        "knee, fastest: trial 4",
        "smallest: trial 3",
    ):
        assert told in " ".join(found.words.split()), told
    charts = [label for label in found.values("svg", "aria-label") if "against" in label]
    assert charts == ["peak memory relative to dense against latency relative to dense: 2 policies on the front"]
    assert {"trial-3", "trial-4"} == {i for i in found.values("tr", "id") if i.startswith("trial-")}
    assert "--objectives latency_ms,peak_bytes" in found.words and "--images" not in found.words


def test_a_measured_run(tmp_path: Path) -> None:
    chosen = settings("./gone")
    speed = chosen.speed.model_copy(update={"origin": Origin.MEASURED, "repeats": 31})
    measured = chosen.model_copy(update={"speed": speed, "objectives": ("delta_fid", "speedup", "peak_bytes")})
    for name, settled in (
        ("all", measured),
        ("costs", measured.model_copy(update={"quality": None, "objectives": ("speedup", "peak_bytes")})),
    ):
        make_run(tmp_path / "x.db", name, settled, POLICIES)
        with Store(tmp_path / "x.db") as store:
            words = Page(report(store, store.run(name))).words
        assert "Latency and memory are measured" in words and "candidates, NOT confirmed" in words
        assert "timed rounds31" in words and "timed rounds93" in words
        assert ("ΔFID" in words) == (name == "all")


def test_a_confirmed_front(confirmed: Path) -> None:
    """Fresh noise takes 0.2 from trial 2, and gives 0.5 to all others but dense."""
    with Store(confirmed) as store:
        text = report(store, store.runs()[0])
    found = Page(text)
    words = " ".join(found.words.split())
    assert "policies confirmed3of 6 evaluated" in words and "3 confirmed on 2048 fresh images" in words
    assert "quality of 2048 images per policy" in words
    assert "ΔFID changed by +0.27 [" in words and "on average over 3 policies" in words
    row = text[text.index('<tr id="trial-3">') :]
    assert "+0.70 [+0.55, +0.85]" in row[: row.index("</tr>")], "0.2 by the search"
    assert "dots are the numbers of the search" in words and "by the numbers of the search" in words
    assert text.count("trial, by the search's numbers") == 2, "both charts name the other dots"
    chosen = settings("./gone")
    fresh = confirming(chosen).quality
    assert fresh is not None and chosen.quality is not None
    assert fresh.digest in words and chosen.quality.digest in words and f"noise seed{fresh.seed}" in words
    assert "--images 512" in words


def test_without_the_model_the_rest_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    make_run(path, "<script>alert('&')</script>", settings("./gone"), POLICIES)
    with Store(path) as store:
        text = report(store, store.runs()[0])
    found = Page(text)
    assert found.words.count("No charts: ") == 3 and found.words.count("No images: ") == 1
    assert "gone" in found.words.partition("No images: ")[2][:200]
    assert "+0.20 [+0.05, +0.35]" in found.words
    assert "<script>alert" not in text and "<script>alert('&')</script>" in found.words


def test_weights_that_were_not_measured_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    make_run(path, "other", settings().model_copy(update={"fingerprint": "f" * 64}), POLICIES)
    with Store(path) as store:
        found = Page(report(store, store.runs()[0]))
    assert "No images: run 'other' measured weights ffffffffffff" in found.words and not found.values("img", "src")


@pytest.mark.parametrize("metric", ["speedup", "delta_fid"])
def test_lost_numbers(metric: str, database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.db"
    shutil.copy(database, path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"delete from measurement where metric = '{metric}'")
        connection.commit()
    assert main(["report", "--storage", str(path), "--out", str(tmp_path / "x.html")]) == 6
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"no {metric}" in error and not (tmp_path / "x.html").exists()


def test_a_run_without_a_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "x.db", "empty", settings(), {})
    out = tmp_path / "none.html"
    assert main(["report", "--storage", str(tmp_path / "x.db"), "--out", str(out)]) == 2
    assert "the front is empty: the run has no evaluated trial yet" in capsys.readouterr().err and not out.exists()
