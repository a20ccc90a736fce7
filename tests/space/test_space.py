from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varsearch.errors import PolicyError
from varsearch.policy import KVCompression, LayerPolicy, Policy
from varsearch.space import SearchSpace
from varsearch.space.presets import seeds
from varsearch.target import ModelSpec

MNIST = ModelSpec(
    name="small",
    n_layers=6,
    n_heads=4,
    head_dim=32,
    scales=((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)),
    classes=10,
    image_size=(32, 32),
)
D16 = ModelSpec(
    name="large",
    n_layers=16,
    n_heads=16,
    head_dim=64,
    scales=tuple((s, s) for s in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
    classes=1000,
    image_size=(256, 256),
)
SHARED_ADALN = D16.model_copy(update={"shared_adaln": True, "n_layers": 2, "n_heads": 2})
MVAR = SHARED_ADALN.model_copy(update={"name": "mvar", "shared_adaln": False, "family": "mvar"})
INFINITY = SHARED_ADALN.model_copy(update={"name": "infinity", "family": "infinity"})
SPECS = [MNIST, D16, SHARED_ADALN, MVAR, INFINITY]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_all_off_is_dense(spec: ModelSpec) -> None:
    assert SearchSpace(spec).decode({}) == Policy.dense(spec.n_layers, len(spec.scales))


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.floats(0, 1), st.sampled_from(SPECS))
def test_every_level_gives_a_valid_policy_that_encodes_back(seed: int, density: float, spec: ModelSpec) -> None:
    space = SearchSpace(spec)
    policy = space.random(random.Random(seed), density)
    policy.check(spec)
    assert space.decode(space.encode(policy)) == policy


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_every_knob_changes_the_policy(spec: ModelSpec) -> None:
    space = SearchSpace(spec)
    # Switches that act only together with others: everything else is on while each is toggled.
    base = {name: 1 for name, n in space.knobs.items() if not name.endswith(".skip") and name != "unguided_scales"}
    for name, n in space.knobs.items():
        found = {space.decode(base | {name: level}).digest for level in range(n)}
        assert len(found) == n, f"levels of {name} are not all different"


def test_seeds_start_with_dense_and_are_distinct() -> None:
    for spec in SPECS:
        found = seeds(spec)
        assert next(iter(found)) == "dense" and found["dense"] == Policy.dense(spec.n_layers, len(spec.scales))
        assert len({p.digest for p in found.values()}) == len(found) >= 10
        for policy in found.values():
            assert SearchSpace(spec).decode(SearchSpace(spec).encode(policy)) == policy


def test_a_policy_outside_the_space_is_refused() -> None:
    odd = KVCompression(keep=(0.9375,) * 4)
    policy = Policy(layers=(LayerPolicy(kv=odd),) * 6, scales=Policy.dense(6, 6).scales)
    with pytest.raises(PolicyError, match="outside the search space"):
        SearchSpace(MNIST).encode(policy)


@pytest.mark.parametrize(("name", "level"), [("L0.bits", 5), ("L0.bits", -1), ("L9.bits", 0), ("colour", 0)])
def test_unknown_knobs_and_levels_are_refused(name: str, level: int) -> None:
    with pytest.raises(PolicyError, match="knob"):
        SearchSpace(MNIST).decode({name: level})


def test_families_have_knobs_for_what_they_have() -> None:
    mvar, infinity = SearchSpace(MVAR).knobs, SearchSpace(INFINITY).knobs
    assert {"L0.ssm_bits", "L0.ada_bits"} <= mvar.keys() and not any("kv" in k or "keep" in k for k in mvar)
    assert {"L0.text_bits", "L0.kv_bits", "L0H1.keep"} <= infinity.keys()
    assert not infinity.keys() & {"L0.ada_bits", "L0.ssm_bits"}
