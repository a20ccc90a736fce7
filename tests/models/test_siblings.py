"""Models that share a tokenizer: how they are found, what is refused, and a policy's way from file to images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.accel.techniques import DENSE
from tests.accel.test_apply import LABELS, weights_hash
from tests.conftest import build_small, build_tiny
from tests.test_policy_file import make
from varsearch.accel import apply
from varsearch.errors import ModelError, PolicyError
from varsearch.evaluators.trace import trace
from varsearch.evaluators.workload import cast, zoo_skeleton
from varsearch.models import zoo
from varsearch.models.image_model import ImageModel
from varsearch.models.manifest import Manifest
from varsearch.policy import Policy
from varsearch.policy_file import Envelope, PolicyFile
from varsearch.space.presets.code import code
from varsearch.target import Target

CPU = Target(device="cpu", dtype="float32", batch_size=4)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """`large` with all its files, and beside it `little` with a transformer only."""
    model, small = build_tiny(), build_small()
    for name, transformer in (("large", model.transformer), ("little", small.transformer)):
        folder = tmp_path / name
        folder.mkdir()
        save_file(transformer.state_dict(), folder / "transformer.safetensors")
        save_file(model.tokenizer.state_dict(), tmp_path / "large" / "tokenizer.safetensors")
        manifest = Manifest(
            name="any", description="", licence="", data="", image_size=(12, 12), transformer=transformer.config,
            tokenizer=model.tokenizer.config, sampling=model.sampling, classifier={},
            files={
                "transformer": ("transformer.safetensors", digest(folder / "transformer.safetensors")),
                "tokenizer": ("../large/tokenizer.safetensors", digest(tmp_path / "large" / "tokenizer.safetensors")),
            },
        )  # fmt: skip
        (folder / "manifest.json").write_text(manifest.model_dump_json())
    return tmp_path


def policy_of(folders: Path) -> Policy:
    (small,) = zoo.siblings(str(folders / "large"))
    return code(zoo.load(str(folders / "large")).spec, small)


def altered(folders: Path, place: tuple[str, ...], value: object) -> None:
    """Another value in the manifest of `little`."""
    path = folders / "little" / "manifest.json"
    m = part = json.loads(path.read_text())
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(m))
    zoo.manifest.cache_clear()


def test_smaller_models_of_the_same_tokens_are_siblings(folders: Path) -> None:
    (found,) = zoo.siblings(str(folders / "large"))
    assert (found.name, found.n_layers, found.n_heads) == ("little", 2, 2)
    assert found.fingerprint == zoo.manifest(str(folders / "little")).fingerprint()
    assert zoo.siblings(str(folders / "little")) == []
    (folders / "broken").mkdir()
    (folders / "broken" / "manifest.json").write_text("{")
    assert zoo.siblings(str(folders / "large")) == [found]


def test_a_policy_file_finds_its_refiner_beside_the_model(folders: Path) -> None:
    model = zoo.load(str(folders / "large"))
    policy, before = policy_of(folders), weights_hash(model)
    envelope = Envelope(image_size=(12, 12), batch_size=4, guidance=1.5, top_k=0, top_p=0.0)
    file = PolicyFile.model_validate(
        make().model_dump() | {"model": model.spec, "policy": policy, "target": CPU, "envelope": envelope}
    )
    file.write(folders / "p.json")
    tiny = build_tiny()
    with apply(model, PolicyFile.read(folders / "p.json")) as found, apply(model, DENSE) as dense:
        images = found.images(LABELS, seed=1)
        assert not torch.equal(images, dense.images(LABELS, seed=1))
    expected = policy.refiner.model_copy(update={"fingerprint": build_small().spec.fingerprint})
    with apply(tiny, policy.model_copy(update={"refiner": expected})) as wanted:
        assert torch.equal(images, wanted.images(LABELS, seed=1))
    assert weights_hash(model) == before and model.refiner is None


def test_skeletons_and_casts_bring_their_siblings(folders: Path) -> None:
    name, policy = str(folders / "large"), policy_of(folders)
    bones, real = zoo_skeleton(name), zoo.load(name)
    assert bones.sibling("little").transformer.head.weight.is_meta
    assert trace(bones, policy, CPU) == trace(real, policy, CPU)
    half = cast(real, "cpu", torch.float16)
    with apply(half, policy) as fast:
        assert fast.model.refiner.transformer.head.weight.dtype == torch.float16


REFUSED: dict[str, tuple[tuple[str, ...], object, str]] = {
    "another tokenizer": (("files", "tokenizer"), ["t.safetensors", "0" * 64], "model little has another tokenizer"),
    "its weights, configured otherwise": (("tokenizer", "quant_resi"), 0.25, "model little has another tokenizer"),
    "other classes": (("transformer", "classes"), 11, "model little has 11 classes, any 10"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_of_other_tokens_are_refused(folders: Path, name: str) -> None:
    policy = policy_of(folders)
    place, value, reason = REFUSED[name]
    altered(folders, place, value)
    assert zoo.siblings(str(folders / "large")) == []
    refuses(zoo.load(str(folders / "large")), policy, ModelError, reason)


def test_other_weights_and_no_weights_are_refused(folders: Path) -> None:
    model, policy = zoo.load(str(folders / "large")), policy_of(folders)
    other = policy.refiner.model_copy(update={"fingerprint": "0" * 64})
    refuses(model, policy.model_copy(update={"refiner": other}), PolicyError, "other weights than the policy's")
    unknown = policy.refiner.model_copy(update={"model": "tiny"})
    refuses(model, policy.model_copy(update={"refiner": unknown}), ModelError, "unknown model")


def refuses(model: ImageModel, policy: Policy, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason) as caught, apply(model, policy):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"garbage"])
def test_a_shared_file_is_checked_like_any_other(folders: Path, damage: bytes) -> None:
    (folders / "large" / "tokenizer.safetensors").write_bytes(damage)
    with pytest.raises(ModelError, match="is not the file the manifest names"):
        zoo.load(str(folders / "little"))


@pytest.mark.parametrize(
    "path", ["../../x/t.safetensors", "/t.safetensors", "../t.safetensors", "../a/b/t.safetensors"]
)
def test_files_elsewhere_are_refused(folders: Path, path: str) -> None:
    altered(folders, ("files", "tokenizer"), [path, "0" * 64])
    with pytest.raises(ModelError, match=r"files\.tokenizer\.0: String should match pattern"):
        zoo.load(str(folders / "little"))
