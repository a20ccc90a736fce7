"""Nothing is hard-wired to the sizes of the recorded outputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.accel.families import infinity, mvar
from tests.conftest import build_tiny
from varsearch.evaluators.workload import cast
from varsearch.models.generation import GuidanceSchedule
from varsearch.models.image_model import ImageModel
from varsearch.models.infinity.rotary import Rotary, angles
from varsearch.models.infinity.tokenizer import BitQuantizer, BitTokenizerConfig
from varsearch.models.infinity.transformer import Infinity
from varsearch.models.layers import SelfAttention
from varsearch.models.mvar import MVAR
from varsearch.models.quantizer import PhiBank
from varsearch.models.sampling import GreedySampler
from varsearch.models.var import VAR


@pytest.mark.parametrize("build", [build_tiny, infinity, mvar])
def test_every_norm_has_the_configured_epsilon(build: type[ImageModel]) -> None:
    config = replace(build().transformer.config, norm_eps=0.25)
    if hasattr(config, "mamba"):
        config = replace(config, mamba=replace(config.mamba, norm_eps=0.125))
    network = {"VARConfig": VAR, "MVARConfig": MVAR, "InfinityConfig": Infinity}[type(config).__name__](config)
    found = {
        type(module).__name__: getattr(module, field)
        for module in network.modules()
        for field in ("eps", "norm_eps")
        if hasattr(module, field)
    }
    assert found.pop("GatedNorm", 0.125) == 0.125
    assert {"HeadNorm"} <= found.keys() and len(found) >= 2 and set(found.values()) == {0.25}


def test_widths_of_infinity() -> None:
    config = infinity().transformer.config
    wide = replace(config, width=8192, text_channels=128)
    assert (config.text_heads, wide.text_heads) == (1, 2)
    assert replace(config, width=96, mlp_ratio=3.3).hidden == 256


def test_bits_of_a_patch_lie_by_channel_then_row_then_column() -> None:
    quantizer = BitQuantizer(BitTokenizerConfig(((1, 1), (2, 2)), channels=2, patch=2, ch_mult=(1, 2)))
    code_N81 = torch.arange(8.0).view(1, 8, 1)
    z_NCHW = quantizer._unpatched(code_N81.flatten(1).unflatten(1, (1, 8)), 0)
    assert z_NCHW.tolist() == [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]]


def test_ticks_of_other_counts_of_phi() -> None:
    assert PhiBank(4, 3, 0.5, 5).index == [0, 0, 1, 2, 2]


def test_each_scale_has_its_own_temperature() -> None:
    model, seen = infinity(), []

    class Note(GreedySampler):
        def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
            seen.append(logits_NLV)
            return super().__call__(logits_NLV, scale, codebook_VC)

    cool = GuidanceSchedule.constant(5, 3.0)
    for temperatures in ((1.0,) * 5, (1.0, 2.0, 4.0, 8.0, 16.0)):
        model._latent(torch.tensor([0]), Note(), None, replace(cool, temperatures=temperatures))
    for k in range(5):  # temperatures change no greedy choice
        torch.testing.assert_close(seen[5 + k] * 2.0**k, seen[k])


def test_angles_are_exact_in_every_format() -> None:
    scales, grid = ((1, 1), (40, 40)), (64, 64)
    exact = angles(scales, grid, 64, torch.device("cpu")).cos()
    table = Rotary.of(scales, grid, 64, torch.zeros((), dtype=torch.bfloat16)).table_S2C
    assert table.dtype == torch.bfloat16
    torch.testing.assert_close(table[:, 0, ::2].float(), exact, atol=2**-8, rtol=0)


@pytest.mark.parametrize("build", [build_tiny, infinity, mvar])
def test_logits_are_fp32_in_half_precision(build: type[ImageModel]) -> None:
    class Note(GreedySampler):
        def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
            assert logits_NLV.dtype == torch.float32
            return super().__call__(logits_NLV, scale, codebook_VC)

    assert cast(build(), "cpu", torch.bfloat16).generate(torch.tensor([1]), Note()).isfinite().all()


def test_tiny_queries_and_keys_are_no_nan_in_fp16() -> None:
    attention = SelfAttention(64, 4, cosine=True).half()
    with torch.no_grad():
        attention.mat_qkv.weight.zero_()
        assert all(t.isfinite().all() for t in attention.qkv(torch.ones(1, 2, 64, dtype=torch.float16)))
