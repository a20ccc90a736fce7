"""Runs commands in this process, as a user types them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from varsearch.cli.main import main


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints that succeeds."""
    capsys.readouterr()
    assert main(list(arguments)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command says with --json."""
    return json.loads(output(capsys, *arguments, "--json"))


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, *words: str) -> None:
    """A command fails with this code and one line, which holds these words."""
    capsys.readouterr()
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1, error
    for word in words:
        assert word in error, error
