"""Published models by name: weights from a folder, the hub or random numbers, and prompts from a file."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tests.accel.families import BITS, infinity
from tests.conftest import SCALES, TOKENIZER, build_tiny
from tests.exact import same_images
from varsearch.errors import ModelError, UsageError
from varsearch.evaluators.workload import cast
from varsearch.models import registry, zoo
from varsearch.models.families import TransformerConfig
from varsearch.models.image_model import ImageModel, SamplingDefaults
from varsearch.models.infinity.text import save_prompts
from varsearch.models.infinity.tokenizer import BitTokenizerConfig
from varsearch.models.overview import held_numbers, overview
from varsearch.models.published import PUBLISHED, Published
from varsearch.models.sampling import PairedSampler
from varsearch.models.seams import DenseKV, Plan
from varsearch.models.vqvae import TokenizerConfig
from varsearch.target import default_target, find_device

REVISION = "0123456789abcdef0123456789abcdef01234567"


def publish(transformer: TransformerConfig, tokenizer: TokenizerConfig | BitTokenizerConfig) -> Published:
    sampling = SamplingDefaults(guidance=1.5)
    return Published(transformer, tokenizer, sampling, "tiny", "MIT", "somewhere", "transformer_tiny", "tokenizer_tiny")


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`var-tiny` and `infinity-tiny` are published for the time of a test."""
    for name, model in (("var-tiny", build_tiny()), ("infinity-tiny", infinity())):
        monkeypatch.setitem(PUBLISHED, name, publish(model.transformer.config, model.tokenizer.config))
    yield
    for cached in (zoo.manifest, registry.folder):
        cached.cache_clear()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder as a user has it who downloaded a transformer as .pth and converted the tokenizer."""
    model = build_tiny(seed=3)
    torch.save(model.transformer.state_dict(), tmp_path / "transformer_tiny.pth")
    save_file(model.tokenizer.state_dict(), tmp_path / "tokenizer_tiny.safetensors")
    return tmp_path


def draw(model: ImageModel) -> torch.Tensor:
    return model.generate(torch.tensor([1, 4]), PairedSampler(0, [0, 1]))


def test_a_folder_of_published_files(weights: Path) -> None:
    model = zoo.load(f"var-tiny@{weights}")
    assert torch.equal(draw(model), draw(build_tiny(seed=3)))
    assert model.spec.name == "var-tiny" and len(model.spec.fingerprint) == 64
    half = zoo.load(f"var-tiny@{weights}", dtype="bfloat16")
    kinds = {t.dtype for t in half.transformer.parameters()}
    assert kinds == {torch.bfloat16, torch.float32} and draw(half).isfinite().all()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda state: state | {"extra.weight": torch.ones(2)}, r"extra\.weight: expected none, got \(2,\)"),
        (lambda state: {f"module.{name}": t for name, t in state.items()}, r"blocks\.0.*got none; .*module\."),
        (lambda state: state | {"head.weight": state["head.weight"][:-1]}, r"head\.weight: expected .*32.*got .*31"),
        (lambda state: {"model": state}, "save the network's state dict alone"),
    ],
)
def test_foreign_checkpoints_are_refused(
    weights: Path, spoil: Callable[[dict[str, torch.Tensor]], object], reason: str
) -> None:
    torch.save(spoil(build_tiny().transformer.state_dict()), weights / "transformer_tiny.pth")
    with pytest.raises(ModelError, match=reason):
        zoo.load(f"var-tiny@{weights}")


def test_a_truncated_checkpoint_is_refused(weights: Path) -> None:
    path = weights / "transformer_tiny.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"transformer_tiny\.pth is not a file of tensors alone"):
        zoo.load(f"var-tiny@{weights}")


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    for model, reason in (
        ("var-tiny", "do not ship with varsearch: give --weights random, a folder"),
        (f"var-tiny@{tmp_path}", "holds no transformer_tiny in any of the formats"),
        (
            f"var-tiny@{tmp_path / 'nowhere'}",
            "no folder .*nowhere: expected one that holds transformer_tiny and tokenizer",
        ),
        ("var-tiny@hf:me/mine@main", "the 40 digits of a commit"),
    ):
        with pytest.raises(ModelError, match=reason):
            zoo.load(model)


def test_random_weights_are_the_same_every_time() -> None:
    models = [zoo.load("var-tiny@random") for _ in range(2)]
    assert torch.equal(draw(models[0]), draw(models[1]))
    assert zoo.manifest("var-tiny@random").fingerprint() == models[0].spec.fingerprint
    assert zoo.load("infinity-tiny@random").spec.classes == registry.RANDOM_PROMPTS
    with pytest.raises(ModelError, match="has no classifier"):
        zoo.load_classifier("var-tiny@random")


def test_weights_from_the_hub(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in keeps files as the hub's cache does: under their sha256, with links by their names."""
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    for path in (weights / "transformer_tiny.pth", weights / "tokenizer_tiny.safetensors"):
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(blob)
    asked: list[tuple[object, ...]] = []

    def download(repository: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, *allow_patterns))
        return str(snapshot)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    name = f"var-tiny@hf:me/mine@{REVISION}"
    assert torch.equal(draw(zoo.load(name)), draw(build_tiny(seed=3)))
    files = ("transformer_tiny.*", "transformer_tiny/*", "tokenizer_tiny.*", "tokenizer_tiny/*")
    assert asked == [("me/mine", REVISION, *files)]
    for cached in (zoo.manifest, registry.folder):
        cached.cache_clear()
    damaged = (snapshot / "transformer_tiny.pth").resolve()
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelError, match=r"transformer_tiny\.pth is damaged"):
        zoo.load(name)


