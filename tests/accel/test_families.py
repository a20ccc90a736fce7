"""Every technique on every family: it runs and has its effect and exact costs, or it is refused with the reason."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tests.accel.families import FAMILIES, small_infinity
from tests.accel.techniques import DENSE, TECHNIQUES, layers
from tests.conftest import build_tiny
from tests.evaluators.held import table_bytes
from varsearch.accel import apply
from varsearch.errors import PolicyError
from varsearch.evaluators.decisions import listening, with_shares
from varsearch.evaluators.trace import Trace, trace
from varsearch.evaluators.workload import default_sampler, run_batch
from varsearch.policy import LINEARS, Policy, Quantization, Weights
from varsearch.target import Family, Target

N = 4
CPU = Target(device="cpu", dtype="float32", batch_size=N)
OF_FAMILY = {f"w4-{linear}": layers(weights=Weights(**{linear: Quantization(bits=4)})) for linear in LINEARS}
ALL = TECHNIQUES | OF_FAMILY
WITHIN = "attends within each scale"
REFUSED: dict[Family, dict[str, str]] = {
    "var": {f"w4-{linear}": "no such linear" for linear in LINEARS if linear.startswith(("text", "ssm"))},
    "mvar": {f"w4-{linear}": "no such linear" for linear in LINEARS if linear.startswith("text")}
    | {name: WITHIN for name in TECHNIQUES if name.startswith(("kv", "cross-scale"))}
    | {name: "no other model can take over" for name in TECHNIQUES if name.startswith("refine")},
    "infinity": {f"w4-{linear}": "no such linear" for linear in LINEARS if linear.startswith("ssm")}
    | dict.fromkeys(("w3-ada", "w4-ada"), "share one AdaLN projection"),
}
PAIRS = [(family, name) for family in FAMILIES for name in ALL if name not in REFUSED[family]]
each_pair = pytest.mark.parametrize(("family", "name"), PAIRS)


@cache
def policy_of(family: Family, name: str) -> Policy:
    """The policy, with the family's refiner, and with the shares that the images of the real run have."""
    policy = ALL[name]
    if policy.refiner and family == "infinity":
        refiner = policy.refiner.model_copy(update={"fingerprint": small_infinity().spec.fingerprint})
        policy = policy.model_copy(update={"refiner": refiner})
    if not policy.decisions:
        return policy
    with apply(FAMILIES[family], policy) as applied:
        ears, heard = listening(applied)
        run_batch(ears, N, default_sampler(applied.model))
    return with_shares(policy, heard)


@cache
def traced(family: Family, name: str) -> Trace:
    return trace(FAMILIES[family], policy_of(family, name), CPU)


@cache
def dense_images(family: Family) -> Tensor:
    with apply(FAMILIES[family], DENSE) as applied:
        return applied.images(torch.arange(N), seed=1)


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in REFUSED for name in REFUSED[family]])
def test_refused_with_the_reason(family: Family, name: str) -> None:
    model = FAMILIES.get(family) or build_tiny()
    with pytest.raises(PolicyError, match=REFUSED[family][name]), apply(model, ALL[name]):
        pass


@each_pair
def test_it_acts_and_is_undone(family: Family, name: str) -> None:
    model, labels, dense = FAMILIES[family], torch.arange(N), dense_images(family)
    with apply(model, policy_of(family, name)) as applied:
        images = applied.images(labels, seed=1)
    if policy_of(family, name).layers != DENSE.layers:  # nothing else touches the model
        with apply(model, DENSE) as applied:
            assert torch.equal(applied.images(labels, seed=1), dense)
    assert images.isfinite().all() and images.shape == dense.shape
    found, usual = traced(family, name), traced(family, "dense")
    costs = [(t.flops, t.weight_bytes, t.kv_bytes, t.peak_bytes) for t in (found, usual)]
    assert (name == "dense") == (costs[0] == costs[1])


@each_pair
def test_costs_are_those_of_a_real_run(family: Family, name: str) -> None:
    model, found = FAMILIES[family], traced(family, name)
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping = {attention: lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    policy = policy_of(family, name)
    with apply(model, policy) as applied, counter:
        run_batch(applied, N, default_sampler(model))
    assert found.flops == counter.get_total_flops()
    with apply(model, policy) as applied, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        run_batch(applied, N, default_sampler(model))
        tables = table_bytes(applied)
    now = peak = 0
    for event in run.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert found.peak_bytes == pytest.approx(found.weight_bytes + peak + tables, rel=0.02)
