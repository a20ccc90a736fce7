"""The recipe with its smoke sizes: how it splits, end to end, killed and started again, and how the model is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recipes.common.archive import read
from recipes.common.augment import recoloured, turned
from recipes.common.data import Draws
from recipes.common.transformer import lesson
from recipes.emoji64 import evaluate, trial
from recipes.emoji64.__main__ import main
from recipes.emoji64.data import FLAGS, SYMBOLS, chosen, load, sided
from recipes.emoji64.plan import FULL, SMOKE
from tests.recipes.conftest import killed_at
from varsearch.errors import UsageError
from varsearch.evaluators.extractors import classifier_extractor
from varsearch.models import zoo
from varsearch.models.classifier import ClassifierConfig, build_classifier
from varsearch.models.storage import packed
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE


@pytest.fixture(scope="module")
def trained(emoji: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, `emoji64`, and the work folder, `work`, of a training without interruption."""
    folder = tmp_path_factory.mktemp("emoji64")
    assert main([str(emoji), str(folder / "emoji64"), "--smoke", "--work", str(folder / "work")]) == 0
    return folder


def test_no_emoji_is_on_two_sides(emoji: Path) -> None:
    every, columns = read(emoji, None, ("emoji",))["train"]
    held = torch.isin(columns["emoji"], chosen(every.labels, columns["emoji"], 0.2))
    assert not set(columns["emoji"][held].tolist()) & set(columns["emoji"][~held].tolist())
    assert set(every.labels[held].tolist()) == set(range(9)) and held.float().mean() < 0.4
    splits = load(emoji, None, 0.2)
    bits = {name: {image.numpy().tobytes() for image in split.images} for name, split in splits.items()}
    assert bits["held_out"].isdisjoint(bits["train"]) and bits["reference"] <= bits["test"]
    assert len(splits["train"]) == int((~held).sum())


def test_what_samples_are_compared_with_has_its_classes_in_turn(emoji: Path) -> None:
    splits = load(emoji, None, 0.2)
    for name in ("held_out", "reference"):
        labels = splits[name].labels.view(-1, 9)
        assert torch.equal(labels, torch.arange(9).expand(len(labels), 9)), name
    known, shown = (
        [(image.numpy().tobytes(), y) for image, y in zip(split.images, split.labels.tolist(), strict=True)]
        for split in (splits["test"], splits["reference"])
    )
    assert set(shown) <= set(known), "an image changed its label"


def test_rare_classes_are_drawn_more_often_than_their_share() -> None:
    labels = torch.tensor([0] * 100 + [1] * 4)
    draws = Draws(labels, 2000, power=0.5)
    rare = labels[draws.batch(5)].float().mean().item()
    assert rare == pytest.approx(2 / 12, abs=0.04)
    assert torch.equal(draws.batch(5), Draws(labels, 2000, power=0.5).batch(5))
    assert not torch.equal(draws.batch(5), draws.batch(6))


def test_writing_and_flags_are_not_mirrored() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64)
    for label, mirrored in ((0, True), (SYMBOLS, False), (FLAGS, False)):
        found = sided(image.expand(32, -1, -1, -1), torch.full((32,), label))
        assert bool((found != image).any()) == mirrored


def test_colours_change_and_white_stays() -> None:
    torch.manual_seed(0)
    white = torch.ones(8, 3, 16, 16)
    assert torch.allclose(recoloured(white, hue=0.5, saturation=0.3), white, atol=1e-3)
    assert torch.allclose(turned(white, degrees=30, zoom=0.2), white, atol=1e-5)
    red = torch.tensor([0.2, -0.2, -0.2])[None, :, None, None].expand(8, 3, 16, 16)
    unchanged = recoloured(red, hue=0.0, saturation=0.0)
    assert torch.allclose(unchanged, red, atol=1e-3)
    other = recoloured(red, hue=0.5, saturation=0.0)
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert torch.allclose(torch.einsum("c,nchw->nhw", luma, other), torch.einsum("c,nchw->nhw", luma, red), atol=1e-3)
    assert (other[:, :, 0, 0].std(0) > 0.05).all(), "each image has its own hue"


def test_a_lesson_without_noise_is_the_plain_encoding_and_noise_changes_later_scales_only() -> None:
    torch.manual_seed(0)
    tokenizer, images = VQVAE(SMOKE.tokenizer).eval(), torch.rand(4, 3, 64, 64) * 2 - 1
    tokens, inputs = lesson(tokenizer, images, noise=0.0)
    plain = tokenizer.encode(images)
    assert torch.equal(tokens, torch.cat(plain, dim=1))
    assert torch.allclose(inputs, tokenizer.quantize.teacher_input(plain), atol=1e-6)
    noisy, shown = lesson(tokenizer, images, noise=1.0)
    assert torch.equal(noisy[:, 0], tokens[:, 0]), "what the first scale should say is known"
    assert not torch.allclose(shown, inputs)


