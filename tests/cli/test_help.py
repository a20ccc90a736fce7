"""Help texts read well on a terminal of 80 columns."""

from __future__ import annotations

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tests.cli.commands import as_json, output
from varsearch.cli.app import app
from varsearch.cli.run import PANELS
from varsearch.space.presets import PRESETS

WORDS = {"flash-attn", "hf:OWNER/REPOSITORY@REVISION", "varsearch.db", "docs/metrics.md", "VARSEARCH_STORAGE"}
"""Words of the help that a narrow column could break."""


def help_of(command: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of `varsearch COMMAND --help` at 80 columns, without the frame."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def commands() -> list[str]:
    return ["", *get_command(app).commands]  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", commands())
def test_no_line_breaks_inside_a_word(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word that is written in a help text is found whole in the printed help."""
    printed = set(re.split(r"[\s│╭╮╰╯─]+", "\n".join(help_of(command, monkeypatch))))
    found = get_command(app)
    if command:
        found = found.commands[command]  # type: ignore[attr-defined]
    for param in found.params:
        for word in (*(getattr(param, "help", "") or "").split(), *param.opts):
            if not param.opts[0].startswith("-") and word in param.opts:
                continue  # an argument is shown by its own name
            assert word in printed, f"{command} {param.name}: {word}"
    assert not any(line.rstrip(" │").endswith("…") for line in help_of(command, monkeypatch) if "──" not in line)


@pytest.mark.parametrize("command", commands())
def test_switches_have_no_type(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [line for line in help_of(command, monkeypatch) if line.startswith("│ --")]
    assert options and not any(re.search("<(bool|str|int|float)", line) for line in options)


def test_the_options_of_run_are_in_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = help_of("run", monkeypatch)
    titles = [match[1] for line in lines if (match := re.match(r"╭─ ([\w ]+) ─+╮", line))]
    assert titles == ["Options", *PANELS, "Advanced"]
    text = "\n".join(lines)
    for word in WORDS:
        assert word in text
    shown = set(re.findall(r"│ (--[\w-]+)", text))
    params = get_command(app).commands["run"].params  # type: ignore[attr-defined]
    assert shown == {"--help", *(opt for param in params for opt in param.opts)}
    assert {name for names in PANELS.values() for name in names} <= {param.name for param in params}


def test_published_systems_with_their_papers(capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(capsys, "presets")
    assert [row["name"] for row in rows] == list(PRESETS)
    assert all(row["url"] == f"https://arxiv.org/abs/{row['arxiv']}" and row["fields"] for row in rows)
    text = output(capsys, "presets")
    for row in rows:
        assert row["name"] in text and row["system"] in text and row["arxiv"] in text