def test_the_hub_fails_or_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no network\nand more")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=offline))
    with pytest.raises(ModelError, match=r"no network$"):
        zoo.load(f"var-tiny@hf:me/mine@{REVISION}")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"varsearch\[hub\]"):
        zoo.load(f"var-tiny@hf:me/mine@{REVISION}")


@pytest.mark.numerics
def test_prompts_from_a_file(tmp_path: Path) -> None:
    features = [torch.randn(n, 128) for n in (3, 6)]
    save_prompts(tmp_path / "p.safetensors", features)
    name = registry.join("infinity-tiny", "random", str(tmp_path / "p.safetensors"))
    model = zoo.load(name)
    assert model.spec.classes == 2 and model.prompts is not None
    model = cast(model, "cpu", torch.float64)
    images = model.generate(torch.tensor([0, 1]), PairedSampler(0, [0, 1]))
    swapped = model.generate(torch.tensor([1, 0]), PairedSampler(0, [1, 0]))
    same_images(images, swapped.flip(0))
    save_prompts(tmp_path / "p.safetensors", [torch.randn(3, 64)])
    zoo.manifest.cache_clear()
    with pytest.raises(ModelError, match="of 64 channels, expected 1 of 128"):
        zoo.load(name)


def test_names() -> None:
    assert registry.join("mnist", None, None) == "mnist" and registry.parse("mnist") is None
    assert registry.join("infinity-2b", "random", "a#b.safetensors") == "infinity-2b@random#a#b.safetensors"
    assert registry.parse("infinity-2b@random#a#b.safetensors") == ("infinity-2b", "random", "a#b.safetensors")
    assert registry.join("var-d16@random", None, None) == "var-d16@random"
    assert registry.parse("infinity-2b:1.5:0.60M@random") == ("infinity-2b:1.5:0.60M", "random", "")
    with pytest.raises(UsageError, match="cannot be told from one with prompts"):
        registry.join("var-d16", "a#b", None)
    with pytest.raises(UsageError, match="are for published models"):
        registry.join("mnist", "random", None)
    with pytest.raises(UsageError, match="reads classes, not prompts"):
        registry.join("var-d16", "random", "p.safetensors")


def test_siblings_share_tokenizer_and_place() -> None:
    assert [spec.name for spec in zoo.siblings("var-d24@random")] == ["var-d16", "var-d20"]
    assert [spec.name for spec in zoo.siblings("mvar-d24@random")] == []
    assert [spec.name for spec in zoo.siblings("infinity-2b@random")] == []  # 125M has another schedule
    with pytest.raises(ModelError, match="another tokenizer"):
        zoo.load_sibling("var-d36@random", "var-d16")


