"""Whatever standard output is, the exit code is the command's own, and nothing that is printed steers the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from varsearch.cli import main as entry
from varsearch.cli.render import console, table
from varsearch.cli.streams import printable

VARSEARCH = f"{sys.executable} -m varsearch"


def bash(command: str) -> tuple[int, str, str]:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", ["targets", "targets --json", "models", "--help", "--version"])
@pytest.mark.parametrize(
    ("stdout", "code", "error"),
    [
        ("| true; exit ${PIPESTATUS[0]}", 0, ""),
        (">&-", 0, ""),
        (">/dev/full", 8, "error: No space left on device\n"),
    ],
)
def test_standard_output_that_takes_nothing(arguments: str, stdout: str, code: int, error: str) -> None:
    assert bash(f"{VARSEARCH} {arguments} {stdout}") == (code, "", error)


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "2>&1 | true; exit ${PIPESTATUS[0]}"])
def test_an_error_that_nobody_reads_keeps_its_code(stderr: str) -> None:
    assert bash(f"{VARSEARCH} front --storage /none.db {stderr}") == (6, "", "")


def test_characters_that_the_terminal_does_not_know() -> None:
    code, out, error = bash(f"PYTHONIOENCODING=ascii {VARSEARCH} targets")
    assert (code, error) == (0, "") and "launch ?s" in out


HOSTILE = {
    "[/x]": "[/x]",
    "[red]x": "[red]x",
    ":smile:": ":smile:",
    "\x1b[31mred": "\\x1b[31mred",
    "a\rb\x07\x9b": "a\\rb\\x07\\x9b",
    "\udcff": "\\udcff",
    "\u202egnp": "\\u202egnp",
    "ΔFID µs …": "ΔFID µs …",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_printed_as_it_is(text: str) -> None:
    with console.capture() as capture:
        console.print(text)
        table(text, ("<name",), [(text,)])
    assert capture.get().count(HOSTILE[text]) == 3
    assert capture.get().replace("\n", "").isprintable()


def test_lines_stay_lines() -> None:
    assert printable("one\ntwo") == "one\ntwo"


def test_ctrl_c_is_understood_before_anything_slow_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupt:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "varsearch.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "varsearch.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupt(), *sys.meta_path])
    assert entry.main(["targets"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    slow = "{'typer', 'rich', 'pydantic', 'torch', 'importlib.metadata', 'sqlalchemy'}"
    code = f"import sys, varsearch.cli.main; print({slow} & set(sys.modules))"
    found = subprocess.check_output([sys.executable, "-S", "-c", code], cwd=Path(__file__).parents[2], text=True)
    assert found == "set()\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyboardInterrupt(), "error: interrupted\n"),
        (PermissionError(13, "Permission denied", "/x\n[/y]"), "error: /x [/y]: Permission denied\n"),
        (OSError("no reason"), "error: no reason\n"),
    ],
)
def test_what_a_command_does_not_expect(
    error: BaseException, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("varsearch.search.results.runs.overview", fail)
    assert entry.main(["status"]) == (130 if isinstance(error, KeyboardInterrupt) else 8)
    assert capsys.readouterr() == ("", line)
