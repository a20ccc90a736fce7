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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as a user would make it."""
    model = build_tiny()
    files = {}
    for part, module in (("transformer", model.transformer), ("tokenizer", model.tokenizer)):
        save_file(module.state_dict(), tmp_path / f"{part}.safetensors")
        digest = hashlib.sha256((tmp_path / f"{part}.safetensors").read_bytes()).hexdigest()
        files[part] = (f"{part}.safetensors", digest)
    manifest = zoo.Manifest(
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
    assert zoo.Manifest.model_validate(m).fingerprint() != first


@pytest.mark.parametrize("damage", ["truncated", "tampered"])
def test_damaged_weights_are_refused(folder: Path, damage: str) -> None:
    path = folder / "transformer.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelError, match="is not the file the manifest names"):
        zoo.load(str(folder))


def rewrite(folder: Path, state: dict[str, torch.Tensor]) -> None:
    path = folder / "transformer.safetensors"
    save_file(state, path)
    m = json.loads((folder / "manifest.json").read_text())
    m["files"]["transformer"][1] = hashlib.sha256(path.read_bytes()).hexdigest()
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


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({}, path)
    with pytest.raises(ModelError, match="pickle checkpoint"):
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
