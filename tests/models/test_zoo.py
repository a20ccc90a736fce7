from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import build_tiny
from varsearch.errors import ModelError
from varsearch.models import zoo
from varsearch.models.manifest import Manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as a user would make it."""
    model = build_tiny()
    files = {}
    for part, module in (("transformer", model.transformer), ("tokenizer", model.tokenizer)):
        save_file(module.state_dict(), tmp_path / f"{part}.safetensors")
        digest = hashlib.sha256((tmp_path / f"{part}.safetensors").read_bytes()).hexdigest()
        files[part] = (f"{part}.safetensors", digest)
    manifest = Manifest(
        name="mine",
        description="test",
        licence="none",
        data="none",
        image_size=(12, 12),
        transformer=model.transformer.config,
        tokenizer=model.tokenizer.config,
        sampling=model.sampling,
        classifier={},
        files=files,
    )
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    return tmp_path


def test_a_folder_loads_as_saved(folder: Path) -> None:
    model, want = zoo.load(str(folder)), build_tiny()
    for name, tensor in model.transformer.state_dict().items():
        assert torch.equal(tensor, want.transformer.state_dict()[name])
    assert model.spec.name == "mine" and len(model.spec.fingerprint) == 64
    assert not any(p.requires_grad for p in model.transformer.parameters())


def test_other_weights_have_another_fingerprint(folder: Path) -> None:
    first = zoo.load(str(folder)).spec.fingerprint
    m = json.loads((folder / "manifest.json").read_text())
    m["files"]["tokenizer"][1] = "0" * 64
    assert Manifest.model_validate(m).fingerprint() != first


@pytest.mark.parametrize("damage", ["truncated", "tampered"])
def test_damaged_weights_are_refused(folder: Path, damage: str) -> None:
    path = folder / "transformer.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelError, match="is not the file the manifest names"):
        zoo.load(str(folder))


def rewrite(folder: Path, state: dict[str, torch.Tensor], part: str = "transformer") -> None:
    path = folder / f"{part}.safetensors"
    save_file(state, path)
    m = json.loads((folder / "manifest.json").read_text())
    m["files"][part] = (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    (folder / "manifest.json").write_text(json.dumps(m))
    zoo.manifest.cache_clear()


def test_another_layout_is_refused_by_its_first_difference(folder: Path) -> None:
    state = build_tiny().transformer.state_dict()
    del state["head.bias"]
    state["word_embed.weight"] = torch.zeros(3, 3)
    rewrite(folder, state)
    with pytest.raises(
        ModelError, match=r"2 tensors differ from the layout, first head.bias: expected \(32,\), got none"
    ):
        zoo.load(str(folder))


def test_a_garbage_safetensors_file_is_refused(folder: Path) -> None:
    rewrite(folder, {"x": torch.zeros(1)})
    path = folder / "transformer.safetensors"
    path.write_bytes(b"\xff" * 64)
    m = json.loads((folder / "manifest.json").read_text())
    m["files"]["transformer"][1] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(m))
    zoo.manifest.cache_clear()
    with pytest.raises(ModelError, match="is not a safetensors file"):
        zoo.load(str(folder))


def test_a_checkpoint_alone_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({}, path)
    with pytest.raises(ModelError, match="without its tokenizer"):
        zoo.load(str(path))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="unknown model 'imagenet'"):
        zoo.load("imagenet")


def test_a_manifest_with_an_unknown_field_is_refused(folder: Path) -> None:
    m = json.loads((folder / "manifest.json").read_text()) | {"colour": 1}
    (folder / "manifest.json").write_text(json.dumps(m))
    with pytest.raises(ModelError, match="colour: unknown field"):
        zoo.load(str(folder))


def test_a_file_outside_the_folder_is_refused(folder: Path) -> None:
    m = json.loads((folder / "manifest.json").read_text())
    m["files"]["transformer"][0] = "../transformer.safetensors"
    (folder / "manifest.json").write_text(json.dumps(m))
    zoo.manifest.cache_clear()
    with pytest.raises(ModelError, match=r"files\.transformer\.0: String should match pattern"):
        zoo.load(str(folder))


MANIFESTS = {
    "no heads": (("transformer", "heads"), 0, "transformer.var.heads"),
    "heads that do not divide": (("transformer", "heads"), 3, "3 heads do not divide a width of 64"),
    "no layers": (("transformer", "depth"), 0, "transformer.var.depth"),
    "negative width": (("transformer", "width"), -8, "transformer.var.width"),
    "more than memory": (("transformer", "width"), 2**20, "tensors differ from the layout"),
    "no scales": (("transformer", "scales"), [], "transformer.var.scales"),
    "other scales": (("transformer", "scales"), [[1, 1]], "scales of the transformer is"),
    "no channels": (("tokenizer", "ch"), 0, "tokenizer.vq.ch"),
    "no levels": (("tokenizer", "ch_mult"), [], "tokenizer.vq.ch_mult"),
    "no network": (("tokenizer", "norm_groups"), 7, "no network has the manifest's sizes"),
    "too large to count": (("tokenizer", "ch"), 2**20, "tensors differ from|no network has"),
    "another image": (("image_size",), [-1, 0], "image_size.0"),
    "a larger image": (("image_size",), [24, 24], "the tokenizer's images are"),
    "negative guidance": (("sampling", "guidance"), -1, "sampling.guidance"),
    "unknown classifier": (("classifier", "colour"), 1, "classifier.colour"),
    "negative classifier": (("classifier", "width"), -1, "classifier.width"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_of_no_model_are_refused_in_one_line(folder: Path, name: str) -> None:
    (*place, last), value, reason = MANIFESTS[name]
    m = part = json.loads((folder / "manifest.json").read_text())
    for key in place:
        part = part[key]
    part[last] = value
    (folder / "manifest.json").write_text(json.dumps(m))
    with pytest.raises(ModelError, match=reason) as caught:
        zoo.load(str(folder))
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ModelError, match=r"manifest\.json: Invalid JSON"):
        zoo.load(str(folder))


def test_a_path_that_cannot_be_looked_up() -> None:
    with pytest.raises(ModelError, match=r"cannot read model .*: File name too long"):
        zoo.load("x" * 5000)


HELD_OUT = {
    "other names": {"x": torch.zeros(4)},
    "no labels": {"tokens": torch.zeros(4, 66)},
    "a token too many": {"tokens": torch.zeros(4, 67), "labels": torch.zeros(4)},
    "a label too many": {"tokens": torch.zeros(4, 66), "labels": torch.zeros(5)},
    "a single label": {"tokens": torch.zeros(4, 66), "labels": torch.tensor(1)},
    "no such code": {"tokens": torch.full((4, 66), 32), "labels": torch.zeros(4)},
    "no such class": {"tokens": torch.zeros(4, 66), "labels": torch.full((4,), -1)},
}


@pytest.mark.parametrize("name", HELD_OUT)
def test_held_out_tokens_of_another_model_are_refused(folder: Path, name: str) -> None:
    rewrite(folder, HELD_OUT[name], "held_out")
    with pytest.raises(ModelError, match=r"held_out of .*: expected tokens"):
        zoo.held_out(str(folder))
