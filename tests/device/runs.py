"""Every technique and every published system on every family, on the pretend device.

`python -m tests.device.runs` writes anew what each launches and transfers in its second generation.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tests.accel.families import FAMILIES
from tests.accel.test_families import PAIRS, policy_of
from tests.conftest import build_tiny
from tests.device import pretend
from varsearch.accel import Accelerated, apply
from varsearch.evaluators.workload import cast, device_of, run_batch
from varsearch.models.image_model import ImageModel
from varsearch.models.sampling import PublishedSampler
from varsearch.policy import Policy
from varsearch.space.presets import presets
from varsearch.space.presets.assumed import assumed
from varsearch.target import Family

STORED = Path(__file__).with_name("counts.json")
N = 4
MODELS: dict[Family, ImageModel] = {"var": build_tiny(), **FAMILIES}


class Counts(NamedTuple):
    """Launches and transfers of one generation."""

    launches: int
    transfers: int


@cache
def policies(family: Family) -> dict[str, Policy]:
    """Each technique, and each published system with assumed constants."""
    spec = MODELS[family].spec
    sibling = MODELS[family].sibling("small").spec if family != "mvar" else None
    known = None if family == "mvar" else assumed(spec)
    found, _ = presets(spec, known, [sibling.model_copy(update={"name": "small"})] if sibling else [])
    techniques = {name: policy_of(of, name) for of, name in (*PAIRS, ("var", "dense")) if of == family}
    if family == "var":
        from tests.accel.techniques import TECHNIQUES

        techniques = dict(TECHNIQUES)
    return techniques | {f"preset {name}": policy for name, policy in found.items()}


CASES: list[tuple[Family, str]] = [(family, name) for family in MODELS for name in policies(family)]


COUNTED = [(family, name) for family, name in CASES if not policies(family)[name].decisions]
"""Where images part, the number of groups depends on codes, and so on how a processor rounds."""


@cache
def on_device(family: Family) -> ImageModel:
    """The family's model on the pretend device."""
    pretend.install()
    return cast(MODELS[family], pretend.NAME, torch.float32)


def images(model: ImageModel, policy: Policy) -> Tensor:
    """A few images, on the CPU."""
    with apply(model, policy) as applied:
        labels_N = torch.arange(N, device=device_of(model))
        return applied.images(labels_N, seed=1, noise="philox").cpu()


def second_generation(applied: Accelerated) -> pretend.Log:
    """What happens once tables are there."""
    for _ in range(2):
        with pretend.logged() as log:
            # The pretend device has no generators of its own; None is the device's default.
            run_batch(applied, N, PublishedSampler(None, 0, 0.0))  # type: ignore[arg-type]
    return log


def counts(family: Family, name: str) -> tuple[Counts, pretend.Log]:
    """Of the second generation."""
    with apply(on_device(family), policies(family)[name]) as applied:
        log = second_generation(applied)
    return Counts(log.launches.total(), log.transfers.total()), log


def stored() -> dict[str, dict[str, Counts]]:
    """What was counted when the file was written."""
    found = json.loads(STORED.read_text())
    return {family: {name: Counts(*pair) for name, pair in rows.items()} for family, rows in found.items()}


def main() -> None:
    found: dict[str, dict[str, Counts]] = {}
    for family, name in COUNTED:
        found.setdefault(family, {})[name], log = counts(family, name)
        print(family, name, *found[family][name], *log.transfers.most_common(3))
    lines = (
        f"{json.dumps(family)}: {{\n"
        + ",\n".join(f"  {json.dumps(name)}: {json.dumps(pair)}" for name, pair in rows.items())
        + "\n}"
        for family, rows in found.items()
    )
    STORED.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
