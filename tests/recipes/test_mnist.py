"""The recipe of the shipped models on few images: both of its models, and a second call that trains nothing."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from recipes.mnist import __main__ as recipe
from recipes.mnist import data, package, transformer
from varsearch.models import zoo
from varsearch.models.manifest import Manifest


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 104 images and the recipe's sizes shrunk to them."""
    random = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 104), ("test", 40)):
        coarse = random.integers(0, 256, (n, 7, 7), dtype=np.uint8)
        arrays[f"{part}_images"] = coarse.repeat(4, axis=1).repeat(4, axis=2)
        arrays[f"{part}_labels"] = np.sort(np.arange(n) % 10).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", **arrays)
    few = dataclasses.replace(package.EVALUATION, guidance=(0.0, 1.0), n_images=20, n_tuning=20, n_held_out=10)
    monkeypatch.setattr(package, "EVALUATION", few)
    monkeypatch.setattr(data, "HELD_OUT", 40)
    sizes = {"mnist": transformer.Size(2, 32, 2, 1.0), "mnist-small": transformer.Size(1, 16, 1, 1.0)}
    monkeypatch.setattr(transformer, "SIZES", sizes)
    return tmp_path


def call(folder: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    work, out = folder / f"work-{model}", folder / "weights" / model
    options = ["--data", str(folder), "--out", str(out), "--work", str(work), "--threads", "1", "--scale", "0.01"]
    monkeypatch.setattr(sys, "argv", ["recipes.mnist", "--model", model, *options])
    recipe.main()
    return zoo.manifest(str(out))


def test_both_models_are_written_and_share_their_files(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = call(small, "mnist", monkeypatch)
    assert first.name == "mnist" and first.transformer.depth == 2 and first.classifier.kind == "plain"
    assert "transformer: " in capsys.readouterr().out
    assert call(small, "mnist", monkeypatch) == first
    assert "transformer: " not in capsys.readouterr().out
    numbers = zoo.card(str(small / "weights" / "mnist"))["numbers"]
    assert numbers["n_images"] == 20 and 0 < numbers["nll_test"] < 6
    # The small model is trained on the tokens of the base, which is this one here.
    monkeypatch.setattr(zoo, "WEIGHTS", small / "weights")
    zoo.manifest.cache_clear()
    second = call(small, "mnist-small", monkeypatch)
    assert second.files["tokenizer"] == ("../mnist/tokenizer.safetensors", first.files["tokenizer"][1])
    assert second.transformer.depth == 1
    assert [spec.name for spec in zoo.siblings(str(small / "weights" / "mnist"))] == ["mnist-small"]
    zoo.manifest.cache_clear()
