"""A technique that exists in this test alone: a field of a policy and one class.

The model keeps two of four weights of a linear. Whatever asks the kinds of settings (profiles, the
search, explanations, charts) then knows it, although no other module names it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
from pydantic import Field

from tests.space.test_settings import MNIST
from varsearch.explain.contributions import changes_of
from varsearch.policy import LayerPolicy, Policy
from varsearch.report.policy_charts import caption, techniques
from varsearch.search.sampler.mutation import Moves
from varsearch.search.sampler.prior_mean import Outlook
from varsearch.space import settings as module
from varsearch.space.one_at_a_time import cost_parts, named, probes
from varsearch.space.settings import (
    KINDS,
    Draft,
    Setting,
    SettingKind,
    candidates,
    compose,
    effective,
    register,
    settings_of,
)
from varsearch.target import ModelSpec


class ToyLayer(LayerPolicy):
    """A layer with the toy's field; off by default, as every field."""

    kept_of_four: int = 4


class ToyPolicy(Policy):
    """A policy of such layers."""

    layers: tuple[ToyLayer, ...] = Field(min_length=1)

    @classmethod
    def dense(cls, n_layers: int, n_scales: int) -> ToyPolicy:
        return cls.model_validate({"layers": [{}] * n_layers, "scales": [{}] * n_scales})


class Sparsity(SettingKind):
    """Weights of a layer that stay, of each four."""

    name, technique, saves, guess = "sparsity", "sparse weights", "weights", (1.0, 0.0, -0.25)
    letter = "2", "sparse weights"

    def options(self, spec: ModelSpec, siblings: Sequence[ModelSpec]) -> Iterator[Setting]:
        for i in range(spec.n_layers):
            yield from (Setting(self.name, kept, layer=i) for kept in (3, 2))

    def found(self, policy: Policy) -> Iterator[Setting]:
        for i, layer in enumerate(policy.layers):
            if getattr(layer, "kept_of_four", 4) < 4:
                yield Setting(self.name, layer.kept_of_four, layer=i)

    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        for s in chosen:
            assert s.layer is not None
            draft.layers[s.layer]["kept_of_four"] = s.value

    def text(self, value: int) -> str:
        return f"{value}of4"


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "Policy", ToyPolicy)
    register(Sparsity())
    yield
    del KINDS[Sparsity.name]
    settings_of.cache_clear()


DENSE = ToyPolicy.dense(6, 6)


def toys() -> list[Setting]:
    return [s for s in candidates(MNIST) if s.kind == Sparsity.name]


def test_it_is_offered_from_mild_to_strong() -> None:
    assert [s.name for s in toys()][:3] == ["L0.sparsity=3of4", "L0.sparsity=2of4", "L1.sparsity=3of4"]
    assert len(toys()) == 2 * MNIST.n_layers
    assert [s for s in candidates(MNIST) if s.kind != Sparsity.name] == _without_the_toy()


def _without_the_toy() -> list[Setting]:
    kind = KINDS.pop(Sparsity.name)
    try:
        return candidates(MNIST)
    finally:
        register(kind)


def test_it_is_applied_found_described_and_removed() -> None:
    for setting in toys():
        policy = setting.apply(DENSE)
        assert policy.digest != DENSE.digest and settings_of(policy) == (setting,)
        assert setting.remove(policy) == DENSE
    assert toys()[1].describe() == ("layer 0", "sparse weights", "2of4")


def test_it_stands_beside_all_other_settings() -> None:
    one_each = {s.kind: s for s in reversed(candidates(MNIST))}
    for other in one_each.values():
        both = compose(MNIST, [toys()[0], other])
        assert both == compose(MNIST, [other, toys()[0]])
        expected = {toys()[0], other} if other.kind != Sparsity.name else {other}
        assert {*settings_of(both)} == {*effective(expected)}


def test_a_profile_measures_it() -> None:
    found = probes(MNIST)
    assert "L3.sparsity=2of4" in found.singles
    used = {s.kind for chosen in found.policies.values() for s in chosen}
    assert Sparsity.name in used
    assert {named(part) for part in cost_parts(found.singles["L3.sparsity=2of4"])} == {"L0.sparsity=2of4"}
    assert "L0.sparsity=2of4" in found.parts


def test_the_search_expects_and_mutates_it() -> None:
    outlook = Outlook(MNIST, (), None)
    strongest = tuple(s for s in toys() if s.value == 2)
    rows = outlook.rows([(), strongest])
    assert outlook.loss(rows).tolist() == pytest.approx([0, Sparsity.guess[0]])
    assert outlook.memory(rows)[1] < outlook.memory(rows)[0] == 1
    moves, rng = Moves(outlook), random.Random(0)
    drawn = [moves.edited((), rng) for _ in range(200)]
    assert any(s.kind == Sparsity.name for chosen in drawn for s in chosen)
    assert outlook.others([strongest]) == [{}], "nothing is beside what is expected"


def test_explanations_and_charts_show_it() -> None:
    policy = compose(MNIST, toys()[-1:])
    (row,) = changes_of(policy)
    assert (row.unit, row.kind, row.setting, row.without) == ("layer 5", "sparse weights", "2of4", DENSE)
    assert [techniques(policy, i, 0) for i in (0, 5)] == ["", "2"] and "2: sparse weights" in caption(policy)
