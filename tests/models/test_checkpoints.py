from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from varsearch.errors import ModelError
from varsearch.models.checkpoints import load, read
from varsearch.models.generation import GuidanceSchedule, generate
from varsearch.models.mamba import MambaConfig
from varsearch.models.mvar import MVAR, MVARConfig
from varsearch.models.sampling import GreedySampler
from varsearch.models.seams import Plan
from varsearch.models.vqvae import VQVAE, TokenizerConfig

CONFIG = MVARConfig(
    ((1, 1), (2, 2), (3, 3)), depth=2, width=32, heads=2, classes=4, vocab=16, z_channels=4,
    mamba=MambaConfig(state=8, head_dim=16),
)  # fmt: skip
State = dict[str, Tensor]


def make() -> MVAR:
    return MVAR(CONFIG)


def weights() -> State:
    torch.manual_seed(0)
    return {n: torch.randn_like(t) * 0.1 if t.is_floating_point() else t for n, t in make().state_dict().items()}


def save_pickle(state: State, folder: Path) -> Path:
    torch.save(state, folder / "model.pth")
    return folder / "model.pth"


def save_safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


def save_shards(state: State, folder: Path, suffix: str = "safetensors") -> Path:
    names = sorted(state)
    shards = {f"model-{i}-of-2.{suffix}": names[i - 1 :: 2] for i in (1, 2)}
    for file, held in shards.items():
        part = {name: state[name] for name in held}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
    index = folder / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, held in shards.items() for name in held}}))
    return index


SAVERS: dict[str, Callable[[State, Path], Path]] = {
    "pickle": save_pickle,
    "safetensors": save_safetensors,
    "shards": save_shards,
    "pickled shards": lambda state, folder: save_shards(state, folder, "bin"),
}


@pytest.mark.parametrize("form", SAVERS)
@pytest.mark.parametrize("by_folder", [False, True])
def test_every_form_loads_as_saved(form: str, by_folder: bool, tmp_path: Path) -> None:
    path = SAVERS[form](weights(), tmp_path)
    model = load(make, tmp_path if by_folder else path)
    state = model.state_dict()
    assert all(torch.equal(state[name], t) for name, t in weights().items())
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_precision_and_what_stays_fp32(dtype: str, tmp_path: Path) -> None:
    model = load(make, save_safetensors(weights(), tmp_path), dtype)
    for name, t in model.state_dict().items():
        if not t.is_floating_point():
            want = weights()[name]
        else:
            stays = name.endswith((".scale_mul_1H11", ".A_log", ".dt_bias", ".D"))
            want = weights()[name].to(torch.float32 if stays else getattr(torch, dtype))
        assert t.dtype == want.dtype and torch.equal(t, want), name
    vae = VQVAE(TokenizerConfig(CONFIG.scales, 16, 4, ch=8, ch_mult=(1, 2), res_blocks=1, norm_groups=4))
    plan = Plan.dense(CONFIG.depth, [h * w for h, w in CONFIG.scales])
    guidance = GuidanceSchedule.ramp(len(plan.scales), 1.5)
    vae.to(getattr(torch, dtype))
    f_hat = generate(model, vae, torch.tensor([1]), plan=plan, guidance=guidance, sampler=GreedySampler())
    assert f_hat.dtype == getattr(torch, dtype) and f_hat.isfinite().all()


def test_half_precision_checkpoints_are_as_good(tmp_path: Path) -> None:
    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in weights().items()}
    state = load(make, save_safetensors(half, tmp_path)).state_dict()
    assert all(torch.equal(state[name], t.to(state[name].dtype)) for name, t in half.items())


def test_a_network_beside_what_its_training_left(tmp_path: Path) -> None:
    """As the tokenizers of Infinity are published."""
    torch.save({"vae": weights(), "epoch": 3, "discriminator": {"x": torch.zeros(1)}}, tmp_path / "model.pth")
    state = load(make, tmp_path / "model.pth").state_dict()
    assert all(torch.equal(state[name], t) for name, t in weights().items())


def renamed(state: State) -> State:
    return {name.removeprefix("head."): t for name, t in state.items()}


