"""The published VAR code's outputs, on its own random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.models.fixtures import Case, cases, folders, open_folder, tokenizer_file
from varsearch.models import checkpoints, published
from varsearch.models.batch import Sampler
from varsearch.models.generation import GuidanceSchedule, generate
from varsearch.models.mvar import MVAR
from varsearch.models.sampling import PublishedSampler
from varsearch.models.seams import Plan
from varsearch.models.var import VAR, VARConfig
from varsearch.models.vqvae import VQVAE, TokenizerConfig

pytestmark = pytest.mark.parity


class Fixture:
    def __init__(self, name: str) -> None:
        folder, c = open_folder(name)
        self.io = load_file(folder / "io.safetensors")
        scales = tuple((side, side) for side in c["patch_nums"])
        self.n_scales = len(scales)
        self.vae = VQVAE(
            TokenizerConfig(scales, c["vocab_size"], c["z_channels"], c["ch"], shared_phi=c["share_quant_resi"])
        ).eval()
        absent = self.vae.load_state_dict(load_file(tokenizer_file(folder, c)), strict=False)
        assert absent.unexpected_keys == [] and absent.missing_keys == ["quantize.ema_vocab_hit_SV"]
        config = VARConfig(
            scales,
            depth=c["depth"],
            width=c["embed_dim"],
            heads=c["num_heads"],
            classes=c["num_classes"],
            vocab=c["vocab_size"],
            z_channels=c["z_channels"],
            shared_adaln=c["shared_aln"],
            cosine_attention=c["attn_l2_norm"],
            mlp_ratio=c.get("mlp_ratio", 4.0),
            norm_eps=c["norm_eps"],
        )
        self.var = checkpoints.load(lambda: VAR(config), folder / "var.safetensors")

    def images(self, guidance: float, sampler: Sampler) -> Tensor:
        plan = Plan.dense(self.var.config.depth, [h * w for h, w in self.var.config.scales])
        f_hat = generate(
            self.var,
            self.vae,
            self.io["gen.labels"],
            plan=plan,
            guidance=GuidanceSchedule.ramp(len(plan.scales), guidance),
            sampler=sampler,
        )
        with torch.inference_mode():
            return (self.vae.decode(f_hat) + 1) / 2


@cache
def opened(name: str) -> Fixture:
    return Fixture(name)


@pytest.fixture(params=folders("var.safetensors"))
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return opened(request.param)


@torch.no_grad()
def test_tokens_exactly_and_their_decoding(fixture: Fixture) -> None:
    tokens = fixture.vae.encode(fixture.io["vae.image"])
    for k, found in enumerate(tokens):
        assert torch.equal(found, fixture.io[f"vae.idx.{k}"])
    torch.testing.assert_close(fixture.vae.quantize.teacher_input(tokens), fixture.io["var.input"])
    recon = fixture.vae.decode(fixture.vae.quantize.decode(tokens))
    torch.testing.assert_close(recon, fixture.io["vae.recon"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_teacher_forced_logits(fixture: Fixture) -> None:
    logits = fixture.var(fixture.io["var.labels"], fixture.io["var.input"])
    torch.testing.assert_close(logits, fixture.io["var.logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("folder", "case"), cases("var.safetensors"))
def test_generated_images(folder: str, case: Case) -> None:
    fixture = opened(folder)
    smooth = fixture.n_scales if case.smooth else 0
    sampler = PublishedSampler(torch.Generator().manual_seed(case.seed), case.top_k, case.top_p, smooth)
    # The last temperature of smooth sampling is 0.0135, which amplifies rounding of the logits some seventy times.
    atol = 5e-4 if case.smooth else 1e-4
    want = fixture.io[f"gen.{case.name}"]
    torch.testing.assert_close(fixture.images(case.guidance, sampler), want, atol=atol, rtol=0)


@pytest.mark.parametrize("size", published.VAR_SIZES)
def test_published_state_dict_layouts(size: str, shared_folder: Path) -> None:
    layouts = json.loads((shared_folder / "parity" / "var_state_dict_layouts.json").read_text())
    assert layout_of(lambda: VAR(published.VAR_SIZES[size])) == layouts[size.replace("-", "_")]


@pytest.mark.parametrize("size", published.VAR_SIZES)
def test_published_tokenizer_layout(size: str, shared_folder: Path) -> None:
    layouts = json.loads((shared_folder / "parity" / "var_state_dict_layouts.json").read_text())
    config = published.tokenizer(published.VAR_SIZES[size])
    assert layout_of(lambda: VQVAE(config)) == layouts["vae_ch160v4096z32"]
    assert config.image_size == ((512, 512) if size == "var-d36" else (256, 256))


@pytest.mark.parametrize("size", published.MVAR_SIZES)
@pytest.mark.parametrize("cosine", [True, False])
def test_published_mvar_layouts(size: str, cosine: bool, shared_folder: Path) -> None:
    layouts = json.loads((shared_folder / "parity" / "mvar_state_dict_layouts.json").read_text())["layouts"]
    config = replace(published.MVAR_SIZES[size], cosine_attention=cosine)
    assert layout_of(lambda: MVAR(config)) == layouts[size.replace("-", "_") + ("" if cosine else "_nol2norm")]


def layout_of(make: Callable[[], nn.Module]) -> dict[str, list[object]]:
    with torch.device("meta"):
        state = make().state_dict()
    return {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in state.items()}
