"""Whole generations captured and repeated: the same images, with nothing from the host in between."""

from __future__ import annotations

import pytest
import torch

from tests.accel.families import FAMILIES
from tests.accel.rehearsal import HostNeededError, recorded
from tests.accel.techniques import DENSE, TECHNIQUES
from tests.accel.test_families import REFUSED, policy_of
from tests.conftest import build_tiny
from varsearch.accel import apply
from varsearch.accel.graphs import Graphs, noise_of, unsupported
from varsearch.errors import TargetError, UsageError
from varsearch.models.image_model import ImageModel
from varsearch.models.sampling import GreedySampler, PairedSampler, PublishedSampler, TeacherForcing
from varsearch.target import Family

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
MODELS: dict[Family, ImageModel] = {"var": build_tiny(), **FAMILIES}
PAIRS = [
    (family, name)
    for family in MODELS
    for name in TECHNIQUES
    if name not in REFUSED[family] and not name.startswith("decide")
]


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_repeated_generations_are_those_of_eager_execution(family: Family, name: str) -> None:
    model, policy = MODELS[family], TECHNIQUES[name] if family == "var" else policy_of(family, name)
    with apply(model, policy) as applied:
        graphs = Graphs(applied.model, applied.plan, recorded)
        for seed, labels in ((3, torch.tensor([1, 2])), (4, torch.tensor([0, 3]))):
            sampler = PairedSampler(seed, range(2), top_k=5)
            want = applied.generate(labels, PairedSampler(seed, range(2), top_k=5))
            assert torch.equal(graphs(labels, sampler), want)
        assert len(graphs.made) == 1


def test_another_number_of_images_is_another_graph() -> None:
    with apply(build_tiny(), DENSE) as applied:
        graphs = Graphs(applied.model, applied.plan, recorded)
        for n in (1, 2, 1):
            graphs(torch.arange(n), GreedySampler())
        assert [key[0] for key in graphs.made] == [1, 2]


def test_the_published_sampler_draws_what_it_draws() -> None:
    logits = torch.randn(3, 50, 32, generator=torch.Generator().manual_seed(0))
    codebook = torch.arange(32.0)[:, None]
    first, second = (PublishedSampler(torch.Generator().manual_seed(1), 0, 0.0) for _ in range(2))
    noise = noise_of(second, logits.view(-1, 32), 0).view_as(logits)
    assert torch.equal(codebook[(logits + noise).argmax(-1)], first(logits, 0, codebook))


def test_a_sampler_without_noise_is_refused() -> None:
    with pytest.raises(UsageError, match="takes its noise as an input, which TeacherForcing has none of"):
        noise_of(TeacherForcing([torch.zeros(1, 1)]), torch.zeros(1, 1, 2), 0)


def test_the_stand_in_notices_the_host() -> None:
    x = torch.ones(3)
    with pytest.raises(HostNeededError, match="waits for the device"):
        recorded(lambda: x * x.sum().item())
    with pytest.raises(HostNeededError, match="the host has just made"):
        recorded(lambda: x[[0, 2]])


def test_reasons() -> None:
    with apply(build_tiny(), TECHNIQUES["decide-skip"]) as applied:
        assert unsupported(applied.plan, CUDA) == "images decide on their way, which the host has to ask them"
    with apply(build_tiny(), DENSE) as applied:
        assert unsupported(applied.plan, CUDA) is None and applied.execution == "eager"
        assert unsupported(applied.plan, CPU) == "graphs are of CUDA devices, not of cpu"
    cannot = pytest.raises(TargetError, match="execution 'graphs' cannot run here: graphs are of CUDA devices")
    with cannot, apply(build_tiny(), DENSE, execution="graphs"):
        pass
    unknown = pytest.raises(UsageError, match="unknown execution 'fast': expected one of eager, graphs")
    with unknown, apply(build_tiny(), DENSE, execution="fast"):  # type: ignore[arg-type]
        pass
