"""M-VAR: the published code's outputs on its own random weights, and the state that layers hand on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.models.fixtures import Case, ClassConditional, cases, class_conditional, folders
from tests.models.rerun import rerunning
from varsearch.models.generation import GuidanceSchedule, generate
from varsearch.models.mamba import MambaConfig
from varsearch.models.mvar import MVAR, MVARConfig
from varsearch.models.sampling import PublishedSampler, TeacherForcing, filter_logits
from varsearch.models.seams import Guidance, Plan, ScalePlan
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import VQVAE, TokenizerConfig


class Watched(PublishedSampler):
    """Notes the guided logits and the tokens that are drawn from them."""

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        self.__dict__.setdefault("logits", []).append(logits_NLV)
        again = torch.Generator()
        again.set_state(self.generator.get_state())
        p_NLV = filter_logits(logits_NLV, self.top_k, self.top_p).softmax(-1)
        index_M = torch.multinomial(p_NLV.flatten(0, 1), 1, replacement=True, generator=again)
        self.__dict__.setdefault("drawn", []).append(index_M.view(logits_NLV.shape[:2]))
        return super().__call__(logits_NLV, scale, codebook_VC)


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
def test_tokens_exactly_and_teacher_forced_logits(fixture: ClassConditional) -> None:
    tokens = fixture.vae.encode(fixture.io["tf.image"])
    for k, found in enumerate(tokens):
        assert torch.equal(found, fixture.io[f"tf.idx.{k}"])
    torch.testing.assert_close(fixture.vae.quantize.teacher_input(tokens), fixture.io["tf.input"])
    logits = fixture.transformer(fixture.io["tf.labels"], fixture.io["tf.input"])
    torch.testing.assert_close(logits, fixture.io["tf.logits"], atol=1e-4, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize(("folder", "case"), cases("mvar.safetensors"))
def test_generation(folder: str, case: Case) -> None:
    fixture = class_conditional(folder)
    smooth = len(fixture.transformer.config.scales) if case.smooth else 0
    sampler = Watched(torch.Generator().manual_seed(case.seed), case.top_k, case.top_p, smooth)
    images = fixture.images(case.guidance, sampler)
    for k, drawn in enumerate(sampler.drawn):
        assert torch.equal(drawn, fixture.io[f"gen.{case.name}.idx.{k}"])
    # The last temperature of smooth sampling is 0.0135, which amplifies rounding some seventy times: there the logits,
    # up to 45, of the published code and of this one both differ by 4e-4 from those in double precision.
    for found, want, atol in (
        (torch.cat(sampler.logits, dim=1), fixture.io[f"gen.{case.name}.logits_cfg"], 1e-3 if smooth else 1e-4),
        (images, fixture.io[f"gen.{case.name}"], 5e-4 if smooth else 1e-4),
    ):
        torch.testing.assert_close(found, want, atol=atol, rtol=0)


CONFIG = MVARConfig(
    ((1, 1), (2, 2), (3, 3), (5, 5)), depth=2, width=48, heads=3, classes=4, vocab=16, z_channels=4,
    mamba=MambaConfig(state=8, conv=3, expand=2, head_dim=16),
)  # fmt: skip


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


@pytest.mark.parametrize("plan", [dense(), dense(s2=Guidance.OFF, s3=Guidance.OFF)])
def test_handing_on_the_state_equals_rerunning_the_mixer(plan: Plan) -> None:
    found = []
    for rerun in (False, True):
        sampler = Watched(torch.Generator().manual_seed(1), top_k=5, top_p=0.9)
        labels = torch.tensor([0, 3, 1])
        f_hat = generate(
            *build(rerun), labels, plan=plan, guidance=GuidanceSchedule.ramp(len(plan.scales), 2.0), sampler=sampler
        )
        found.append((f_hat, torch.cat(sampler.logits, 1)))
    torch.testing.assert_close(found[0], found[1], atol=1e-10, rtol=0)
    assert found[0][1].std() > 0.1


def test_one_pass_over_all_scales_gives_the_logits_of_the_loop() -> None:
    model, vae = build()
    labels, tokens = torch.tensor([2, 0]), [torch.randint(0, 16, (2, h * w)) for h, w in CONFIG.scales]
    teacher = TeacherForcing(tokens)
    generate(model, vae, labels, plan=dense(), guidance=GuidanceSchedule.none(len(dense().scales)), sampler=teacher)
    with torch.no_grad():
        logits = model(labels, vae.quantize.teacher_input(tokens))
    nll = nn.functional.cross_entropy(logits.mT, torch.cat(tokens, 1), reduction="none").sum(1)
    # The teacher takes likelihoods in fp32.
    torch.testing.assert_close(teacher.nll_N, nll, atol=1e-4, rtol=0)


def test_no_scale_attends_to_another() -> None:
    """A layer stores neither keys nor values, whatever the plan has room for."""
    model, vae = build()
    caches = [make() for make in dense().new_cache]
    plan = Plan(dense().scales, tuple(lambda cache=cache: cache for cache in caches))
    sampler = Watched(torch.Generator().manual_seed(1), 5, 0.9)
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
