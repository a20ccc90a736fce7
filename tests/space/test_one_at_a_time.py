from __future__ import annotations

import pytest

from tests.search.support.profiles import SIBLING, SPEC
from varsearch.evaluators.cost_model import CostModel, predicted_protocol
from varsearch.models.image_model import ImageModel
from varsearch.space.one_at_a_time import PAIRS, POLICIES, cost_parts, named, probes
from varsearch.space.settings import Setting, candidates, compose, settings_of
from varsearch.target import Target


def test_probes_are_policies_in_which_every_setting_counts() -> None:
    found = probes(SPEC, [SIBLING])
    assert list(found.singles) == [s.name for s in candidates(SPEC, [SIBLING])]
    assert (len(found.pairs), len(found.policies)) == (PAIRS, POLICIES)
    for name, chosen in (found.pairs | found.policies).items():
        policy = compose(SPEC, chosen)
        policy.check(SPEC)
        assert {*settings_of(policy)} == {*chosen} and name == named(chosen)
    assert all(a.unit != b.unit for a, b in found.pairs.values())
    assert probes(SPEC, [SIBLING]) == found != probes(SPEC, [SIBLING], seed=1)


def test_policies_go_from_light_to_heavy() -> None:
    sizes = [len(chosen) for chosen in probes(SPEC, [SIBLING]).policies.values()]
    assert sum(sizes[:4]) < sum(sizes[4:8]) < sum(sizes[8:]) + 10 and max(sizes) > 4 * min(sizes)


def test_every_part_of_a_policys_cost_is_known() -> None:
    for seed in range(5):
        found = probes(SPEC, [SIBLING], seed)
        for chosen in (found.singles | found.pairs | found.policies).values():
            assert {named(part) for part in cost_parts(chosen)} <= found.parts.keys()


@pytest.mark.parametrize("layer", [0, 1])
def test_costs_are_those_of_layer_0_and_of_the_number_of_heads(layer: int) -> None:
    keep = [Setting("keep", share, layer=layer, head=head, heads=2) for head, share in ((0, 0.5), (1, 0.5))]
    window, skip = Setting("window", 1, layer=layer, scale=2, heads=2), Setting("skip", True, scale=3)
    assert [named(part) for part in cost_parts([*keep, window, skip])] == [
        "L0S2.window=1",
        "S3.skip=yes",
        "L0H0.keep=0.5 + L0H1.keep=0.5",
    ]
    assert named(cost_parts(keep[1:])[0]) == "L0H0.keep=0.5"


@pytest.mark.parametrize(
    "name",
    [
        "L2.fc1=4bit",
        "L2H0.keep=0 + L2H1.keep=0",
        "L2.kv_bits=4bit",
        "L2S4.window=2",
        "L2S4.tokens=0.5",
        "L2S4.ffn=shared",
    ],
)
def test_a_setting_costs_the_same_in_every_layer(tiny: ImageModel, name: str) -> None:
    by_name = {setting.name: setting for setting in candidates(tiny.spec)}
    chosen = [by_name[part] for part in name.split(" + ")]
    (part,) = cost_parts(chosen)
    assert part != tuple(chosen)
    target = Target(device="4090", dtype="float16", batch_size=8)
    model = CostModel(tiny, predicted_protocol(target))
    there, here = (model.evaluate(compose(tiny.spec, some)).values for some in (chosen, part))
    assert there == pytest.approx(here, rel=1e-9)
