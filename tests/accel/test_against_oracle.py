"""The fast path gives the logits of the slow reference that masks instead of skipping."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from copy import copy
from functools import reduce
from itertools import combinations

import pytest
import torch
from torch import Tensor

from tests.accel.oracle import decided
from tests.accel.techniques import TECHNIQUES
from tests.exact import exact
from tests.space.calibrations import random_calibration
from varsearch.accel import apply
from varsearch.errors import PolicyError
from varsearch.models.image_model import ImageModel
from varsearch.policy import Policy
from varsearch.space import SearchSpace
from varsearch.space.presets import presets
from varsearch.target import AttentionName

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


def inputs(model: ImageModel, n: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(32, (n, count), generator=generator) for count in model.spec.tokens]
    return torch.randint(10, (n,), generator=generator), tokens


def difference(
    model: ImageModel, policy: Policy, seed: int = 0, n: int = 2, attention: AttentionName = "sdpa"
) -> float:
    """Largest difference of logits between the fast path and the oracle, relative to their spread."""
    labels, tokens = inputs(model, n, seed)
    recorder = Recorder(tokens)
    with apply(model, policy, attention=attention) as fast:
        fast.model.generate(labels, recorder, fast.plan, GUIDANCE)
    found: dict[tuple[int, int], Tensor] = {}
    together = 1 if policy.decisions else n
    for i in range(0, n, together):
        oracle, _ = decided(model, policy, labels[i : i + together], [t[i : i + together] for t in tokens], GUIDANCE)
        found |= {(i + j, k): logits[j] for k, logits in oracle.logits.items() for j in range(together)}
    assert recorder.logits.keys() == found.keys()
    return max(((recorder.logits[key] - want).abs().max() / want.std()).item() for key, want in found.items())


@pytest.mark.numerics
@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("variant", ["adaln-cosine", "shared-plain"])
def test_each_technique_equals_the_oracle(name: str, variant: str) -> None:
    policy = TECHNIQUES[name]
    if variant == "shared-plain":  # such a model has no ada linear per block
        policy = Policy.model_validate(policy.model_dump(exclude={"layers": {"__all__": {"weights": {"ada"}}}}))
    assert difference(exact(shared_adaln=variant == "shared-plain", cosine=variant != "shared-plain"), policy) < 1e-9


WHOLE = [name for name in TECHNIQUES if name.startswith(("window", "sinks", "band", "cross", "prune-ent", "decide"))]
"""Those whose attention is one request by blocks where somebody computes such requests."""


@pytest.mark.parametrize("name", WHOLE)
def test_each_request_by_blocks_equals_the_oracle(name: str) -> None:
    assert difference(exact(), TECHNIQUES[name], attention="reference") < 1e-9


def test_requests_by_blocks_are_made_of_those_techniques_and_no_others() -> None:
    for name, policy in TECHNIQUES.items():
        with apply(exact(), policy, attention="reference") as applied:
            layers = [layer for scale in applied.plan.scales for layer in scale.layers]
            made = {type(layer.attend).__name__ for layer in layers}
        whole = made & {"BlockHeads", "Deciding", "Following", "WithEntropy"}
        assert bool(whole) == (name in WHOLE and name != "decide-skip"), name


class OverlapError(Exception):
    """Two techniques set the same field, so there is no policy with both."""


def merged(names: Sequence[str]) -> Policy:
    """All these techniques in one policy; `PolicyError` if they are refused together."""
    dumps = [TECHNIQUES[name].model_dump(exclude_defaults=True) for name in names]
    deciding = [dump.pop("decisions") for dump in dumps if "decisions" in dump]
    refiners = [dump.pop("refiner") for dump in dumps if "refiner" in dump]
    for name, values in (("decisions", deciding), ("refiner", refiners)):
        if len(values) > 1:
            raise OverlapError(name)
    parts = {part: [reduce(joined, rows) for rows in zip(*(d[part] for d in dumps), strict=True)] for part in dumps[0]}
    single = {"decisions": deciding[0] if deciding else (), "refiner": refiners[0] if refiners else None}
    return Policy.parse(json.dumps(parts | single))


def joined(left: dict[str, object], right: dict[str, object]) -> dict[str, object]:
    both = left | right
    for name in left.keys() & right.keys():
        a, b = left[name], right[name]
        if isinstance(a, dict) and isinstance(b, dict):
            both[name] = joined(a, b)
        elif a != b:
            raise OverlapError(name)
    return both


def refusal(names: Sequence[str]) -> str | None:
    """Why these techniques make no policy: "" where they set the same field, None where they do make one."""
    try:
        merged(names)
    except OverlapError:
        return ""
    except PolicyError as error:
        return str(error)
    return None


NAMES = [name for name in TECHNIQUES if name != "dense"]
PAIRS = [pair for pair in combinations(NAMES, 2) if refusal(pair) is None]


@pytest.mark.parametrize("names", [p for p in PAIRS if set(p) & set(WHOLE)][::7], ids="+".join)
def test_pairs_by_blocks_equal_the_oracle(names: tuple[str, ...]) -> None:
    assert difference(exact(), merged(names), attention="reference") < 1e-9


def sampled(size: int, count: int) -> list[tuple[str, ...]]:
    """`count` combinations of `size` techniques that can be built together, the same in every run."""
    rng, found = random.Random(size), set[tuple[str, ...]]()
    while len(found) < count:
        names = tuple(sorted(rng.sample(NAMES, size)))
        found |= {names} if refusal(names) is None else set()
    return sorted(found)


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_each_pair_of_techniques_equals_the_oracle(names: tuple[str, ...]) -> None:
    assert difference(exact(), merged(names)) < 1e-9


@pytest.mark.parametrize("names", sampled(3, 60) + sampled(4, 8) + sampled(5, 5) + sampled(6, 3), ids="+".join)
def test_several_techniques_equal_the_oracle(names: tuple[str, ...]) -> None:
    assert difference(exact(), merged(names)) < 1e-9


REFUSED = (
    "guidance cannot resume",
    "decisions[N] is after scale N: expected one of",
    "it may only leave out the last ones of",
    "names layers of the model, but the refiner runs this scale",
    "decides at scale N, which the refiner runs",
    "keep is the budget after every scale and cache_budget after each",
    "decides at scale N, which does not run",
    "decides at scale N, which needs all queries, but prunes tokens there",
    "window and cross_scale both say what scales from N on see",
    "band and cross_scale both say what scales from N on see",
    "a scale that does not run has no other settings",
    "tokens.layer_keep has N shares for N layers",  # one technique names shares, another the layers: no real conflict
)
"""In the order of "What is refused" in docs/policy-format.md; what is not here needs no second technique."""


def test_nothing_but_what_is_documented_is_refused() -> None:
    reasons = {refusal(names) for size in (2, 3) for names in combinations(NAMES, size)} - {"", None}
    met = {reason: [why for why in REFUSED if why in re.sub(r"\d+", "N", reason)] for reason in reasons}
    assert all(len(found) == 1 for found in met.values()), met
    assert {found[0] for found in met.values()} == set(REFUSED)


@pytest.mark.slow
@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_random_policies_equal_the_oracle(seed: int, published: bool) -> None:
    spec = exact().spec
    small = exact().sibling("small").spec.model_copy(update={"name": "small"})
    found, _ = presets(spec, random_calibration(spec), [small]) if published else ({}, {})
    policy = SearchSpace(spec, found).random(random.Random(seed), density=0.4)
    assert difference(exact(), policy, seed=seed) < 1e-9
