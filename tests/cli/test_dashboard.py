"""The Optuna dashboard as a browser shows it: front, parameters, sample grids, notes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import browser, needs_browser
from varsearch.cli.main import main

PATIENCE = 600
"""Seconds that a page may take to load on a busy machine."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard on a finished run, in a process of its own as a user starts it."""
    folder = tmp_path_factory.mktemp("dashboard")
    storage = ["--storage", str(folder / "x.db")]
    assert main(["run", "--images", "16", "--target", "4090", "--budget", "4", "--name", "shown", *storage]) == 0
    command = [sys.executable, "-u", "-m", "varsearch", "dashboard", "--port", "0", *storage]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    yield line.split()[3].removesuffix("/dashboard")
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 0


def get(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return bytes(answer.read())


def test_trials_carry_values_names_and_grids(address: str) -> None:
    study_id = json.loads(get(f"{address}/api/studies"))["study_summaries"][0]["study_id"]
    study = json.loads(get(f"{address}/api/studies/{study_id}?after=0"))
    assert study["objective_names"] == ["delta_fid", "latency_ms", "peak_bytes"]
    assert len(study["trials"]) == 4 and all(len(trial["params"]) == 100 for trial in study["trials"])
    shown = [trial for trial in study["trials"] if trial["artifacts"]]
    assert shown, "no finalist has a sample grid"
    for trial in shown:
        (artifact,) = trial["artifacts"]
        png = get(f"{address}/artifacts/{study_id}/{trial['trial_id']}/{artifact['artifact_id']}")
        assert png.startswith(b"\x89PNG") and len(png) > 1000
        assert "predicted" in trial["note"]["body"]


@pytest.mark.service
@needs_browser
def test_a_browser_shows_front_parameters_and_grids(address: str, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with browser(tmp_path) as page:
        page.get(f"{address}/dashboard")
        wait = WebDriverWait(page, PATIENCE)
        wait.until(lambda p: "shown" in p.find_element(By.TAG_NAME, "body").text)
        study_id = json.loads(get(f"{address}/api/studies"))["study_summaries"][0]["study_id"]
        page.get(f"{address}/dashboard/studies/{study_id}")
        wait.until(lambda p: "Pareto" in p.find_element(By.TAG_NAME, "body").text)
        wait.until(lambda p: p.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .main-svg, canvas"))
        number = next(
            t["number"]
            for t in json.loads(get(f"{address}/api/studies/{study_id}?after=0"))["trials"]
            if t["artifacts"]
        )
        page.get(f"{address}/dashboard/studies/{study_id}/trials?numbers={number}")
        wait.until(loaded_pictures)
        text = page.find_element(By.TAG_NAME, "body").text
        assert "predicted" in text and "unguided_scales" in text


def loaded_pictures(page) -> list[str]:  # noqa: ANN001
    script = "return [...document.images].filter(i => i.naturalWidth > 200).map(i => i.src)"
    return [source for source in page.execute_script(script) if "/artifacts/" in source]
