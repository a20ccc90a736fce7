"""The recipe with its smoke sizes: end to end, killed and started again, and what it refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import varsearch
from recipes.cifar10.__main__ import main
from recipes.cifar10.estimate import OTHERS
from recipes.cifar10.plan import FULL, SHARES, STORED
from tests.recipes.conftest import killed_at
from varsearch.accel import labels_for
from varsearch.evaluators.quality import for_zoo
from varsearch.models import zoo
from varsearch.models.classifier import build_classifier
from varsearch.models.storage import packed
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE
from varsearch.space.presets.seeds import seeds

# A machine that only trains has none of these.
WITHOUT_SEARCH = """
import runpy, sys
sys.modules.update(dict.fromkeys(("ray", "optuna", "sqlalchemy", "alembic")))
runpy.run_module("recipes.cifar10", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu() -> Iterator[None]:
    """Sums on a GPU come out a little different each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="module")
def trained(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained without interruption."""
    folder = tmp_path_factory.mktemp("cifar10")
    assert main([str(archive), str(folder / "cifar10"), "--smoke", "--work", str(folder / "work")]) == 0
    return folder / "cifar10"


def test_the_model_loads_and_policies_apply(trained: Path) -> None:
    model = varsearch.load(str(trained))
    assert [h for h, _ in model.spec.scales] == [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
    assert sum(model.spec.tokens) == 680 and model.spec.name == "cifar10"
    found = seeds(model.spec)
    for policy in (found["dense"], found["strong"], found["window"]):
        with varsearch.apply(model, policy) as applied:
            images = applied.images(labels_for(2, 10), seed=0)
        assert images.shape == (2, 3, 32, 32) and images.min() >= 0 and images.max() <= 1


def test_the_model_can_be_judged(trained: Path) -> None:
    evaluator = for_zoo(str(trained), n_images=8, nll_images=8)
    found = {m.metric: m.value for m in evaluator.evaluate(evaluator.dense_policy).measurements}
    assert {"fid", "label_agreement", "nll"} <= found.keys()
    card = zoo.card(str(trained))
    # The next-scale loop on the stored tokens, against the one pass over all scales that the recipe measured with.
    tokens, labels = zoo.held_out(str(trained))
    nll = zoo.load(str(trained)).likelihood(labels, tokens).mean().item()
    assert nll == pytest.approx(card["numbers"]["nll_test"], abs=0.02), "16 of 64 images"
    assert set(card["minutes"]) == set(SHARES) and len(card["scan"]) == 2
    assert zoo.manifest(str(trained)).classifier.kind == "residual"


def run_until(line: str, archive: Path, folder: Path) -> list[str]:
    """See `killed_at`."""
    command = ["-c", WITHOUT_SEARCH, str(archive), str(folder / "cifar10"), "--smoke"]
    return killed_at(line, [*command, "--work", str(folder / "work")], torch.get_num_threads())


def test_a_killed_recipe_goes_on_and_makes_the_same_model(
    trained: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_until("classifier: step 4", archive, tmp_path)
    first = run_until("tokenizer: step 7", archive, tmp_path)
    assert any(line.startswith("classifier: goes on from step ") for line in first)
    second = run_until("transformer: step 3", archive, tmp_path)
    assert second[0].startswith("tokenizer: goes on from step ") and not any("classifier" in line for line in second)
    capsys.readouterr()
    assert main([str(archive), str(tmp_path / "cifar10"), "--smoke", "--work", str(tmp_path / "work")]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("transformer: goes on from step ") and said.out.startswith("{")
    again, once = (zoo.manifest(str(path)).files for path in (tmp_path / "cifar10", trained))
    assert again == once


def test_without_a_cuda_device_it_says_so(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(archive), str(tmp_path / "out"), "--work", str(tmp_path / "work")]) == 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is trained on a CUDA device" in error and "--smoke" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("missing", "cannot read"),
        ("no archive", "is no archive of JPEG files"),
        ("other training", "holds another training"),
        ("no time", "--minutes must be more than 0"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    what: str, reason: str, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, extra = archive, []
    if what == "missing":
        data = tmp_path / "none.npz"
    elif what == "no archive":
        data = tmp_path / "other.npz"
        data.write_bytes(b"PK\x03\x04 cut off")
    elif what == "other training":
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "belongs.txt").write_text("full sizes, data 0123")
    else:
        extra = ["--minutes", "nan"]
    assert main([str(data), str(tmp_path / "out"), "--smoke", "--work", str(tmp_path / "work"), *extra]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    with contextlib.suppress(FileNotFoundError):
        assert list((tmp_path / "out").iterdir()) == []


def test_the_planned_files_are_under_40_mb() -> None:
    with torch.device("meta"):
        networks = (
            (VAR(FULL.transformer), STORED["transformer"]),
            (VQVAE(FULL.tokenizer), STORED["tokenizer"]),
            (build_classifier(FULL.classifier), STORED["classifier"]),
        )
        stored = sum(
            t.numel() * t.element_size() for module, how in networks for t in packed(module.state_dict(), how).values()
        )
    assert stored + OTHERS < 39e6
    assert FULL.tokenizer.image_size == (32, 32) and sum(SHARES.values()) < 0.9