FOREIGN: dict[str, tuple[Callable[[State], State], str]] = {
    "renamed": (
        renamed,
        r"4 tensors differ from the layout, first head\.bias: expected \(16,\), got none; head\.weight: expected "
        r"\(16, 32\), got none; bias: expected none, got \(16,\); weight: expected none, got \(16, 32\)$",
    ),
    "prefixed": (
        lambda state: {f"module.{n}": t for n, t in state.items()},
        r"112 tensors differ from the layout, first attn_bias_for_masking: expected \(1, 1, 14, 14\), got none; "
        r".*; module\.attn_bias_for_masking: expected none, got \(1, 1, 14, 14\)",
    ),
    "missing": (
        lambda state: {n: t for n, t in state.items() if n != "blocks.1.mamba.A_log"},
        r"1 tensors differ from the layout, first blocks\.1\.mamba\.A_log: expected \(4,\), got none$",
    ),
    "wider": (
        lambda state: state | {"word_embed.weight": torch.zeros(64, 4)},
        r"first word_embed\.weight: expected \(32, 4\), got \(64, 4\)$",
    ),
    "other type": (
        lambda state: state | {"lvl_1L": torch.zeros(1, 14)},
        r"first lvl_1L: expected \(1, 14\) int64, got \(1, 14\)$",
    ),
    "empty": (lambda state: {}, r"first attn_bias_for_masking: expected \(1, 1, 14, 14\), got none"),
}


@pytest.mark.parametrize("fault", FOREIGN)
@pytest.mark.parametrize("form", SAVERS)
def test_other_layouts_are_refused_by_their_first_differences(fault: str, form: str, tmp_path: Path) -> None:
    change, reason = FOREIGN[fault]
    with pytest.raises(ModelError, match=reason) as caught:
        load(make, SAVERS[form](change(weights()), tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["pickle", "safetensors"])
@pytest.mark.parametrize("keep", [0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(form: str, keep: float, tmp_path: Path) -> None:
    path = SAVERS[form](weights(), tmp_path)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ModelError, match=r"is not a (safetensors file|file of tensors alone)") as caught:
        load(make, path)
    assert "\n" not in str(caught.value)


def test_a_file_cut_off_within_its_index(tmp_path: Path) -> None:
    """Broadcast tensors make a file that is almost all index, where reading past the end is another error."""
    torch.save({str(i): torch.zeros(1).expand(1000) for i in range(200)}, tmp_path / "model.pth")
    content = (tmp_path / "model.pth").read_bytes()
    (tmp_path / "model.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"model\.pth is not a file of tensors alone, or damaged: "):
        load(make, tmp_path / "model.pth")


class Payload:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch opened",)


def test_a_pickle_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"head.bias": Payload()}, "model.pth")
    with pytest.raises(ModelError, match="is not a file of tensors alone"):
        load(make, Path("model.pth"))
    assert not Path("opened").exists()


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"trainer": {"var": {}}, "epoch": 3}, "trainer, epoch"),
        ({"vae": {"decoder": {}}, "epoch": 3}, "decoder"),
        ([torch.zeros(1)], "list"),
        ({0: torch.zeros(1)}, "0"),
        ({"head.bias": torch.zeros(16, device="meta")}, "head.bias"),
        ({"head.bias": torch.zeros(16).to_sparse()}, "head.bias"),
    ],
)
def test_what_is_no_state_dict_is_refused(content: object, held: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ModelError, match=f"does not map names to tensors, it holds {held}: save"):
        load(make, tmp_path / "model.pth")


def test_shards_that_disagree_with_their_index(tmp_path: Path) -> None:
    index = save_shards(weights(), tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model-2-of-2.safetensors")
    with pytest.raises(ModelError, match=r"model-2-of-2\.safetensors: \d+ tensors differ from the index, first "):
        read(index)
    save_file(weights(), tmp_path / "model-2-of-2.safetensors")
    with pytest.raises(ModelError, match=r"model-2-of-2\.safetensors: \d+ tensors differ from the index, first "):
        read(index)
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names 'model-2-of-2\.safetensors', which is no checkpoint beside it"):
        read(index)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"x": []}}'])
def test_an_index_of_no_checkpoint(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"is no index of a checkpoint|which is no checkpoint beside it|is no check"):
        read(tmp_path / "model.index.json")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.index.json"])
def test_an_index_cannot_leave_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(ModelError, match="which is no checkpoint beside it"):
        read(tmp_path / "model.index.json")


def test_paths_of_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no checkpoint"):
        read(tmp_path)
    with pytest.raises(ModelError, match=r"is no checkpoint: expected \.safetensors, \.bin, "):
        read(tmp_path / "model.onnx")
    for name in ("absent.pth", "absent.safetensors", "absent.index.json"):
        with pytest.raises(ModelError, match=r"cannot read .*absent.*: No such file"):
            read(tmp_path / name)
    save_pickle({}, tmp_path)
    torch.save({}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"has 2 checkpoints, name one: model\.pth, other\.pth"):
        read(tmp_path)
