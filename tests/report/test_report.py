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
from varsearch.db import RunRecord, Store
from varsearch.errors import UsageError
from varsearch.report.page import report
from varsearch.report.provenance import command
from varsearch.search.front import read_front
from varsearch.search.goals import parse_goals, resolve
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
    assert row and "trial 3</a> (seed:lean)" in row[1]
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
    assert "6 with numbers (0 of them known already), 1 failed" in page.words
    told = "varsearch run --model mnist --target 4090 --budget 7 --batch-size 256 --images 512 --seed 0"
    assert told in page.words


def test_the_command_sets_the_same_bounds() -> None:
    chosen = settings(speedup=1.25, peak_bytes=2e8, delta_fid=0.5)
    run = RunRecord("x", "mnist", SPEC.fingerprint, "", "", chosen.model_dump_json())
    assert chosen.quality
    words = shlex.split(command(run, chosen.quality, []))
    given = dict(zip(words[2::2], words[3::2], strict=True))
    goals = parse_goals(given["--max-latency"], given["--max-memory"], given["--max-fid"])
    assert resolve(goals, SearchSpace(SPEC), "mnist", chosen.speed) == pytest.approx(chosen.bounds)


def test_a_run_without_quality_has_no_report(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    costs = settings().model_copy(update={"quality": None, "objectives": ("latency_ms", "peak_bytes")})
    make_run(path, "costs", costs, POLICIES)
    with Store(path) as store, pytest.raises(UsageError, match="which this run does not evaluate"):
        report(store, store.runs()[0])


def test_without_the_model_the_rest_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    make_run(path, "<script>alert('&')</script>", settings("./gone"), POLICIES)
    with Store(path) as store:
        text = report(store, store.runs()[0])
    found = Page(text)
    assert found.words.count("No pictures: ") == 3 and found.words.count("No images: ") == 1
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
    assert "there is nothing to report" in capsys.readouterr().err and not out.exists()
