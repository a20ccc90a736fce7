"""The published VAR code's outputs, on its own random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from varsearch.models.sampling import GreedySampler, PublishedSampler, Sampler, generate
from varsearch.models.seams import Plan
from varsearch.models.var import VAR, VARConfig
from varsearch.models.vqvae import VQVAE, TokenizerConfig

pytestmark = pytest.mark.parity


class Fixture:
    def __init__(self, folder: Path, name: str) -> None:
        c = json.loads((folder / name / "config.json").read_text())
        self.io = load_file(folder / name / "io.safetensors")
        scales = tuple((side, side) for side in c["patch_nums"])
        self.n_scales = len(scales)
        self.vae = VQVAE(
            TokenizerConfig(scales, c["vocab_size"], c["z_channels"], c["ch"], shared_phi=c["share_quant_resi"])
        ).eval()
        absent = self.vae.load_state_dict(load_file(folder / "vae.safetensors"), strict=False)
        assert absent.unexpected_keys == [] and absent.missing_keys == ["quantize.ema_vocab_hit_SV"]
        self.var = VAR(
            VARConfig(
                scales,
                depth=c["depth"],
                width=c["embed_dim"],
                heads=c["num_heads"],
                classes=c["num_classes"],
                vocab=c["vocab_size"],
                z_channels=c["z_channels"],
                shared_adaln=c["shared_aln"],
                cosine_attention=c["attn_l2_norm"],
                norm_eps=c["norm_eps"],
            )
        ).eval()
        self.var.load_state_dict(load_file(folder / name / "var.safetensors"))

    def images(self, guidance: float, sampler: Sampler) -> Tensor:
        plan = Plan.dense(self.var.config.depth, [h * w for h, w in self.var.config.scales])
        f_hat = generate(self.var, self.vae, self.io["gen.labels"], plan=plan, guidance=guidance, sampler=sampler)
        with torch.inference_mode():
            return (self.vae.decode(f_hat) + 1) / 2


@pytest.fixture(scope="module", params=["var_adaln", "var_shared_adaln"])
def published(request: pytest.FixtureRequest, shared_folder: Path) -> Fixture:
    return Fixture(shared_folder / "parity", request.param)


@torch.no_grad()
def test_tokens_exactly_and_their_decoding(published: Fixture) -> None:
    tokens = published.vae.encode(published.io["vae.image"])
    for k, found in enumerate(tokens):
        assert torch.equal(found, published.io[f"vae.idx.{k}"])
    torch.testing.assert_close(published.vae.quantize.teacher_input(tokens), published.io["var.input"])
    recon = published.vae.decode(published.vae.quantize.decode(tokens))
    torch.testing.assert_close(recon, published.io["vae.recon"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_teacher_forced_logits(published: Fixture) -> None:
    logits = published.var(published.io["var.labels"], published.io["var.input"])
    torch.testing.assert_close(logits, published.io["var.logits"], atol=1e-4, rtol=0)


def test_greedy_images(published: Fixture) -> None:
    torch.testing.assert_close(published.images(1.5, GreedySampler()), published.io["gen.greedy"], atol=1e-4, rtol=0)


def test_seeded_sampling(published: Fixture) -> None:
    sampler = PublishedSampler(torch.Generator().manual_seed(123), top_k=20, top_p=0.9)
    want = published.io["gen.sampled_seed123_cfg4_topk20_topp0.9"]
    torch.testing.assert_close(published.images(4, sampler), want, atol=1e-4, rtol=0)


def test_smooth_sampling_of_the_demo(published: Fixture) -> None:
    generator = torch.Generator().manual_seed(5)
    sampler = PublishedSampler(generator, top_k=20, top_p=0.9, smooth_scales=published.n_scales)
    want = published.io["gen.smooth_seed5_cfg4_topk20_topp0.9"]
    # The last temperature is 0.0135, which amplifies rounding of the logits some seventy times.
    torch.testing.assert_close(published.images(4, sampler), want, atol=5e-4, rtol=0)


@pytest.mark.parametrize("size", ["var_d16", "var_d20", "var_d24", "var_d30", "var_d36"])
def test_published_state_dict_layouts(size: str, shared_folder: Path) -> None:
    layout = json.loads((shared_folder / "parity" / "var_state_dict_layouts.json").read_text())[size]
    depth = int(size.removeprefix("var_d"))
    sides = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32) if depth == 36 else (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    with torch.device("meta"):
        model = VAR(
            VARConfig(
                tuple((s, s) for s in sides), depth=depth, width=64 * depth, heads=depth, shared_adaln=depth == 36
            )
        )
    own = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()}
    assert own == layout


def test_published_tokenizer_layout(shared_folder: Path) -> None:
    layout = json.loads((shared_folder / "parity" / "var_state_dict_layouts.json").read_text())["vae_ch160v4096z32"]
    with torch.device("meta"):
        model = VQVAE(TokenizerConfig(tuple((s, s) for s in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))))
    own = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()}
    assert own == layout
