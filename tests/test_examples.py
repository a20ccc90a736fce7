"""The examples run as they are, one after the other in one folder, and stay short."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import calibrated_once
from tests.search.support.fake_profile import fake_evaluators

__all__ = ["calibrated_once"]

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("search", "ΔFID"),
        ("apply", "torch.Size([10, 1, 32, 32])"),
        ("compare", "example-policy.json"),
        ("explain", "whole policy"),
        ("profile_model", "latency"),
    ],
)
def test_an_example_runs(
    name: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    if name == "profile_model":  # hundreds of settings take minutes; here their numbers are made up
        fake_evaluators(monkeypatch)
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert said in capsys.readouterr().out
    if name == "search":
        assert (folder / "example-policy.json").is_file()


def test_examples_are_short() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"search", "apply", "compare", "explain", "profile_model"}
    assert not names & sys.stdlib_module_names, "beside the script that runs, cProfile would import profile.py"
    for path in EXAMPLES.glob("*.py"):
        lines = path.read_text().splitlines()
        body = ast.parse("\n".join(lines)).body[1:]
        code = [line for line in lines[body[0].lineno - 1 :] if line.strip()]
        assert 4 <= len(code) <= 8, f"{path.name} has {len(code)} lines of code"
