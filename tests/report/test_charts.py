"""What the charts of a report are computed from, and where things are put."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import FigureBase
from PIL import Image

from tests.conftest import build_tiny
from tests.report.runs import make_run, settings
from tests.search.support.fakes import DENSE, SPACE, STARTS, FakeWorker
from tests.search.support.fakes import settings as fake_settings
from varsearch.db import State, Store
from varsearch.models.image_model import ImageModel
from varsearch.policy import (
    KVCompression,
    LayerPolicy,
    Policy,
    Quantization,
    Refiner,
    ScalePolicy,
    SparseAttention,
    TokenPruning,
    Weights,
)
from varsearch.report import page
from varsearch.report.charts import COLOURS, Chart, Tips, beside
from varsearch.report.hypervolume_chart import history, hypervolume_chart
from varsearch.report.labels import Box, place
from varsearch.report.policy_charts import caption, policy_charts, techniques
from varsearch.report.work import WorkLeft
from varsearch.search.core.objectives import front_trials, front_volume
from varsearch.search.results.front import read_front
from varsearch.search.run.driver import run
from varsearch.target import Target

TARGET = Target(device="4090", dtype="float16", batch_size=4)
FULL = ScalePolicy()


@pytest.fixture(scope="module")
def work() -> WorkLeft:
    return WorkLeft(build_tiny(), TARGET)


def policy(*last: ScalePolicy, refiner: Refiner | None = None, **first: object) -> Policy:
    """Three layers, of which the first has these fields, and five scales that end in these."""
    scales = (FULL,) * (5 - len(last)) + last
    return Policy(layers=(LayerPolicy(**first), LayerPolicy(), LayerPolicy()), scales=scales, refiner=refiner)


def test_dense_leaves_all_work_and_skipped_scales_none(work: WorkLeft) -> None:
    assert work.of(policy()) == ((1.0,) * 5,) * 3
    assert work.of(policy(ScalePolicy(run=False))) == ((1.0, 1.0, 1.0, 1.0, 0.0),) * 3


def test_without_guidance_half_the_work_is_left(work: WorkLeft) -> None:
    for row in work.of(policy(ScalePolicy(guidance="off"))):
        assert row == pytest.approx((1.0, 1.0, 1.0, 1.0, 0.5))


def test_work_is_left_out_where_it_was_pruned(work: WorkLeft) -> None:
    pruned = TokenPruning(keep=0.5, first_layer=1, last_layer=1)
    rows = work.of(policy(ScalePolicy(tokens=pruned)))
    assert rows[0] == rows[2] == (1.0,) * 5
    assert rows[1][:4] == (1.0,) * 4 and 0.4 < rows[1][4] < 0.75


def test_a_refiners_scales_have_no_share(work: WorkLeft) -> None:
    small = work.model.sibling("small").spec
    refiner = Refiner(model="small", fingerprint=small.fingerprint or "0" * 64, first_scale=3)
    for row in work.of(policy(refiner=refiner)):
        assert row == (1.0, 1.0, 1.0, None, None)


def test_letters_say_what_acts_where() -> None:
    shared = ScalePolicy(guidance="shared", shared_ffn=(0, 2))
    window = SparseAttention(window=((None,) * 4,) * 3 + ((1, None, None, None), (None,) * 4))
    found = policy(shared, ScalePolicy(guidance="off"), attention=window)
    assert [techniques(found, 0, k) for k in range(5)] == ["", "", "", "GW", "g"]
    assert [techniques(found, 1, k) for k in range(5)] == ["", "", "", "", "g"]
    assert caption(found).endswith("cost more than dense; g: guidance off; G: guidance shared; W: attention windows.")
    assert caption(policy()).endswith("cost more than dense.")
    assert "q8: cache in 8 bits" in caption(policy(kv=KVCompression(bits=8)))


def words_of(chart: Chart) -> list[str]:
    """All words that a chart shows."""
    return [e.text or "" for e in ElementTree.fromstring(chart.inline()).iter("text")]


def tips_of(chart: Chart) -> list[str]:
    """All tips of a chart."""
    return [e.text or "" for e in ElementTree.fromstring(chart.inline()).iter("title")]


def test_charts_of_a_policy_say_in_numbers_what_they_show_in_colours(tiny: ImageModel, work: WorkLeft) -> None:
    kv = KVCompression(keep=(0.25, 1.0, 0.5, 0.0), bits=8)
    weights = Weights(qkv=Quantization(bits=4), fc2=Quantization(bits=8, activation_bits=6))
    found = policy(ScalePolicy(guidance="off"), kv=kv, weights=weights)
    charts = policy_charts(found, tiny.spec, work.of(found))
    work_words, bits_words, head_words = map(words_of, charts)
    assert work_words.count("50") == 2 and work_words.count("g") == 3 and "100" in work_words
    assert {"4", "8/6", "–", *tiny.spec.linears} <= set(bits_words)
    assert {"25 q8", "100 q8", "50 q8", "0 q8", "100"} <= set(head_words)
    assert "layer 2, scale 4: 50% of dense's arithmetic; guidance off" in tips_of(charts[0])
    whole = beside(charts, "all of them", "a caption")
    file = ElementTree.fromstring(whole.svg())
    assert file.get("aria-label") == "all of them"
    shown = {e.text for e in file.iter("{http://www.w3.org/2000/svg}text")}
    assert {"4", "8/6", "25 q8", "a caption"} <= shown


def test_a_png_has_the_colours_of_the_cells(tiny: ImageModel, work: WorkLeft) -> None:
    """A cache that keeps everything is white, one that keeps nothing is dark: colour stands for savings."""
    found = policy(ScalePolicy(run=False), kv=KVCompression(keep=(0.0, 1.0, 1.0, 1.0)))
    scales, _, heads = policy_charts(found, tiny.spec, work.of(found))
    for chart, dark, bright in ((scales, (4, 0), (0, 0)), (heads, (0, 0), (1, 0))):
        with Image.open(io.BytesIO(chart.png(zoom=1))) as drawn:
            assert drawn.size == pytest.approx((chart.width, chart.height), abs=1)
            wide = 52.0
            pixels = drawn.convert("RGB")
            # Cells begin 34 pixels from the left and 46 from the top; their corners hold no words.
            at = [(round(34 + (column + 0.07) * wide), round(46 + row * 26 + 5)) for column, row in (dark, bright)]
            colours = [pixels.getpixel(place) for place in at]
        assert colours[0] == pytest.approx((127, 184, 216), abs=3), "half of #0072b2 on white"
        assert colours[1] == (255, 255, 255)


def test_an_inline_chart_has_variables_for_colours_and_no_identifiers() -> None:
    def draw(figure: FigureBase, tips: Tips) -> None:
        axes = figure.subplots()
        (mark,) = axes.plot([1.0], [1.0], "o", color=COLOURS["front"])
        tips.add(mark, "a <point>", "#trial-1")

    chart = Chart("one point", 200, 100, draw)
    root = ElementTree.fromstring(chart.inline())
    assert not any("id" in e.attrib or "clip-path" in e.attrib for e in root.iter())
    assert "#0072b2" not in chart.inline() and "var(--front)" in chart.inline()
    (link,) = root.iter("a")
    assert (link.get("href"), link.get("aria-label")) == ("#trial-1", "a <point>")
    assert root.get("role") == "group" and tips_of(chart) == ["a <point>"]
    assert chart.inline() == chart.inline(), "the same chart gives the same text"
    assert len(set(COLOURS.values())) == len(COLOURS), "each colour names one variable"
    style = (Path(page.__file__).parent / "page.css").read_text()
    assert all(f"--{name}: {colour}" in style for name, colour in COLOURS.items())


def test_history_is_the_front_of_every_moment(tmp_path: Path) -> None:
    chosen, path = fake_settings(), tmp_path / "x.db"
    status = run(chosen, SPACE, STARTS, FakeWorker, storage=path, budget=12)
    with Store(path) as store:
        record = store.run(status.run)
        trials, front = store.trials(record), read_front(store, record)
    stages = history(chosen, trials)
    assert front.dense is not None
    for n, stage in enumerate(stages, start=1):
        values = [t.values for t in front_trials(chosen, trials[:n])]
        assert stage.volume == pytest.approx(front_volume(chosen, values, front.dense.values))
        assert (stage.evaluations, stage.minutes) == (n, pytest.approx(n * 0.02 / 60))
    assert stages[-1].volume == front.hypervolume
    known = {(t.number, "quality") for t in trials if t.number}
    assert [s.minutes for s in history(chosen, trials, known)] == pytest.approx([(n + 2) / 6000 for n in range(12)])
    assert f"{front.hypervolume:.3f}" in hypervolume_chart(stages, 0.1, over_time=True).label
    stopped = [replace(t, state=State.STOPPED, cost=0.25) if t.number == 5 else t for t in trials]
    assert [s.evaluations for s in history(chosen, stopped)] == [1, 2, 3, 4, 5, *(n + 0.25 for n in range(6, 12))]


def test_history_without_dense_is_empty(tmp_path: Path) -> None:
    make_run(tmp_path / "x.db", "x", settings(), {"sampler": (DENSE, 0.0, 1.0, 1.0)})
    with Store(tmp_path / "x.db") as store:
        assert history(settings(), store.trials(store.runs()[0])) == []


def test_labels_of_a_crowd_stay_apart_and_inside() -> None:
    rng = random.Random(0)
    points = [(rng.gauss(200, 25), rng.gauss(200, 25)) for _ in range(18)]
    area = Box(0, 0, 500, 400)
    boxes = place(points, [(50.0, 14.0)] * len(points), area, [Box(x - 5, y - 5, 10, 10) for x, y in points])
    for i, box in enumerate(boxes):
        assert box.overlap(area) == pytest.approx(box.width * box.height)
        assert all(box.overlap(other) == 0 for other in boxes[:i])


def test_a_lone_label_is_beside_its_point() -> None:
    (box,) = place([(100, 100)], [(40, 14)], Box(0, 0, 300, 300), [])
    assert (box.left, box.top) == (108, 93)
