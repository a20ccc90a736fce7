from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import build_tiny
from varsearch.errors import ModelError
from varsearch.models import storage, zoo
from varsearch.models.classifier import ClassifierConfig, build_classifier
from varsearch.models.storage import ROW_SCALE, packed, pieces, read_pieces, unpacked, write_pieces


def test_int8_rows_are_rounded_to_the_nearest_of_their_levels() -> None:
    state = build_tiny().transformer.state_dict()
    stored = packed(state, "int8")
    found = unpacked(stored)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        if name.endswith("weight") and tensor.ndim > 1:
            step = tensor.abs().amax(1, keepdim=True) / 127
            assert stored[name].dtype == torch.int8 and stored[name + ROW_SCALE].shape == (len(tensor),)
            assert ((found[name] - tensor).abs() <= step * 0.5001).all()
        elif tensor.is_floating_point() and tensor.ndim > 1:
            assert torch.equal(found[name], tensor.bfloat16().float()), "minus infinity in masks included"
        else:
            assert torch.equal(found[name], tensor)
    assert not any(t.dtype == torch.bfloat16 for t in found.values())


def test_rows_of_zeros_and_convolutions_survive() -> None:
    weight = torch.randn(3, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    weight[1] = 0
    found = unpacked(packed({"conv.weight": weight}, "int8"))["conv.weight"]
    assert torch.equal(found[1], torch.zeros(2, 3, 3)) and (found - weight).abs().max() < weight.abs().max() / 250


def test_fp32_is_stored_as_it_is() -> None:
    state = build_tiny().tokenizer.state_dict()
    for name, tensor in unpacked(packed(state, "float32")).items():
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize(
    ("tensor", "scale"),
    [
        (torch.zeros(3, 2, dtype=torch.int8), torch.ones(2)),
        (torch.zeros(3, dtype=torch.int8), torch.ones(3)),
        (torch.zeros(3, 2), torch.ones(3)),
    ],
)
def test_scales_that_do_not_fit_are_refused(tensor: torch.Tensor, scale: torch.Tensor) -> None:
    with pytest.raises(ModelError, match=r"x\.weight: expected int8 rows with one scale each, got"):
        unpacked({"x.weight": tensor, "x.weight" + ROW_SCALE: scale})


def test_large_files_are_kept_as_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PIECE_BYTES", 10)
    path, content = tmp_path / "a.safetensors", bytes(range(105))
    write_pieces(path, content)
    assert [p.name for p in pieces(path)] == [f"a.safetensors.{i}" for i in range(11)]
    assert read_pieces(path) == content and not path.exists()
    write_pieces(path, content[:25])
    assert read_pieces(path) == content[:25] and len(pieces(path)) == 3
    write_pieces(path, content[:10])
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"] and read_pieces(path) == content[:10]
    with pytest.raises(FileNotFoundError):
        read_pieces(tmp_path / "none.safetensors")


def test_a_model_loads_from_pieces_and_misses_a_lost_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist").mkdir()
    for source in (zoo.WEIGHTS / "mnist").iterdir():
        (tmp_path / "mnist" / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(storage, "PIECE_BYTES", 3_000_000)
    weights = tmp_path / "mnist" / "transformer.safetensors"
    write_pieces(weights, weights.read_bytes())
    assert not weights.exists() and len(pieces(weights)) == 3
    model = str(tmp_path / "mnist")
    assert zoo.load(model).spec.fingerprint == zoo.manifest("mnist").fingerprint()
    assert zoo.stored_bytes(model) == zoo.stored_bytes("mnist")
    pieces(weights)[1].unlink()
    with pytest.raises(ModelError, match="is not the file the manifest names"):
        zoo.load(model)


def test_manifests_without_a_kind_name_the_plain_classifier() -> None:
    m = zoo.manifest("mnist")
    assert m.classifier == ClassifierConfig("plain", channels=1, width=32, num_features=64, classes=10)
    assert m.fingerprint().startswith("11e1a7e3ff66f769"), "policies are exported for exactly these weights"


def test_the_residual_classifier_tells_features_from_labels() -> None:
    torch.manual_seed(0)
    network = build_classifier(ClassifierConfig("residual", channels=3, width=4, num_features=6, classes=5)).eval()
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    features = network.features(images)
    assert features.shape == (3, 6) and network.num_features == 6 and network.channels == 3
    assert torch.equal(network(images), network.logits(features)) and network(images).shape == (3, 5)
    # Its pairs only add to what they read: without them the features are others.
    for pair in (network.get_submodule("pair_1"), network.get_submodule("pair_3")):
        torch.nn.init.zeros_(pair.get_parameter("1.0.weight"))
        torch.nn.init.constant_(pair.get_parameter("1.1.bias"), -1.0)
    silent = network.features(images)
    assert silent.isfinite().all() and not torch.equal(silent, features)


def test_a_model_that_was_never_trained_says_so() -> None:
    with pytest.raises(ModelError, match=r"model cifar10 has no weights yet: .*recipes\.cifar10"):
        zoo.load("cifar10")
