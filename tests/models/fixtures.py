"""Folders with outputs of the published code: found by their files, so that other sizes, seeds and cases work too.

`VARSEARCH_PARITY` names another folder of them than the one beside the project. The outputs were computed in single
precision. Here everything is computed in double, so that what is compared is their rounding alone, the same on every
machine.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import SHARED
from varsearch.models import checkpoints
from varsearch.models.generation import GuidanceSchedule, generate
from varsearch.models.mamba import MambaConfig
from varsearch.models.mvar import MVAR, MVARConfig
from varsearch.models.sampling import PublishedSampler, filter_logits
from varsearch.models.seams import Plan
from varsearch.models.var import VAR, VARConfig
from varsearch.models.vqvae import VQVAE, TokenizerConfig

PARITY = Path(os.environ.get("VARSEARCH_PARITY", SHARED / "parity"))
ABSENT = "no folder"
CASE = re.compile(
    r"gen\.((?P<kind>greedy|sampled|smooth)(_seed(?P<seed>\d+)_cfg(?P<cfg>[\d.]+)_topk(?P<k>\d+)_topp(?P<p>[\d.]+))?)"
)


def folders(weights: str) -> list[str]:
    """Names of the folders that hold a file of these weights; one that stands for none where there is none."""
    return sorted(path.parent.name for path in PARITY.glob(f"*/{weights}")) or [ABSENT]


def open_folder(name: str) -> tuple[Path, dict[str, Any]]:
    """A folder and its configuration; skips where there is none."""
    if name == ABSENT:
        pytest.skip("the folder with published outputs is not here")
    return PARITY / name, json.loads((PARITY / name / "config.json").read_text())


class Case(NamedTuple):
    """How a recorded batch of images was drawn."""

    name: str
    smooth: bool
    seed: int
    guidance: float
    top_k: int
    top_p: float


def cases(weights: str) -> list[tuple[str, Case]]:
    """Folder and case of every recorded generation."""
    found = []
    for folder in folders(weights):
        keys = [] if folder == ABSENT else safe_open(PARITY / folder / "io.safetensors", "pt").keys()
        for match in filter(None, map(CASE.fullmatch, keys)):
            greedy = match["kind"] == "greedy"
            numbers = (
                (0, 1.5, 1, 0.0)
                if greedy
                else (int(match["seed"]), float(match["cfg"]), int(match["k"]), float(match["p"]))
            )
            found.append((folder, Case(match[1], match["kind"] == "smooth", *numbers)))
    return found or [(ABSENT, Case("none", False, 0, 0.0, 0, 0.0))]


def rounding(logits: Tensor, depth: int) -> float:
    """Most by which single precision moves logits of a network of so many layers.

    At most a dozen operators follow each other in a layer, and a few come before and after the layers; each rounds to
    half a unit in the last place of the largest number.
    """
    return (12 * depth + 8) * 2.0**-24 * logits.abs().max().item()


DECODED = 1e-4
"""Most by which single precision moves pixels of the same tokens: nine times what it moved those of these folders."""


class Generated(NamedTuple):
    """Images in [0, 1], and beside them the guided logits and tokens of each scale."""

    images: Tensor
    logits: list[Tensor]
    tokens: list[Tensor]


class Watched(PublishedSampler):
    """Notes the logits and the tokens that are drawn from them, after it has moved the logits by up to `off`."""

    def __init__(self, case: Case, n_scales: int, off: float = 0.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(case.seed)
        super().__init__(generator, case.top_k, case.top_p, n_scales if case.smooth else 0)
        self.off, self.noise = off, torch.Generator().manual_seed(seed)
        self.logits: list[Tensor] = []
        self.tokens: list[Tensor] = []

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        logits_NLV = logits_NLV + self.off * (2 * torch.rand(logits_NLV.shape, generator=self.noise) - 1)
        self.logits.append(logits_NLV)
        again = torch.Generator()
        again.set_state(self.generator.get_state())
        p_NLV = filter_logits(logits_NLV, self.top_k, self.top_p).softmax(-1)
        index_M = torch.multinomial(p_NLV.flatten(0, 1), 1, replacement=True, generator=again)
        self.tokens.append(index_M.view(logits_NLV.shape[:2]))
        return super().__call__(logits_NLV, scale, codebook_VC)


class ClassConditional:
    """A folder of a class-conditional model: what was recorded, and the networks of its configuration and weights."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        folder, c = open_folder(name)
        io = load_file(folder / "io.safetensors")
        self.io = {key: t.to(dtype) if t.is_floating_point() else t for key, t in io.items()}
        scales = tuple((side, side) for side in c["patch_nums"])
        self.vae = VQVAE(
            TokenizerConfig(scales, c["vocab_size"], c["z_channels"], c["ch"], shared_phi=c["share_quant_resi"])
        ).eval()
        # Folders may share a tokenizer, which then has no statistics of their scales.
        absent = self.vae.load_state_dict(load_file(folder / c.get("vae", "../vae.safetensors")), strict=False)
        assert absent.unexpected_keys == [] and {*absent.missing_keys} <= {"quantize.ema_vocab_hit_SV"}
        self.transformer = _transformer(folder, c, scales).to(dtype)
        self.vae.to(dtype)

    def generate(self, case: Case, off: float = 0.0, seed: int = 0) -> Generated:
        """Images of the recorded labels; logits are moved by up to `off`."""
        config = self.transformer.config
        plan = Plan.dense(config.depth, [h * w for h, w in config.scales])
        sampler = Watched(case, len(plan.scales), off, seed)
        f_hat = generate(
            self.transformer,
            self.vae,
            self.io["gen.labels"],
            plan=plan,
            guidance=GuidanceSchedule.ramp(len(plan.scales), case.guidance),
            sampler=sampler,
        )
        with torch.inference_mode():
            return Generated((self.vae.decode(f_hat) + 1) / 2, sampler.logits, sampler.tokens)

    def rounding(self, case: Case) -> float:
        """Most by which single precision moves guided logits, (1 + t) of the conditional ones less t of the others."""
        logits = self.io["var.logits"] if "var.logits" in self.io else self.io["tf.logits"]
        return (1 + 2 * case.guidance) * rounding(logits, self.transformer.config.depth)

    def sway(self, case: Case, found: Generated) -> tuple[float, float]:
        """How far images and logits move where all logits are moved by as much as single precision moves them.

        A drawn token stays what it is. Smooth sampling mixes codes at temperatures down to 0.0135, so that a mixture
        moves by some seventy times as much as its logits do, and the next scale's logits with it.
        """
        if not case.smooth:
            return 0.0, 0.0
        others = [self.generate(case, self.rounding(case), seed) for seed in range(2)]
        images = max((other.images - found.images).abs().max().item() for other in others)
        return images, max(
            (a - b).abs().max().item() for other in others for a, b in zip(other.logits, found.logits, strict=True)
        )


def _transformer(folder: Path, c: dict[str, Any], scales: tuple[tuple[int, int], ...]) -> VAR:
    sizes = {
        "depth": c["depth"],
        "width": c["embed_dim"],
        "heads": c["num_heads"],
        "classes": c["num_classes"],
        "vocab": c["vocab_size"],
        "z_channels": c["z_channels"],
        "cosine_attention": c["attn_l2_norm"],
        "mlp_ratio": c.get("mlp_ratio", 4.0),
        "norm_eps": c["norm_eps"],
    }
    if "mamba2" not in c:
        var = VARConfig(scales, **sizes, shared_adaln=c["shared_aln"])
        return checkpoints.load(lambda: VAR(var), folder / "var.safetensors")
    m = c["mamba2"]
    mamba = MambaConfig(m["d_state"], m["d_conv"], m["expand"], m["headdim"], m["norm_eps"])
    mvar = MVARConfig(scales, **sizes, mamba=mamba)
    return checkpoints.load(lambda: MVAR(mvar), folder / "mvar.safetensors")


@cache
def class_conditional(name: str, dtype: torch.dtype = torch.float64) -> ClassConditional:
    """A folder by name, read once."""
    return ClassConditional(name, dtype)
