"""Folders with outputs of the published code: found by their files, so that other sizes, seeds and cases work too.

`VARSEARCH_PARITY` names another folder of them than the one beside the project.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors import safe_open

from tests.conftest import SHARED

PARITY = Path(os.environ.get("VARSEARCH_PARITY", SHARED / "parity"))
ABSENT = "no folder"
CASE = re.compile(
    r"gen\.((?P<kind>greedy|sampled|smooth)(_seed(?P<seed>\d+)_cfg(?P<cfg>[\d.]+)_topk(?P<k>\d+)_topp(?P<p>[\d.]+))?)"
)


def folders(weights: str) -> list[str]:
    """Names of the folders that hold a file of these weights; one that stands for none where there is none."""
    return sorted(path.parent.name for path in PARITY.glob(f"*/{weights}")) or [ABSENT]


def open_folder(name: str) -> tuple[Path, dict[str, Any]]:
    """A folder and its configuration; skips where there is none."""
    if name == ABSENT:
        pytest.skip("the folder with published outputs is not here")
    return PARITY / name, json.loads((PARITY / name / "config.json").read_text())


class Case(NamedTuple):
    """How a recorded batch of images was drawn."""

    name: str
    smooth: bool
    seed: int
    guidance: float
    top_k: int
    top_p: float


def cases(weights: str) -> list[tuple[str, Case]]:
    """Folder and case of every recorded generation."""
    found = []
    for folder in folders(weights):
        keys = [] if folder == ABSENT else safe_open(PARITY / folder / "io.safetensors", "pt").keys()
        for match in filter(None, map(CASE.fullmatch, keys)):
            greedy = match["kind"] == "greedy"
            numbers = (
                (0, 1.5, 1, 0.0)
                if greedy
                else (int(match["seed"]), float(match["cfg"]), int(match["k"]), float(match["p"]))
            )
            found.append((folder, Case(match[1], match["kind"] == "smooth", *numbers)))
    return found or [(ABSENT, Case("none", False, 0, 0.0, 0, 0.0))]


def tokenizer_file(folder: Path, config: dict[str, Any]) -> Path:
    """The weights of the tokenizer, which folders may share."""
    return folder / config.get("vae", "../vae.safetensors")