def test_memory_of_the_overview_is_what_the_caches_hold() -> None:
    for name, model in (("var-tiny@random", build_tiny()), ("infinity-tiny@random", infinity())):
        caches: list[DenseKV] = []

        def new_cache(caches: list[DenseKV] = caches) -> DenseKV:
            caches.append(DenseKV())
            return caches[-1]

        plan = Plan.dense(model.spec.n_layers, model.spec.tokens)
        watched = Plan(plan.scales, (new_cache,) * model.spec.n_layers)
        model.generate(torch.tensor([0]), PairedSampler(0, [0]), watched)
        assert sum(cache.nbytes for cache in caches) == 4 * held_numbers(zoo.manifest(name))
    found = overview("var-d16")
    assert found.parameters == 310_283_520 and found.memory[8] > found.memory[1] and not found.shipped


def test_targets_suit_the_model() -> None:
    gpu, spec = find_device("4090"), overview("infinity-2b").spec
    assert default_target(gpu, spec=spec).model_dump() == {"device": "4090", "dtype": "bfloat16", "batch_size": 1}
    assert default_target(gpu, spec=overview("var-d16").spec).batch_size == 16
    assert default_target(gpu, spec=overview("mnist").spec).batch_size == 256
    assert default_target(gpu, 2, "float32", spec).dtype == "float32"
    assert BITS.scales == SCALES == TOKENIZER.scales


def test_other_aspect_ratios() -> None:
    tall = zoo.manifest("infinity-2b:1.5:0.25M@random")
    assert tall.image_size[0] > tall.image_size[1] and len(tall.spec().scales) == 10
    assert zoo.manifest("infinity-2b:0.5@random").spec().scales[-1] == (45, 90)
    for name, reason in (
        ("infinity-2b:1.1", "no schedule for aspect ratio 1.1"),
        ("infinity-2b:wide", "expected height over width"),
        ("infinity-2b:1.5:9M", "no schedule"),
        ("var-d16:1.5", "has one schedule"),
    ):
        with pytest.raises(ModelError, match=reason):
            zoo.manifest(f"{name}@random")


def test_published_sampling() -> None:
    found = {name: PUBLISHED[name].sampling for name in ("var-d16", "mvar-d24", "infinity-2b", "infinity-8b")}
    assert found["var-d16"] == found["mvar-d24"] == SamplingDefaults(1.5, 900, 0.96)
    assert found["infinity-2b"] == SamplingDefaults(4.0, 900, 0.97, 0.5)
    assert found["infinity-8b"] == SamplingDefaults(4.0, 900, 0.97, 1.0)


def test_evidence_belongs_to_the_prompts_too(tmp_path: Path) -> None:
    specs = []
    for length in (2, 5):
        path = tmp_path / f"{length}.safetensors"
        save_prompts(path, [torch.randn(length, 128)])
        specs.append(zoo.manifest(f"infinity-tiny@random#{path}").spec())
    assert specs[0].fingerprint == specs[1].fingerprint, "policies belong to the weights"
    assert len({spec.identity for spec in specs}) == 2
    with pytest.raises(ModelError, match="reads classes, not prompts"):
        zoo.manifest(f"var-tiny@random#{tmp_path / '2.safetensors'}")


def test_a_tensor_with_two_names_may_be_there_once(tmp_path: Path) -> None:
    model = infinity()
    save_file(model.transformer.state_dict(), tmp_path / "transformer_tiny.safetensors")
    state = model.tokenizer.state_dict()
    del state["quantizer.lfq.mask"]
    save_file(state, tmp_path / "tokenizer_tiny.safetensors")
    assert zoo.load(f"infinity-tiny@{tmp_path}").tokenizer.state_dict().keys() == model.tokenizer.state_dict().keys()


def test_weights_that_no_number_format_holds(weights: Path) -> None:
    state = build_tiny().transformer.state_dict()
    torch.save(state | {"head.bias": torch.full_like(state["head.bias"], 7e4)}, weights / "transformer_tiny.pth")
    assert zoo.load(f"var-tiny@{weights}").spec.n_layers == 3
    with pytest.raises(ModelError, match=r"tiny\.pth: 1 tensors are not finite in float16, first head\.bias"):
        zoo.load(f"var-tiny@{weights}", dtype="float16")


def test_files_of_old_pytorch(weights: Path) -> None:
    state = build_tiny(seed=3).transformer.state_dict()
    torch.save(state, weights / "transformer_tiny.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(draw(zoo.load(f"var-tiny@{weights}")), draw(build_tiny(seed=3)))
