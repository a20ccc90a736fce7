"""Techniques on M-VAR: what layers hand on is right for whatever rows, tokens and scales a technique leaves."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tests.accel.techniques import DENSE, TECHNIQUES
from tests.accel.test_against_oracle import GUIDANCE, Recorder, inputs
from tests.conftest import SCALES, build_tiny
from tests.models.rerun import rerunning
from varsearch.accel import apply
from varsearch.evaluators.trace import trace
from varsearch.models.generation import GuidanceSchedule, generate
from varsearch.models.image_model import ImageModel
from varsearch.models.mamba import MambaConfig
from varsearch.models.mvar import MVAR, MVARConfig
from varsearch.models.seams import (
    Branch,
    BranchMemory,
    Fork,
    Guidance,
    LayerPlan,
    LayerState,
    Plan,
    ScalePlan,
    Sublayer,
)
from varsearch.policy import Policy
from varsearch.target import Target

CONFIG = MVARConfig(
    SCALES, depth=3, width=64, heads=4, classes=10, vocab=32, z_channels=8, mamba=MambaConfig(state=8, head_dim=16)
)
pytestmark = pytest.mark.numerics

N = 4
Logits = dict[tuple[int, int], Tensor]


@cache
def build(rerun: bool = False) -> ImageModel:
    """The tiny model in double precision, with an M-VAR of its shape for a transformer."""
    model = build_tiny()
    torch.manual_seed(2)
    transformer = MVAR(CONFIG)
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.15)
    transformer.double().eval().requires_grad_(False)
    model.tokenizer.double()
    return replace(model, transformer=rerunning(transformer) if rerun else transformer)


def logits(model: ImageModel, plan: Plan, guidance: float | None = GUIDANCE) -> Logits:
    labels, tokens = inputs(model, N, seed=3)
    recorder = Recorder(tokens)
    generate(
        model.transformer,
        model.tokenizer,
        labels,
        plan=plan,
        guidance=GuidanceSchedule.ramp(len(plan.scales), guidance or 0.0),
        sampler=recorder,
    )
    return recorder.logits


def of_policy(model: ImageModel, policy: Policy) -> Logits:
    """With state-space branches that run as the feed-forward ones do, and decisions that part the images."""
    with apply(model, policy) as fast:
        return logits(fast.model, replace(fast.plan, scales=tuple(map(extended, fast.plan.scales))))


def extended(scale: ScalePlan) -> ScalePlan:
    layers = tuple(replace(layer, between=layer.ffn) for layer in scale.layers)
    if scale.fork is None:
        return replace(scale, layers=layers)
    tails = tuple(tuple(map(extended, tail)) for tail in scale.fork.tails)
    return replace(scale, layers=layers, fork=Fork(TakingTurns(len(tails)), tails))


class TakingTurns:
    """Image i takes action i modulo their number."""

    def __init__(self, actions: int) -> None:
        self.actions = actions

    def __call__(self, before: Tensor, after: Tensor, states: list[LayerState], decode: object) -> tuple[Tensor, ...]:
        return tuple(torch.arange(action, len(after), self.actions) for action in range(self.actions))


def spread(found: Logits, want: Logits) -> float:
    assert found.keys() == want.keys()
    return max(((found[key] - t).abs().max() / t.std()).item() for key, t in want.items())


ACTIVE = (
    "w8", "prune-last", "prune-two", "prune-layers", "prune-entropy", "shared", "shared-first", "unguided-last",
    "decide-skip", "decide-prune", "window-ragged",
)  # fmt: skip


@pytest.mark.parametrize("name", ["dense", "skip-middle", *ACTIVE])
def test_techniques_go_on_from_the_state_as_from_all_inputs(name: str) -> None:
    found = of_policy(build(), TECHNIQUES[name])
    assert spread(found, of_policy(build(rerun=True), TECHNIQUES[name])) < 1e-9
    if name in ACTIVE:
        dense = of_policy(build(), DENSE)
        assert max((found[key] - dense[key]).abs().max().item() for key in found) > 1e-4


@pytest.mark.parametrize("guidance", Guidance)
def test_images_that_part_go_on_as_they_would_together(guidance: Guidance) -> None:
    dense = build().dense_plan()
    scales = tuple(replace(s, guidance=guidance if k > 2 else s.guidance) for k, s in enumerate(dense.scales))
    forked = replace(scales[1], fork=Fork(TakingTurns(2), (scales[2:], scales[2:])))
    together, apart = replace(dense, scales=scales), replace(dense, scales=(scales[0], forked, *scales[2:]))
    assert spread(logits(build(), apart), logits(build(), together)) < 1e-9


def test_conditional_rows_go_on_alone_where_guidance_ends() -> None:
    dense = build().dense_plan()
    ends = replace(
        dense, scales=tuple(replace(s, guidance=Guidance.OFF) if k > 2 else s for k, s in enumerate(dense.scales))
    )
    found, alone = logits(build(), ends), logits(build(), dense, guidance=None)
    late = [key for key in found if key[1] > 2]
    assert spread({key: found[key] for key in late}, {key: alone[key] for key in late}) < 1e-9


def test_each_branch_runs_as_its_own_field_says() -> None:
    calls: list[tuple[str, object]] = []

    def named(name: str) -> Branch:
        def branch(fn: Sublayer, x_BLD: Tensor, pos_BL: Tensor, memory: BranchMemory, n_images: int) -> Tensor:
            calls.append((name, memory))
            return fn(x_BLD, pos_BL)

        return branch

    dense = build().dense_plan()
    layers = (LayerPlan(attn=named("attn"), between=named("ssm"), ffn=named("ffn")),) * CONFIG.depth
    logits(build(), replace(dense, scales=tuple(replace(scale, layers=layers) for scale in dense.scales)))
    assert [name for name, _ in calls] == ["attn", "ssm", "ffn"] * CONFIG.depth * len(SCALES)
    assert len({id(memory) for _, memory in calls}) == 3 * CONFIG.depth


def test_only_attention_within_a_scale_counts_as_attention() -> None:
    found = trace(build(), DENSE, Target(device="cpu", dtype="float32", batch_size=N))
    products = sum(op.flops for op in found.ops if (op.attention or op.scoring) and op.module.startswith("MVAR"))
    assert products == sum(4 * 2 * N * CONFIG.depth * CONFIG.width * tokens**2 for tokens in build().spec.tokens)
    assert any(op.flops and op.module == "MVAR.blocks.0.mamba" for op in found.ops)
    assert found.kv_bytes == 0
