"""The published Infinity code's outputs, on its own random weights, and its state-dict layouts."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.models.fixtures import ABSENT, DECODED, folders, open_folder, rounding
from varsearch.models.batch import Sampler
from varsearch.models.generation import GuidanceSchedule, generate
from varsearch.models.infinity import (
    SIZES,
    BitTokenizer,
    BitTokenizerConfig,
    Infinity,
    InfinityConfig,
    Prompts,
    configs,
)
from varsearch.models.infinity.rotary import angles
from varsearch.models.infinity.schedule import Pixels, finest_map, ratios, token_maps
from varsearch.models.infinity.sizes import Name
from varsearch.models.sampling import PublishedSampler, filter_logits
from varsearch.models.seams import Plan

pytestmark = pytest.mark.parity
FOLDERS = folders("infinity.safetensors")
CASES = [(name, case) for name in FOLDERS for case in (open_folder(name)[1]["cases"] if name != ABSENT else [""])]
each_folder = pytest.mark.parametrize("published", FOLDERS, indirect=True)


def upcast(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(path).items()}


class Fixture:
    def __init__(self, name: str, dtype: torch.dtype) -> None:
        folder, c = open_folder(name)
        v, self.cases, self.io = c["vae"], c["cases"], upcast(folder / "io.safetensors", dtype)
        scales = token_maps(c["h_div_w_template"], c["pn"])
        assert [[1, h, w] for h, w in scales] == c["scale_schedule"]
        assert v["encoder_ch_mult"] == v["decoder_ch_mult"]
        self.tokenizer = BitTokenizer(
            BitTokenizerConfig(
                scales,
                v["codebook_dim"],
                1 + c["apply_spatial_patchify"],
                ch=v["base_ch"],
                ch_mult=tuple(v["encoder_ch_mult"]),
                res_blocks=v["num_res_blocks"],
            )
        )
        self.tokenizer.to(dtype).eval().load_state_dict(upcast(folder / v["file"], dtype))
        self.model = Infinity(
            InfinityConfig(
                scales,
                finest_map(c["h_div_w_template"]),
                depth=c["depth"],
                width=c["embed_dim"],
                heads=c["num_heads"],
                chunks=c["block_chunks"],
                bits=self.tokenizer.config.bits,
                text_channels=c["text_channels"],
                text_length=c["text_maxlen"],
                mlp_ratio=c["mlp_ratio"],
                norm_eps=c["norm_eps"],
            )
        )
        self.model.to(dtype).eval().load_state_dict(upcast(folder / "infinity.safetensors", dtype))

    def features(self, kind: str) -> list[Tensor]:
        return list(self.io[f"{kind}.kv_compact"].split(self.io[f"{kind}.lens"].tolist()))

    def prompts(self, negative: bool = False) -> Prompts:
        return Prompts.of(self.features("text"), Prompts.of(self.features("neg")) if negative else None)

    def bits(self, kind: str) -> list[Tensor]:
        return [self.io[f"{kind}.bits.{k}"].flatten(1).long() for k in range(len(self.model.config.scales))]

    @property
    def rounding(self) -> float:
        """Most by which single precision moves teacher-forced logits."""
        return rounding(self.io["tf.logits"], self.model.config.depth)

    @property
    def sizes(self) -> list[int]:
        return [h * w for h, w in self.model.config.scales]

    def generate(self, case: str, sampler: Sampler) -> tuple[Tensor, Recording]:
        setting, recording = self.cases[case], Recording(sampler)
        (layer,) = setting["ins"]
        z = generate(
            self.model,
            self.tokenizer,
            self.prompts(setting.get("neg", False)),
            plan=Plan.dense(self.model.config.depth, self.sizes),
            guidance=GuidanceSchedule.constant(len(self.sizes), setting["cfg"], setting["tau"], layer),
            sampler=recording,
        )
        return z, recording


class Recording:
    """Notes the logits, lets another sampler choose, and notes the bits."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.logits: list[Tensor] = []
        self.bits: list[Tensor] = []

    def __call__(self, logits_NMV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        self.logits.append(logits_NMV)
        codes_NM1 = self.sampler(logits_NMV, scale, codebook_VC)
        self.bits.append((codes_NM1[..., 0] > 0).long())
        return codes_NM1

    def take(self, images_M: Tensor) -> Recording:
        return self


class RecordedNoise:
    """Draws with the exponential noise that the published code drew."""

    def __init__(self, noise_NLDV: Tensor, sizes: list[int], top_k: int, top_p: float) -> None:
        self.noise = noise_NLDV.split(sizes, dim=1)
        self.top_k, self.top_p = top_k, top_p

    def __call__(self, logits_NMV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        p_NMV = filter_logits(logits_NMV, self.top_k, self.top_p).softmax(dim=-1)
        return codebook_VC[(p_NMV / self.noise[scale].flatten(1, 2)).argmax(-1)]

    def take(self, images_M: Tensor) -> RecordedNoise:
        return self


def close(found: Tensor, want: Tensor, atol: float = DECODED) -> None:
    torch.testing.assert_close(found.to(want.dtype), want, atol=atol, rtol=0)


@cache
def opened(name: str, dtype: torch.dtype = torch.float64) -> Fixture:
    return Fixture(name, dtype)


@pytest.fixture
def published(request: pytest.FixtureRequest) -> Fixture:
    return opened(request.param)


@each_folder
@torch.no_grad()
def test_bits_exactly_and_their_decoding(published: Fixture) -> None:
    io, tokenizer, quantize = published.io, published.tokenizer, published.tokenizer.quantize
    latent = tokenizer.latent(io["vae.image_u8"].to(io["vae.h"]) / 127.5 - 1)
    close(latent, io["vae.h"])
    bits = quantize.encode(latent)
    for found, want in zip(bits, published.bits("vae"), strict=True):
        assert torch.equal(found, want)
    assert torch.equal(torch.cat(bits, dim=1), io["tf.gt_bits"].flatten(1).long())
    close(quantize.decode(bits), io["vae.z"], 1e-6)
    close(quantize.teacher_input(bits), io["tf.x_BLC_wo_prefix"], 1e-6)
    for k, partial in enumerate(quantize.partial_sums(bits)[:-1]):
        averaged = F.interpolate(partial, size=quantize.maps[k + 1], mode="area")
        close(averaged, io[f"vae.area_inputs.{k}"][:, :, 0], 1e-6)
    if "vae.recon" in io:
        close(tokenizer.decode(io["vae.z"][:1]), io["vae.recon"])


@each_folder
@torch.no_grad()
def test_text_and_positions(published: Fixture) -> None:
    io, model, prompts = published.io, published.model, published.prompts()
    assert prompts.present_NT is not None
    text = model.text_norm(prompts.features_NTC)
    close(text[prompts.present_NT], io["aux.text_norm"], 1e-5)
    close(model.text_proj_for_ca(text)[prompts.present_NT], io["aux.text_proj_for_ca"], 1e-5)
    cond, _ = model.condition(prompts, guided=False)
    close(cond, io["aux.cond_BD"], 1e-5)
    close(model.shared(cond), io["aux.shared_ada_lin"], 1e-5)
    c = model.config
    angle = angles(c.scales, c.grid, c.width // c.heads, cond.device)
    if "aux.rope_cache" in io:
        close(torch.stack((angle.cos(), angle.sin())), io["aux.rope_cache"], 1e-6)


@pytest.mark.numerics
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@torch.no_grad()
def test_teacher_forced_logits(folder: str, dtype: torch.dtype) -> None:
    published = opened(folder, dtype)
    logits = published.model(published.prompts(), published.io["tf.x_BLC_wo_prefix"])
    runs = 1 if dtype == torch.float64 else 2  # in single precision
    close(logits.flatten(1), published.io["tf.logits"].flatten(1), runs * published.rounding)


@pytest.mark.parametrize(("published", "case"), CASES, indirect=["published"])
def test_generation(published: Fixture, case: str) -> None:
    io, setting = published.io, published.cases[case]
    generator = torch.Generator().manual_seed(setting["g_seed"])
    z, recording = published.generate(case, PublishedSampler(generator, setting["top_k"], setting["top_p"]))
    # Logits are cfg of the conditional ones less (cfg - 1) of the others, over the temperature.
    gain = (2 * setting["cfg"] - 1) / setting["tau"]
    close(torch.cat(recording.logits, dim=1).flatten(1), io[f"gen.{case}.logits"].flatten(1), gain * published.rounding)
    for found, want in zip(recording.bits, published.bits(f"gen.{case}"), strict=True):
        assert torch.equal(found, want)
    close(z, io[f"gen.{case}.z"], 1e-6)
    with torch.inference_mode():
        image = published.tokenizer.decode(z)
    if f"gen.{case}.image_float" in io:
        close(image[:1], io[f"gen.{case}.image_float"])
    rgb = io[f"gen.{case}.image_u8_bgr"].flip(3).permute(0, 3, 1, 2)
    # The published bytes are cut off, not rounded, so an error of 1e-4 near a whole number shows as one step.
    assert ((image[: len(rgb)] + 1).mul(127.5).floor() - rgb.float()).abs().max() <= 1


@pytest.mark.parametrize(
    ("published", "case"), [(name, case) for name, case in CASES if "greedy" not in case], indirect=["published"]
)
def test_generation_with_recorded_noise(published: Fixture, case: str) -> None:
    setting = published.cases[case]
    noise = RecordedNoise(published.io[f"gen.{case}.noise"], published.sizes, setting["top_k"], setting["top_p"])
    _, recording = published.generate(case, noise)
    for found, want in zip(recording.bits, published.bits(f"gen.{case}"), strict=True):
        assert torch.equal(found, want)


@pytest.mark.parametrize("size", get_args(Name))
def test_published_state_dict_layouts(size: Name, shared_folder: Path) -> None:
    layouts = json.loads((shared_folder / "parity" / "infinity_state_dict_layouts.json").read_text())["layouts"]
    transformer, tokenizer = configs(size)
    with torch.device("meta"):
        parts = (Infinity(transformer), BitTokenizer(tokenizer))
    names = (
        size.replace("-", "_").replace("125m", "layer12"),
        "vae_d14_patch8_spatial_patchify" if SIZES[size].patch == 2 else "vae_d32_patch16",
    )
    for part, name in zip(parts, names, strict=True):
        own = {key: [list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in part.state_dict().items()}
        assert own == layouts[name]


def test_published_schedules(shared_folder: Path) -> None:
    found = json.loads((shared_folder / "parity" / "infinity_state_dict_layouts.json").read_text())["scale_schedules"]
    for ratio, classes in found.items():
        assert set(classes) == set(get_args(Pixels))
        for pixels, want in classes.items():
            scales = token_maps(float(ratio), pixels)
            assert [[1, h, w] for h, w in scales] == want["scales"]
            assert sum(h * w for h, w in scales) == want["tokens"]
            for size in ("infinity-2b", "infinity-8b"):
                assert list(configs(size, float(ratio), pixels)[1].image_size) == want["pixel"]
    assert len(ratios()) == 15
