"""Published systems by name: on which models they work, and as the search takes their settings over."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.space.calibrations import random_calibration
from tests.space.test_space import D16, MNIST, SHARED_ADALN
from varsearch.errors import PolicyError
from varsearch.policy import LayerPolicy, Policy
from varsearch.space import SearchSpace
from varsearch.space.presets import PRESETS, presets, seeds
from varsearch.target import ModelSpec

SPECS = [MNIST, D16, SHARED_ADALN]


def sibling_of(spec: ModelSpec) -> list[ModelSpec]:
    return [spec.model_copy(update={"name": "sibling", "n_layers": 1, "fingerprint": "a" * 64})]


SPACES = {
    spec.name + str(spec.shared_adaln): SearchSpace(spec, presets(spec, random_calibration(spec), sibling_of(spec))[0])
    for spec in SPECS
}


def spec_of(layers: int, heads: int, sides: tuple[int, ...]) -> ModelSpec:
    return MNIST.model_copy(update={"n_layers": layers, "n_heads": heads, "scales": tuple((s, s) for s in sides)})


@settings(max_examples=60)
@given(
    st.builds(
        spec_of, st.integers(1, 4), st.integers(1, 3),
        st.lists(st.integers(2, 9), max_size=7).map(lambda sides: (1, *sorted(sides))),
    ),
    st.integers(0, 9),
)  # fmt: skip
def test_every_preset_fits_or_says_why(spec: ModelSpec, seed: int) -> None:
    found, missing = presets(spec, random_calibration(spec, seed), sibling_of(spec))
    assert found.keys() | missing.keys() == PRESETS.keys() and not found.keys() & missing.keys()
    assert all(reason and "\n" not in reason for reason in missing.values())
    space = SearchSpace(spec, found)
    for policy in found.values():
        policy.check(spec)
        assert space.decode(space.encode(policy)) == policy


def test_all_presets_fit_the_shipped_shape() -> None:
    found, missing = presets(MNIST, random_calibration(MNIST), sibling_of(MNIST))
    assert not missing
    assert len({policy.digest for policy in found.values()}) == len(found)


def test_equal_presets_appear_once() -> None:
    calibration = random_calibration(MNIST)
    same = calibration.model_copy(update={"skipvar": dict.fromkeys(calibration.skipvar, calibration.skipvar[0.84])})
    found, missing = presets(MNIST, same, sibling_of(MNIST))
    assert "skipvar" in found and missing == {"skipvar-88": "the same policy as skipvar on this model"}


def test_what_needs_a_second_model_says_so_where_there_is_none() -> None:
    found, missing = presets(MNIST, random_calibration(MNIST))
    assert missing.keys() == {"code", "code-6"} and not missing.keys() & found.keys()
    assert missing["code"] == (
        "CoDe needs a smaller readable model with the tokenizer of small beside it, and there is none"
    )


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), density=st.floats(0, 1))
def test_every_level_gives_a_valid_policy_that_encodes_back(name: str, seed: int, density: float) -> None:
    space = SPACES[name]
    policy = space.random(random.Random(seed), density)
    policy.check(space.spec)
    assert space.decode(space.encode(policy)) == policy


def test_settings_of_several_systems_meet_in_one_policy() -> None:
    found, _ = presets(MNIST, random_calibration(MNIST))
    space = SearchSpace(MNIST, found)
    levels = {name: space.encode(found[name]) for name in ("hack", "hackpp", "litevar", "toprovar")}
    mixed = dict.fromkeys(space.knobs, 0)
    mixed |= {"L0.kv": levels["hack"]["L0.kv"], "L1.kv": levels["hackpp"]["L1.kv"], "L1.kv_bits": 1}
    mixed |= {"L1.attention": levels["litevar"]["L1.attention"], "decisions": levels["toprovar"]["decisions"]}
    policy = space.decode(mixed)
    assert policy.layers[0] == LayerPolicy(kv=found["hack"].layers[0].kv)
    assert policy.layers[1].kv == found["hackpp"].layers[1].kv.model_copy(update={"bits": 8})
    assert policy.layers[1].attention == found["litevar"].layers[1].attention
    assert policy.layers[2:] == (LayerPolicy(),) * 4 and policy.decisions == found["toprovar"].decisions


def test_what_contradicts_the_rest_is_left_out() -> None:
    found, _ = presets(MNIST, random_calibration(MNIST))
    space = SearchSpace(MNIST, found)
    sparvar, skipvar = space.encode(found["sparvar"]), space.encode(found["skipvar"])
    skipped = space.decode(sparvar | {"S3.skip": 1})
    assert skipped.layers[0].attention.cross_scale is None, "its keys are chosen at scale 3"
    assert skipped.layers[-1].attention == found["sparvar"].layers[-1].attention
    assert space.decode(skipvar | {"S2.skip": 1}).decisions == (), "its images are asked after scale 2"
    space = SPACES["smallFalse"]
    code = space.encode(space.presets["code"])
    assert space.decode(code).refiner == space.presets["code"].refiner
    assert space.decode(code | {"S5.tokens": 1}).refiner is None, "it has no layers that the pruning names"


def test_without_presets_nothing_is_taken_over() -> None:
    space = SearchSpace(MNIST)
    assert space.own == space.knobs
    for name, policy in presets(MNIST, random_calibration(MNIST))[0].items():
        if name not in ("fastvar",):
            with pytest.raises(PolicyError, match="outside the search space"):
                space.encode(policy)


def test_the_digest_follows_what_is_taken_over() -> None:
    found, _ = presets(MNIST, random_calibration(MNIST))
    other, _ = presets(MNIST, random_calibration(MNIST, seed=1))
    digests = {SearchSpace(MNIST, chosen).digest for chosen in ({}, found, other)}
    assert len(digests) == 3 and SearchSpace(MNIST, dict(found)).digest in digests


def test_own_levels_alone_mean_the_same_with_and_without_presets() -> None:
    plain, offered = SearchSpace(MNIST), SPACES["smallFalse"]
    for policy in seeds(MNIST).values():
        assert plain.encode(policy).items() <= offered.encode(policy).items()
    strongest = offered.decode({name: n - 1 for name, n in offered.own.items()})
    assert strongest == plain.decode({name: n - 1 for name, n in plain.knobs.items()})
    assert strongest.decisions == () and isinstance(strongest, Policy)
