"""Infinity on random weights of a tiny, patched, oblong model: what the fixtures of the published code leave out."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.accel.techniques import TECHNIQUES
from varsearch.accel.lower import lower
from varsearch.errors import ModelError
from varsearch.models.batch import Sampler
from varsearch.models.generation import GuidanceSchedule, generate
from varsearch.models.infinity import (
    BitTokenizer,
    BitTokenizerConfig,
    Infinity,
    InfinityConfig,
    Prompts,
    load_prompts,
    save_prompts,
)
from varsearch.models.infinity.rotary import angles
from varsearch.models.infinity.schedule import Pixels, finest_map, ratios, token_maps
from varsearch.models.sampling import GreedySampler, PairedSampler, TeacherForcing
from varsearch.models.seams import BranchMemory, Guidance, Plan, Sublayer
from varsearch.target import ModelSpec

SCALES = ((1, 1), (2, 2), (4, 2), (6, 3), (8, 4))
TOKENS = [h * w for h, w in SCALES]
CONFIG = InfinityConfig(
    SCALES, (16, 8), depth=3, width=64, heads=4, chunks=1, bits=12, text_channels=128, text_length=8
)
SPEC = ModelSpec(
    name="tiny", n_layers=3, n_heads=4, head_dim=16, scales=SCALES, classes=1, image_size=(32, 16), fingerprint="x"
)
DENSE = Plan.dense(3, TOKENS)
GUIDED = GuidanceSchedule.constant(5, 3.0)
UNGUIDED = GuidanceSchedule.constant(5, 1.0)
RUNNABLE = {name: policy for name, policy in TECHNIQUES.items() if not policy.refiner}


# In double precision, because the sign of a logit is a bit of the image. Estimates stay in single:
# they are sums of few equal numbers, and another bit moves them by more than 1e-2.
@pytest.fixture(scope="module")
def model() -> Infinity:
    torch.manual_seed(0)
    made = Infinity(CONFIG).double().eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
    return made


@pytest.fixture(scope="module")
def tokenizer() -> BitTokenizer:
    torch.manual_seed(1)
    config = BitTokenizerConfig(SCALES, channels=3, patch=2, ch=8, ch_mult=(1, 2), res_blocks=1, norm_groups=4)
    return BitTokenizer(config).double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def features() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(n, 128, generator=generator).double() for n in (5, 2, 7)]


Draw = Callable[..., Tensor]


@pytest.fixture
def draw(model: Infinity, tokenizer: BitTokenizer, features: list[Tensor]) -> Draw:
    def drawn(
        plan: Plan = DENSE,
        guidance: GuidanceSchedule = GUIDED,
        sampler: Sampler | None = None,
        prompts: Prompts | None = None,
    ) -> Tensor:
        sampler = sampler or PairedSampler(0, range(len(features)))
        prompts = prompts or Prompts.of(features)
        return generate(model, tokenizer, prompts, plan=plan, guidance=guidance, sampler=sampler)

    return drawn


@pytest.mark.numerics
@torch.no_grad()
def test_scales_one_by_one_predict_what_one_pass_predicts(
    model: Infinity, tokenizer: BitTokenizer, features: list[Tensor], draw: Draw
) -> None:
    image = torch.rand(3, 3, 32, 16, generator=torch.Generator().manual_seed(3)).double() * 2 - 1
    bits = tokenizer.encode(image)
    assert [b.shape[1] for b in bits] == [12 * n for n in TOKENS]
    teacher = TeacherForcing(bits)
    z = draw(guidance=UNGUIDED, sampler=teacher)
    torch.testing.assert_close(z, tokenizer.quantize.decode(bits))
    logits = model(Prompts.of(features), tokenizer.quantize.teacher_input(bits))
    nll = F.cross_entropy(logits.mT, torch.cat(bits, dim=1), reduction="none").double().mean(1)
    torch.testing.assert_close(teacher.nll_N / teacher.tokens_N, nll, atol=1e-5, rtol=0)
    assert tokenizer.decode(z).shape == (3, 3, *tokenizer.config.image_size)


def test_patches_keep_the_places_of_bits(tokenizer: BitTokenizer) -> None:
    quantize = tokenizer.quantize
    latent = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(4))
    bits = quantize.encode(latent)
    rest = latent - quantize.partial_sums(bits)[-2]
    found = quantize.decode(bits) - quantize.partial_sums(bits)[-2]
    torch.testing.assert_close(found, rest.sign() / 3**0.5)


@pytest.mark.numerics
def test_a_prompt_does_not_depend_on_its_neighbours(draw: Draw, features: list[Tensor]) -> None:
    together = draw()
    for i, feature in enumerate(features):
        alone = draw(prompts=Prompts.of([feature]), sampler=PairedSampler(0, [i]))
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


@pytest.mark.numerics
def test_negative_prompts_of_other_lengths(draw: Draw, model: Infinity, features: list[Tensor]) -> None:
    learnt = Prompts.of([model.cfg_uncond[: len(f)] for f in features])
    torch.testing.assert_close(draw(prompts=Prompts.of(features, learnt)), draw(), atol=1e-5, rtol=0)
    other = Prompts.of(features, Prompts.of([features[1]] * 3))
    assert not torch.equal(draw(prompts=other), draw())
    assert torch.equal(draw(prompts=other, guidance=UNGUIDED), draw(guidance=UNGUIDED))


def test_guidance_at_a_layer_and_per_scale(draw: Draw) -> None:
    first_unguided = replace(GUIDED, strengths=(0.0, *GUIDED.strengths[1:]))
    results = [draw(guidance=g) for g in (GUIDED, replace(GUIDED, layer=-1), replace(GUIDED, layer=-2), first_unguided)]
    for i, result in enumerate(results):
        assert result.isfinite().all() and not any(torch.equal(result, other) for other in results[:i])
    hot, cold = (draw(guidance=replace(GUIDED, temperatures=(t,) * 5)) for t in (50.0, 1e-6))
    torch.testing.assert_close(cold, draw(sampler=GreedySampler()))
    assert not torch.equal(hot, draw())


@pytest.mark.numerics
def test_the_unconditional_half_can_end(draw: Draw) -> None:
    scales = tuple(replace(s, guidance=Guidance.OFF) if k > 2 else s for k, s in enumerate(DENSE.scales))
    strengths = (*GUIDED.strengths[:3], 0.0, 0.0)
    ended = draw(plan=replace(DENSE, scales=scales))
    torch.testing.assert_close(ended, draw(guidance=replace(GUIDED, strengths=strengths)))


@pytest.mark.numerics
def test_tokens_keep_their_positions_in_any_order(draw: Draw) -> None:
    def shuffled(fn: Sublayer, x_BLD: Tensor, pos_BL: Tensor, memory: BranchMemory, n_images: int) -> Tensor:
        order_BL = torch.rand(x_BLD.shape[:2]).argsort(dim=1)
        index_BLD = order_BL[..., None].expand_as(x_BLD)
        y_BLD = fn(x_BLD.gather(1, index_BLD), pos_BL.expand(len(x_BLD), -1).gather(1, order_BL))
        return torch.empty_like(x_BLD).scatter_(1, index_BLD, y_BLD)

    scales = tuple(
        replace(s, layers=tuple(replace(x, attn=shuffled, between=shuffled, ffn=shuffled) for x in s.layers))
        for s in DENSE.scales
    )
    torch.testing.assert_close(draw(plan=replace(DENSE, scales=scales)), draw(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RUNNABLE)
def test_lowered_policies_run(draw: Draw, name: str) -> None:
    found = draw(plan=lower(RUNNABLE[name], SPEC))
    assert found.shape == (3, 3, 16, 8) and found.isfinite().all()


def test_pruned_tokens_are_left_out_of_every_branch(draw: Draw) -> None:
    plan = lower(TECHNIQUES["prune-last"], SPEC)
    layer = plan.scales[4].layers[0]
    assert type(layer.attn) is type(layer.between) is type(layer.ffn)
    assert not torch.equal(draw(plan=plan), draw())


@pytest.mark.numerics
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(
    model: Infinity, tokenizer: BitTokenizer, features: list[Tensor], dtype: torch.dtype
) -> None:
    prompts, cast = Prompts.of(features), Prompts.of(features).to("cpu", dtype)
    half_model, half_tokenizer = deepcopy(model).to(dtype), deepcopy(tokenizer).to(dtype)
    bits = tokenizer.encode(torch.rand(3, 3, 32, 16, generator=torch.Generator().manual_seed(5)).double())
    near, exact = TeacherForcing(bits), TeacherForcing(bits)
    generate(model, tokenizer, prompts, plan=DENSE, guidance=GUIDED, sampler=exact)
    z = generate(half_model, half_tokenizer, cast, plan=DENSE, guidance=GUIDED, sampler=near)
    torch.testing.assert_close(near.nll_N, exact.nll_N, rtol=0.02, atol=0)
    assert z.dtype == torch.float32 and half_tokenizer.decode(z).dtype == dtype


@pytest.mark.parametrize("name", ["dense", "prune-last", "kv-half"])
def test_shapes_do_not_depend_on_data(model: Infinity, tokenizer: BitTokenizer, name: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake_model, fake_tokenizer = Infinity(CONFIG), BitTokenizer(tokenizer.config)
        prompts = Prompts(torch.empty(2, 8, 128))
        plan = lower(TECHNIQUES[name], SPEC)
        z = generate(fake_model, fake_tokenizer, prompts, plan=plan, guidance=GUIDED, sampler=GreedySampler())
        assert z.shape == (2, 3, 16, 8) and z.fake_mode is mode


@torch.no_grad()
@pytest.mark.parametrize("chunks", [1, 3])
def test_names_of_blocks_with_and_without_chunks(chunks: int, model: Infinity, features: list[Tensor]) -> None:
    """The published constructor knows no chunk where there is one only."""
    again = Infinity(replace(CONFIG, chunks=chunks)).double().eval().requires_grad_(False)
    names = {f"blocks.{i}.": f"block_chunks.{i}.module.0." if chunks > 1 else f"blocks.{i}." for i in range(3)}
    state = {
        next((new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)), name): t
        for name, t in model.state_dict().items()
    }
    assert "blocks.2.ffn.fc2.bias" in model.state_dict()
    assert len(state) == len(model.state_dict()) and again.state_dict().keys() == state.keys()
    again.load_state_dict(state)
    inputs = torch.ones(3, sum(TOKENS) - 1, CONFIG.bits).double()
    assert torch.equal(again(Prompts.of(features), inputs), model(Prompts.of(features), inputs))


def test_what_does_not_run_is_refused(draw: Draw, model: Infinity) -> None:
    for guidance in (replace(GUIDED, layer=-4), replace(GUIDED, layer=1), replace(GUIDED, strengths=(3.0,))):
        with pytest.raises(ModelError, match="guidance"):
            draw(guidance=guidance)
    with pytest.raises(ModelError, match="made for 8"):
        draw(prompts=Prompts.of([torch.ones(9, 128)]))


@pytest.mark.parametrize(
    "changed", [{"heads": 3}, {"chunks": 2}, {"text_channels": 64}, {"levels": 4}, {"width": 66, "heads": 11}]
)
def test_sizes_that_no_network_has_are_refused(changed: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"divide|embeddings"):
        replace(CONFIG, **changed)


def test_prompts_from_a_file(tmp_path: Path, features: list[Tensor]) -> None:
    path = tmp_path / "prompts.safetensors"
    save_prompts(path, features)
    found, want = load_prompts(path), Prompts.of(features)
    assert len(found) == 3 and found.present_NT is not None and want.present_NT is not None
    assert torch.equal(found.features_NTC, want.features_NTC) and torch.equal(found.present_NT, want.present_NT)
    for broken in (
        {"features": torch.ones(4, 8)},
        {"features": torch.ones(4, 8), "lengths": torch.tensor([1, 2])},
        {"features": torch.ones(4, 8), "lengths": torch.tensor([4, 0])},
        {"features": torch.ones(4, 8), "lengths": torch.tensor([4.0])},
    ):
        save_file(broken, path)
        with pytest.raises(ModelError, match=r"prompts\.safetensors"):
            load_prompts(path)
    save_prompts(path, features, [features[1]] * 3)
    away = load_prompts(path).negative
    assert away is not None and torch.equal(away.features_NTC, features[1].expand(3, -1, -1))
    save_prompts(path, features, features[:2])
    with pytest.raises(ModelError, match="2 negative prompts for 3 prompts"):
        load_prompts(path)
    path.write_bytes(b"no")
    with pytest.raises(ModelError, match="cannot read"):
        load_prompts(path)
    with pytest.raises(ModelError, match="cannot read"):
        load_prompts(tmp_path / "absent.safetensors")


def test_schedules() -> None:
    for ratio in ratios():
        sizes = [token_maps(ratio, pixels) for pixels in get_args(Pixels)]
        assert [len(s) for s in sizes] == [7, 10, 12, 13]
        assert all(a[0] <= b[0] and a[1] <= b[1] and a != b for a, b in pairwise(sizes[-1]))
        assert all(sizes[-1][: len(s)] == s for s in sizes) and finest_map(ratio) == sizes[-1][-1]
        height, width = finest_map(ratio)
        assert abs(height / width - ratio) < 0.01
    assert token_maps(0.5, "1M") == tuple((w, h) for h, w in token_maps(2.0, "1M"))
    for ratio, pixels in ((1.1, "1M"), (1.0, "2M")):
        with pytest.raises(ModelError, match="no schedule"):
            token_maps(ratio, pixels)


def test_positions_lie_on_the_finest_map() -> None:
    angle = angles(((1, 1), (2, 4)), (4, 8), 8, torch.device("cpu"))
    torch.testing.assert_close(angle[1:, 0], torch.tensor([0.0] * 4 + [2.0] * 4))
    torch.testing.assert_close(angle[1:, 3], torch.tensor([0.0, 0.02, 0.04, 0.06] * 2))