def test_a_classifier_says_the_side_of_its_images() -> None:
    network = build_classifier(SMOKE.classifier).eval()
    extractor = classifier_extractor(network)
    assert extractor.features(torch.rand(2, 3, 64, 64)).shape == (2, SMOKE.classifier.num_features)
    with pytest.raises(UsageError, match="takes images of shape \\(3, 64, 64\\)"):
        extractor.features(torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match="not 64x64"):
        ClassifierConfig("plain", side=64)
    assert zoo.manifest("mnist").classifier.side == 32


def run_until(line: str, emoji: Path, folder: Path) -> list[str]:
    """See `killed_at`."""
    command = ["-m", "recipes.emoji64", str(emoji), str(folder / "emoji64"), "--smoke"]
    return killed_at(line, [*command, "--work", str(folder / "work")], threads=1)


def test_a_killed_recipe_goes_on_and_makes_the_same_model(
    trained: Path, emoji: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(emoji), str(tmp_path / "emoji64"), "--smoke", "--work", str(tmp_path / "work")]
    run_until("classifier: step 2", emoji, tmp_path)
    first = run_until("tokenizer: step 4", emoji, tmp_path)
    assert first[0].startswith("classifier: goes on from step ")
    assert any(" h spent, " in line and line.endswith(" min to go\n") for line in first)
    second = run_until("transformer: step 3", emoji, tmp_path)
    assert second[0].startswith("tokenizer: goes on from step ")
    assert main([*arguments, "--preview"]) == 0
    preview = zoo.manifest(str(tmp_path / "emoji64")).files
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().err.startswith("transformer: goes on from step ")
    again, once = (zoo.manifest(str(path / "emoji64")).files for path in (tmp_path, trained))
    assert again == once
    assert preview["tokenizer"] == once["tokenizer"] and preview["transformer"] != once["transformer"]


def test_every_criterion_is_printed_and_an_untrained_model_is_not_worth_shipping(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(trained / "emoji64"), "--images", "18"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines[:2]] == ["met ", "met "]
    assert [line[:4] for line in lines[2:7]].count("FAIL") >= 3 and len(lines) == 8
    assert "nearest training image" in lines[7]


@pytest.mark.parametrize(
    ("key", "value", "met"),
    [
        ("label_agreement_samples", 0.6, True),
        ("label_agreement_samples", 0.59, False),
        ("classifier_accuracy_test", 0.75, True),
        ("classifier_accuracy_test", 0.74, False),
        ("fid_samples", 6.0, True),
        ("fid_samples", 6.1, False),
    ],
)
def test_the_limits_are_those_that_were_set_before(
    key: str, value: float, met: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {
        "n_images": 720,
        "label_agreement_samples": 0.9,
        "classifier_accuracy_test": 0.9,
        "classifier_accuracy_reference": 0.8,
        "fid_samples": 2.0,
        "fid_real_held_out": 1.0,
    }
    monkeypatch.setattr(zoo, "card", lambda _: {"numbers": good | {key: value}})
    assert all(c.met for c in evaluate.of_card("any")) == met


def test_a_trial_prints_figures_and_refuses_unknown_fields(
    trained: Path, emoji: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(emoji), "transformer", "--steps", "2", "--smoke", "--judged", "9"]
    assert trial.main([*arguments, "--work", str(trained / "work"), "--set", "depth=1", "noise=0.5"]) == 0
    found = json.loads(capsys.readouterr().out)["transformer"]
    assert found["images"] == 16 and found["NLL"] > 0 and found["NLL without a cache"] > 0
    assert trial.main([*arguments, "--work", str(trained / "work"), "--set", "colour=1"]) == 2
    assert "--set colour=1" in capsys.readouterr().err
    assert trial.main([*arguments, "--work", str(emoji)]) == 2
    assert "no trained tokenizer" in capsys.readouterr().err


def test_the_planned_files_are_under_25_mb() -> None:
    with torch.device("meta"):
        networks = {
            "classifier": build_classifier(FULL.classifier),
            "tokenizer": VQVAE(FULL.tokenizer),
            "transformer": VAR(FULL.transformer),
        }
    stored = sum(
        t.numel() * t.element_size()
        for name, module in networks.items()
        for t in packed(module.state_dict(), FULL.stored[name]).values()
    )
    assert stored + 2e6 < evaluate.MEGABYTES * 1e6, "with reference, held-out tokens and a grid of samples"
    assert FULL.tokenizer.image_size == (FULL.classifier.side,) * 2 and FULL.transformer.scales[-1] == (16, 16)
