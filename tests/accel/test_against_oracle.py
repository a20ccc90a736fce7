"""The fast path gives the logits of the slow reference that masks instead of skipping."""

from __future__ import annotations

import random
from copy import copy
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.accel.oracle import decided
from tests.accel.techniques import TECHNIQUES
from tests.conftest import build_tiny
from varsearch.accel import apply
from varsearch.models.image_model import ImageModel
from varsearch.policy import Policy
from varsearch.space import SearchSpace

GUIDANCE = 2.0


class Recorder:
    """Chooses given tokens and keeps each image's logits, so that a rounding difference cannot flip a token."""

    def __init__(self, tokens: list[Tensor]) -> None:
        self.tokens, self.images = tokens, list(range(len(tokens[0])))
        self.logits: dict[tuple[int, int], Tensor] = {}

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        self.logits |= {(image, scale): row for image, row in zip(self.images, logits_NLV, strict=True)}
        return codebook_VC[self.tokens[scale][self.images]]

    def take(self, images_M: Tensor) -> Recorder:
        taken = copy(self)
        taken.images = [self.images[i] for i in images_M.tolist()]
        return taken


@cache
def exact(shared_adaln: bool = False, cosine: bool = True) -> ImageModel:
    """The tiny model in double precision: rounding to few bits turns any difference in fp32 into a step."""
    model = build_tiny(shared_adaln, cosine)
    for part in (model.transformer, model.tokenizer, model.sibling("small").transformer):
        part.double()
    return model


def inputs(model: ImageModel, n: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(32, (n, count), generator=generator) for count in model.spec.tokens]
    return torch.randint(10, (n,), generator=generator), tokens


def difference(model: ImageModel, policy: Policy, seed: int = 0, n: int = 2) -> float:
    """Largest difference of logits between the fast path and the oracle, relative to their spread."""
    labels, tokens = inputs(model, n, seed)
    recorder = Recorder(tokens)
    with apply(model, policy) as fast:
        fast.model.generate(labels, recorder, fast.plan, GUIDANCE)
    found: dict[tuple[int, int], Tensor] = {}
    together = 1 if policy.decisions else n
    for i in range(0, n, together):
        oracle, _ = decided(model, policy, labels[i : i + together], [t[i : i + together] for t in tokens], GUIDANCE)
        found |= {(i + j, k): logits[j] for k, logits in oracle.logits.items() for j in range(together)}
    assert recorder.logits.keys() == found.keys()
    return max(((recorder.logits[key] - want).abs().max() / want.std()).item() for key, want in found.items())


@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("variant", ["adaln-cosine", "shared-plain"])
def test_each_technique_equals_the_oracle(name: str, variant: str) -> None:
    policy = TECHNIQUES[name]
    if variant == "shared-plain":  # such a model has no ada linear per block
        policy = Policy.model_validate(policy.model_dump(exclude={"layers": {"__all__": {"weights": {"ada"}}}}))
    assert difference(exact(shared_adaln=variant == "shared-plain", cosine=variant != "shared-plain"), policy) < 1e-9


def merged(a: Policy, b: Policy) -> Policy | None:
    """Both techniques in one policy, or None where they set the same field or cannot be built together."""
    dumps = a.model_dump(exclude_defaults=True), b.model_dump(exclude_defaults=True)
    result: dict[str, object] = {}
    if a.decisions and b.decisions:
        return None
    if a.refiner and b.refiner:
        return None
    result["decisions"] = a.decisions or b.decisions
    result["refiner"] = a.refiner or b.refiner
    try:
        for part in ("layers", "scales"):
            result[part] = [joined(*rows) for rows in zip(dumps[0][part], dumps[1][part], strict=True)]
        return Policy.model_validate(result)
    except ValueError:
        return None


def joined(left: dict[str, object], right: dict[str, object]) -> dict[str, object]:
    both = left | right
    for name in left.keys() & right.keys():
        a, b = left[name], right[name]
        if isinstance(a, dict) and isinstance(b, dict):
            both[name] = joined(a, b)
        elif a != b:
            raise ValueError(f"both set {name}")
    return both


PAIRS = [
    (a, b)
    for a in TECHNIQUES
    for b in TECHNIQUES
    if a < b and "dense" not in (a, b) and merged(TECHNIQUES[a], TECHNIQUES[b])
]


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=lambda name: name)
def test_each_pair_of_techniques_equals_the_oracle(a: str, b: str) -> None:
    policy = merged(TECHNIQUES[a], TECHNIQUES[b])
    assert policy is not None
    assert difference(exact(), policy) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_random_policies_equal_the_oracle(seed: int) -> None:
    policy = SearchSpace(exact().spec).random(random.Random(seed), density=0.4)
    assert difference(exact(), policy, seed=seed) < 1e-9
