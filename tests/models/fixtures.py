"""Folders with outputs of the published code: found by their files, so that other sizes, seeds and cases work too.

`VARSEARCH_PARITY` names another folder of them than the one beside the project.
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
from varsearch.models.batch import Sampler
from varsearch.models.generation import GuidanceSchedule, generate
from varsearch.models.mamba import MambaConfig
from varsearch.models.mvar import MVAR, MVARConfig
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


class ClassConditional:
    """A folder of a class-conditional model: what was recorded, and the networks of its configuration and weights."""

    def __init__(self, name: str) -> None:
        folder, c = open_folder(name)
        self.io = load_file(folder / "io.safetensors")
        scales = tuple((side, side) for side in c["patch_nums"])
        self.vae = VQVAE(
            TokenizerConfig(scales, c["vocab_size"], c["z_channels"], c["ch"], shared_phi=c["share_quant_resi"])
        ).eval()
        # Folders may share a tokenizer, which then has no statistics of their scales.
        absent = self.vae.load_state_dict(load_file(folder / c.get("vae", "../vae.safetensors")), strict=False)
        assert absent.unexpected_keys == [] and {*absent.missing_keys} <= {"quantize.ema_vocab_hit_SV"}
        self.transformer = _transformer(folder, c, scales)

    def images(self, guidance: float, sampler: Sampler) -> Tensor:
        """Images of the recorded labels, (N, 3, height, width) in [0, 1]."""
        config = self.transformer.config
        plan = Plan.dense(config.depth, [h * w for h, w in config.scales])
        f_hat = generate(
            self.transformer,
            self.vae,
            self.io["gen.labels"],
            plan=plan,
            guidance=GuidanceSchedule.ramp(len(plan.scales), guidance),
            sampler=sampler,
        )
        with torch.inference_mode():
            return (self.vae.decode(f_hat) + 1) / 2


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
def class_conditional(name: str) -> ClassConditional:
    """A folder by name, read once."""
    return ClassConditional(name)
