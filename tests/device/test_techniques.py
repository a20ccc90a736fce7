"""On a device that refuses what CUDA refuses, every policy draws the CPU's images and launches no more than before."""

from __future__ import annotations

import pytest
import torch

from tests.device import pretend
from tests.device.runs import CASES, COUNTED, MODELS, N, counts, images, on_device, policies, stored
from varsearch.accel import apply, labels_for
from varsearch.calibration import Calibration
from varsearch.evaluators.calibrate import calibrate, protocol_of
from varsearch.evaluators.draws import Drawing
from varsearch.evaluators.per_image import likelihoods
from varsearch.models.sampling import PairedSampler
from varsearch.target import Family

pytestmark = pytest.mark.skipif(not pretend.install(), reason="this PyTorch registers no back-ends in Python")
each_case = pytest.mark.parametrize(("family", "name"), CASES)


@each_case
def test_images_are_the_cpus(family: Family, name: str) -> None:
    policy = policies(family)[name]
    assert torch.equal(images(on_device(family), policy), images(MODELS[family], policy))


@pytest.mark.parametrize(("family", "name"), COUNTED)
def test_launches_and_transfers_do_not_rise(family: Family, name: str) -> None:
    (launches, transfers), log = counts(family, name)
    before = stored()[family][name]
    assert launches <= before.launches, "more launches: python -m tests.device.runs, if that is what you want"
    assert transfers <= before.transfers, dict(log.transfers)


def test_the_file_names_what_there_is() -> None:
    assert {(family, name) for family, rows in stored().items() for name in rows} == set(COUNTED)


def test_noise_of_a_stream_is_copied_and_equal() -> None:
    labels_N, model = torch.arange(N, device=pretend.NAME), on_device("var")
    with pretend.logged() as log:
        found = model.generate(labels_N, PairedSampler(1, range(N)))
    assert torch.equal(found.cpu(), MODELS["var"].generate(torch.arange(N), PairedSampler(1, range(N))))
    assert log.transfers.total() == len(MODELS["var"].spec.scales)


def test_noise_of_a_counter_is_made_on_the_device() -> None:
    policy, model = policies("var")["dense"], on_device("var")
    # How many images go at once is found out by the trace, which is no work of the device.
    with apply(model, policy) as applied, pretend.logged() as log:
        list(Drawing(seed=1, noise="philox", at_once=2).images(applied, N))
    assert not log.transfers


def test_likelihood_is_the_cpus_and_waits_once() -> None:
    cpu = MODELS["var"]
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(32, (N, n), generator=generator) for n in cpu.spec.tokens]
    labels_N, policy = labels_for(N, cpu.spec.classes), policies("var")["dense"]
    with apply(cpu, policy) as applied:
        want = likelihoods(applied, tokens, labels_N, N)
    there, asked = [t.to(pretend.NAME) for t in tokens], labels_N.to(pretend.NAME)
    with apply(on_device("var"), policy) as applied, pretend.logged() as log:
        found = likelihoods(applied, there, asked, N)
    torch.testing.assert_close(found, want)
    assert log.transfers.total() == 1, dict(log.transfers)


@pytest.mark.parametrize("family", ["var", "infinity"])
def test_calibration_is_the_cpus(family: Family) -> None:
    found, want = (
        calibrate(model, protocol_of(model, images=4, noise="philox")) for model in (on_device(family), MODELS[family])
    )
    for name in Calibration.model_fields.keys() - {"seconds", "skipvar", "fingerprint", "protocol"}:
        mine, theirs = (torch.utils._pytree.tree_leaves(c.model_dump()[name]) for c in (found, want))
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-6), name
    assert found.skipvar.keys() == want.skipvar.keys()


def test_mixed_devices_are_refused() -> None:
    here, there = torch.ones(3), torch.ones(3, device=pretend.NAME)
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="a generator of the device"):
        there.exponential_(generator=torch.Generator())


def test_transfers_are_seen() -> None:
    there = torch.arange(3, device=pretend.NAME)
    with pretend.logged() as log:
        there[[0, 1]]
        there.cpu()
        there[there > 0]
    assert len(log.transfers) == 3 and all("at" in where for where in log.transfers), dict(log.transfers)
