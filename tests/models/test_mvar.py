"""M-VAR: the published code's outputs on its own random weights, and the state that layers hand on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models.fixtures import (
    DECODED,
    Case,
    ClassConditional,
    Watched,
    cases,
    class_conditional,
    folders,
    rounding,
)
from tests.models.rerun import rerunning
from varsearch.models.generation import GuidanceSchedule, generate
from varsearch.models.mamba import MambaConfig
from varsearch.models.mvar import MVAR, MVARConfig
from varsearch.models.sampling import TeacherForcing
from varsearch.models.seams import Guidance, Plan, ScalePlan
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import VQVAE, TokenizerConfig


@pytest.fixture(params=folders("mvar.safetensors"))
def fixture(request: pytest.FixtureRequest) -> ClassConditional:
    return class_conditional(request.param)


@pytest.mark.parity
@torch.no_grad()
def test_the_mixer_alone(fixture: ClassConditional) -> None:
    out, _ = fixture.transformer.layers[0].mamba(fixture.io["unit.mamba_in"])
    torch.testing.assert_close(out, fixture.io["unit.mamba_out"], atol=1e-5, rtol=0)


@pytest.mark.parity
@torch.no_grad()
def test_tokens_exactly(fixture: ClassConditional) -> None:
    tokens = fixture.vae.encode(fixture.io["tf.image"])
    for k, found in enumerate(tokens):
        assert torch.equal(found, fixture.io[f"tf.idx.{k}"])
    torch.testing.assert_close(
        fixture.vae.quantize.teacher_input(tokens), fixture.io["tf.input"], atol=1e-5, rtol=1.3e-6
    )


@pytest.mark.numerics
@pytest.mark.parity
@pytest.mark.parametrize("folder", folders("mvar.safetensors"))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@torch.no_grad()
def test_teacher_forced_logits(folder: str, dtype: torch.dtype) -> None:
    fixture = class_conditional(folder, dtype)
    logits, want = fixture.transformer(fixture.io["tf.labels"], fixture.io["tf.input"]), fixture.io["tf.logits"]
    runs = 1 if dtype == torch.float64 else 2  # in single precision
    atol = runs * rounding(want, fixture.transformer.config.depth)
    torch.testing.assert_close(logits, want, atol=atol, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize(("folder", "case"), cases("mvar.safetensors"))
def test_generation(folder: str, case: Case) -> None:
    fixture = class_conditional(folder)
    found = fixture.generate(case)
    images, logits = fixture.sway(case, found)
    for k, drawn in enumerate(found.tokens):
        assert torch.equal(drawn, fixture.io[f"gen.{case.name}.idx.{k}"])
    want = fixture.io[f"gen.{case.name}.logits_cfg"]
    torch.testing.assert_close(torch.cat(found.logits, dim=1), want, atol=fixture.rounding(case) + logits, rtol=0)
    torch.testing.assert_close(found.images, fixture.io[f"gen.{case.name}"], atol=DECODED + images, rtol=0)


CONFIG = MVARConfig(
    ((1, 1), (2, 2), (3, 3), (5, 5)), depth=2, width=48, heads=3, classes=4, vocab=16, z_channels=4,
    mamba=MambaConfig(state=8, conv=3, expand=2, head_dim=16),
)  # fmt: skip


CASE = Case("sampled", False, seed=1, guidance=2.0, top_k=5, top_p=0.9)


def build(rerun: bool = False) -> tuple[MVAR, VQVAE]:
    torch.manual_seed(3)
    model = MVAR(CONFIG).double().eval()
    vae = VQVAE(TokenizerConfig(CONFIG.scales, 16, 4, ch=8, ch_mult=(1, 2), res_blocks=1, norm_groups=4)).double()
    for parameter in (*model.parameters(), *vae.parameters()):
        nn.init.normal_(parameter, std=0.3)
    return rerunning(model) if rerun else model, vae.eval()


def dense(**changes: Guidance) -> Plan:
    """The dense plan, with the guidance of scales that are named s0, s1, ... changed."""
    plan = Plan.dense(CONFIG.depth, [h * w for h, w in CONFIG.scales])
    scales = [ScalePlan(s.layers, guidance=changes.get(f"s{k}", s.guidance)) for k, s in enumerate(plan.scales)]
    return Plan(tuple(scales), plan.new_cache)


@pytest.mark.numerics
@pytest.mark.parametrize("plan", [dense(), dense(s2=Guidance.OFF, s3=Guidance.OFF)])
def test_handing_on_the_state_equals_rerunning_the_mixer(plan: Plan) -> None:
    found = []
    for rerun in (False, True):
        sampler = Watched(CASE, len(CONFIG.scales))
        labels = torch.tensor([0, 3, 1])
        f_hat = generate(
            *build(rerun), labels, plan=plan, guidance=GuidanceSchedule.ramp(len(plan.scales), 2.0), sampler=sampler
        )
        found.append((f_hat, torch.cat(sampler.logits, 1)))
    torch.testing.assert_close(found[0], found[1], atol=1e-10, rtol=0)
    assert found[0][1].std() > 0.1


@pytest.mark.numerics
def test_one_pass_over_all_scales_gives_the_logits_of_the_loop() -> None:
    model, vae = build()
    labels, tokens = torch.tensor([2, 0]), [torch.randint(0, 16, (2, h * w)) for h, w in CONFIG.scales]
    teacher = TeacherForcing(tokens)
    generate(model, vae, labels, plan=dense(), guidance=GuidanceSchedule.none(len(dense().scales)), sampler=teacher)
    with torch.no_grad():
        logits = model(labels, vae.quantize.teacher_input(tokens))
    nll = nn.functional.cross_entropy(logits.mT, torch.cat(tokens, 1), reduction="none").sum(1)
    torch.testing.assert_close(teacher.nll_N, nll, atol=1e-10, rtol=0)


def test_no_scale_attends_to_another() -> None:
    """A layer stores neither keys nor values, whatever the plan has room for."""
    model, vae = build()
    caches = [make() for make in dense().new_cache]
    plan = Plan(dense().scales, tuple(lambda cache=cache: cache for cache in caches))
    sampler = Watched(CASE, len(CONFIG.scales))
    generate(
        model, vae, torch.tensor([0]), plan=plan, guidance=GuidanceSchedule.ramp(len(plan.scales), 2.0), sampler=sampler
    )
    assert [cache.nbytes for cache in caches] == [0, 0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shared_adaln": True}, "no shared AdaLN"),
        ({"width": 36}, "heads of 16 channels do not divide an inner width of 72"),
        ({"scales": ((1, 1), (2, 3))}, "maps of M-VAR are square"),
        ({"heads": 5}, "5 heads do not divide a width of 48"),
    ],
)
def test_shapes_of_no_model_are_refused(change: dict[str, object], reason: str) -> None:
    own = {name: getattr(CONFIG, name) for name in MVARConfig.__dataclass_fields__}
    with pytest.raises(ValueError, match=reason):
        MVARConfig(**own | change)
    assert isinstance(CONFIG, VARConfig)
