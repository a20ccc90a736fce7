from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from varsearch.errors import EvaluationError, ModelError, UsageError
from varsearch.evaluators.extractors import classifier_extractor, inception_extractor, weights_digest
from varsearch.models.classifier import Classifier, ClassifierConfig, PlainClassifier


@pytest.fixture
def classifier() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PlainClassifier(ClassifierConfig(width=4, num_features=8)).eval()


def images(n: int, channels: int, size: int = 32) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_classifier_features_are_of_images_in_its_own_range(classifier: Classifier) -> None:
    extractor = classifier_extractor(classifier)
    found = extractor.features(images(3, 1))
    with torch.no_grad():
        torch.testing.assert_close(found, classifier.features(images(3, 1) * 2 - 1))
        assert extractor.head is not None
        torch.testing.assert_close(extractor.head(found), classifier(images(3, 1) * 2 - 1))
    assert found.shape == (3, extractor.num_features) and found.dtype == torch.float32


def test_half_precision_images_are_taken(classifier: Classifier) -> None:
    assert classifier_extractor(classifier).features(images(2, 1).half()).dtype == torch.float32


def test_the_identity_follows_the_weights(classifier: Classifier) -> None:
    before = classifier_extractor(classifier).identity
    assert before == classifier_extractor(classifier).identity
    with torch.no_grad():
        classifier.norms[0].get_buffer("running_mean")[0] += 1e-3
    after = classifier_extractor(classifier).identity
    assert before != after and before.startswith("classifier@") and len(before) == len("classifier@") + 16


def test_the_digest_tells_names_and_shapes_apart() -> None:
    class Holder(nn.Module):
        def __init__(self, **tensors: Tensor) -> None:
            super().__init__()
            for name, tensor in tensors.items():
                self.register_buffer(name, tensor)

    flat = torch.arange(6.0)
    holders = (Holder(a=flat), Holder(b=flat), Holder(a=flat.view(2, 3)), Holder(a=flat.view(torch.int32)))
    assert len({weights_digest(holder) for holder in holders}) == 4


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 28, 28)])
def test_images_of_another_shape_are_refused(classifier: Classifier, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"takes images of shape \(1, 32, 32\), got"):
        classifier_extractor(classifier).features(torch.zeros(shape))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_images_that_are_no_numbers_are_refused(classifier: Classifier, value: float) -> None:
    broken = images(4, 1)
    broken[2, 0, 5, 5] = value
    with pytest.raises(EvaluationError, match="1 of 4 images hold NaN or infinity"):
        classifier_extractor(classifier).features(broken)


def test_features_that_are_no_numbers_are_refused(classifier: Classifier) -> None:
    with torch.no_grad():
        classifier.embed.bias[0] = torch.nan
    with pytest.raises(EvaluationError, match="4 of 4 feature vectors hold NaN or infinity"):
        classifier_extractor(classifier).features(images(4, 1))


class StandIn(nn.Module):
    """Constructor and call of torch-fidelity's network, around one linear layer."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: Any) -> None:
        super().__init__()
        assert features_list == ["2048"]
        self.fc = nn.Linear(3, 2048)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        return (self.fc(x.float().mean((2, 3))),)


@pytest.fixture
def torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.__dict__["FeatureExtractorInceptionV3"] = StandIn
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    # Whole numbers: products with bytes and their sums are exact, in any order.
    weight = torch.randint(-8, 9, (2048, 3), generator=generator).float()
    state = {"fc.weight": weight, "fc.bias": torch.zeros(2048)}
    torch.save(state, tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


@pytest.mark.usefixtures("torch_fidelity")
def test_inception_sees_rounded_rgb(weights: Path) -> None:
    extractor = inception_extractor(weights)
    assert extractor.num_features == 2048 and extractor.head is None
    grey = torch.arange(256.0).view(1, 1, 16, 16) / 255
    # 8-bit images survive the way to [0, 1] and back, so a reference built from files matches them exactly.
    bytes_mean = torch.arange(256.0).mean().expand(1, 3)
    weight = torch.load(weights, weights_only=True)["fc.weight"]
    torch.testing.assert_close(extractor.features(grey), bytes_mean @ weight.T)
    torch.testing.assert_close(extractor.features(grey), extractor.features(grey.repeat(1, 3, 1, 1)))
    # 254.6 rounds up to 255; the sliver above 1 that some decoders leave is cut off.
    for white in (254.6 / 255, 1.01):
        found = extractor.features(torch.full((1, 1, 4, 4), white))
        torch.testing.assert_close(found, torch.full((1, 3), 255.0) @ weight.T)


@pytest.mark.usefixtures("torch_fidelity")
def test_inception_weights_of_another_layout_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="not the weights of torch-fidelity's Inception-v3"):
        inception_extractor(tmp_path / "other.pth")


@pytest.mark.usefixtures("torch_fidelity")
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"plain text"])
def test_damaged_inception_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "damaged.pth").write_bytes(content)
    with pytest.raises(ModelError, match="does not hold plain tensors"):
        inception_extractor(tmp_path / "damaged.pth")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.usefixtures("torch_fidelity")
def test_inception_weights_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ModelError, match="does not hold plain tensors"):
        inception_extractor(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


def test_missing_inception_weights_say_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read Inception weights .* download weights-inception"):
        inception_extractor(tmp_path / "none.pth")


def test_inception_without_torch_fidelity_says_what_to_install(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UsageError, match=r"pip install 'varsearch\[inception\]'"):
        inception_extractor(weights)
