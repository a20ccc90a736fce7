"""`varsearch prompts`, with a stand-in for the text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from varsearch.cli.main import main
from varsearch.models.infinity import t5
from varsearch.models.infinity.text import load_prompts


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def encode(prompts: Sequence[str], model: str, device: str) -> list[Tensor]:
        return [torch.full((len(text.split()), 4), float(len(text))) for text in prompts]

    monkeypatch.setattr(t5, "encode", encode)
    monkeypatch.chdir(tmp_path)
    Path("texts").write_text("a cat\n\na dog in a hat\n")


def test_prompts_and_negative_ones(capsys: pytest.CaptureFixture[str]) -> None:
    Path("away").write_text("blurry\n")
    assert main(["prompts", "texts", "p.safetensors", "--negative", "away"]) == 0
    assert "features of 2 prompts, each with a negative one" in capsys.readouterr().out
    found = load_prompts("p.safetensors")
    assert found.features_NTC.shape == (2, 5, 4) and found.present_NT is not None
    assert found.present_NT.sum(1).tolist() == [2, 5]
    assert found.negative is not None and found.negative.features_NTC.shape == (2, 1, 4)


@pytest.mark.parametrize(
    ("negative", "reason"),
    [("one\ntwo\nthree\n", "holds 3 prompts, texts 2"), ("", "holds no prompts"), (None, "cannot read prompts")],
)
def test_texts_that_cannot_be(negative: str | None, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    if negative is not None:
        Path("away").write_text(negative)
    assert main(["prompts", "texts", "p.safetensors", "--negative", "away"]) == 2
    assert reason in capsys.readouterr().err and not Path("p.safetensors").exists()
