"""The published VAR code's outputs, on its own random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.models.fixtures import DECODED, Case, ClassConditional, cases, class_conditional, folders, rounding
from varsearch.models import published
from varsearch.models.mvar import MVAR
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE

pytestmark = pytest.mark.parity


@pytest.fixture(params=folders("var.safetensors"))
def fixture(request: pytest.FixtureRequest) -> ClassConditional:
    return class_conditional(request.param)


@torch.no_grad()
def test_tokens_exactly_and_their_decoding(fixture: ClassConditional) -> None:
    tokens = fixture.vae.encode(fixture.io["vae.image"])
    for k, found in enumerate(tokens):
        assert torch.equal(found, fixture.io[f"vae.idx.{k}"])
    torch.testing.assert_close(
        fixture.vae.quantize.teacher_input(tokens), fixture.io["var.input"], atol=1e-5, rtol=1.3e-6
    )
    recon = fixture.vae.decode(fixture.vae.quantize.decode(tokens))
    torch.testing.assert_close(recon, fixture.io["vae.recon"], atol=2 * DECODED, rtol=0)


@pytest.mark.numerics
@pytest.mark.parametrize("folder", folders("var.safetensors"))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@torch.no_grad()
def test_teacher_forced_logits(folder: str, dtype: torch.dtype) -> None:
    fixture = class_conditional(folder, dtype)
    logits, want = fixture.transformer(fixture.io["var.labels"], fixture.io["var.input"]), fixture.io["var.logits"]
    runs = 1 if dtype == torch.float64 else 2  # in single precision
    atol = runs * rounding(want, fixture.transformer.config.depth)
    torch.testing.assert_close(logits, want, atol=atol, rtol=0)


@pytest.mark.parametrize(("folder", "case"), cases("var.safetensors"))
def test_generated_images(folder: str, case: Case) -> None:
    fixture = class_conditional(folder)
    found = fixture.generate(case)
    sway, _ = fixture.sway(case, found)
    torch.testing.assert_close(found.images, fixture.io[f"gen.{case.name}"], atol=DECODED + sway, rtol=0)


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
