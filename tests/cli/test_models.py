"""`varsearch models`: the list on a narrow terminal, the whole of it as JSON, and cards."""

from __future__ import annotations

import pytest

from tests.cli.commands import as_json, output
from varsearch.cli.render import console


def test_a_line_for_each_model_on_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 80)
    monkeypatch.setattr(console, "soft_wrap", False)
    lines = output(capsys, "models").splitlines()
    assert max(map(len, lines)) <= 80
    for row in as_json(capsys, "models"):
        (cells,) = [line.split() for line in lines if line.split()[:1] == [row["name"]]]
        n = sum(height * width for height, width in row["spec"]["scales"])
        assert cells[1] == str(row["spec"]["image_size"][0])
        assert cells[4:7] == [str(row["spec"]["n_layers"]), str(row["spec"]["n_heads"]), str(n)]
        assert len(cells) == 11 and cells[-1] in ("MB", "GB")


def test_the_list_says_where_weights_are_from_and_what_does_not_apply(capsys: pytest.CaptureFixture[str]) -> None:
    told = output(capsys, "models")
    var = "var-d16, var-d20, var-d24, var-d30: ImageNet classes, 256 pixels; weights not shipped: from huggingface.co/"
    assert f"\n{var}FoundationVision/var, or --weights random; licence: MIT\n" in told
    assert "8x8, 6 layers of 4 heads; shipped; licence: MIT (weights); trained on MNIST" in told
    assert "cifar10 has no weights yet: it was never trained" in told
    assert "mvar-d30, mvar-d32: without layers[].kv, layers[].attention.cross_scale, refiner\n" in told
    for row in as_json(capsys, "models"):
        assert f"{row['description']}; " in told and f"licence: {row['licence']}\n" in told
        assert row["shipped"] or f"from {row['source']}, or" in told


def test_the_card_of_a_shipped_model(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = [row for row in as_json(capsys, "models") if row["name"] == "mnist"]
    assert row["spec"]["n_layers"] == 6 and "MNIST" in row["data"] and row["shipped"]
    card = output(capsys, "models", "mnist")
    for word in ("nll_held_out", "label_agreement_samples", "fid_real_held_out", "nearest_train", "guidance scan"):
        assert word in card
