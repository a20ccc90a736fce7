"""CoDe (arXiv 2411.17787): the model drafts the early scales, a smaller model of its family refines the late ones.

Published for VAR-d30 with VAR-d16, the first 6 to 9 of 10 scales by the large model. It works without training, as
here; the paper also fine-tunes both models for their scales, and those would be models of their own. The release
samples with top-k 600 at all scales and a temperature of 1.1 at the first seven. That is no part of the method, and a
policy leaves sampling as it is.
"""

from __future__ import annotations

from varsearch.errors import UsageError
from varsearch.policy import Policy, Refiner
from varsearch.target import ModelSpec

DRAFTED = 8 / 10
"""Part of the scales that the large model runs, of the published 6/10 to 9/10."""


def code(spec: ModelSpec, refiner: ModelSpec, first_scale: int | None = None) -> Policy:
    """The policy with this refiner.

    Args:
        spec: the model's shape.
        refiner: the smaller model's; `zoo.siblings` lists those that can be.
        first_scale: the first that the refiner runs; None leaves it the last fifth of the scales, one at least.

    Raises:
        UsageError: there are no scales to divide, or the refiner's are others.
    """
    n = len(spec.scales)
    if refiner.scales != spec.scales:
        raise UsageError(f"{refiner.name} has other scales than {spec.name}")
    first = min(round(DRAFTED * n), n - 1) if first_scale is None else first_scale
    if not 1 <= first < n:
        raise UsageError(
            f"the refiner cannot start at scale {first}: {spec.name} has scales 0..{n - 1}, and drafts one"
        )
    dense = Policy.dense(spec.n_layers, n)
    late = Refiner(model=refiner.name, fingerprint=refiner.fingerprint, first_scale=first)
    return Policy(layers=dense.layers, scales=dense.scales, refiner=late)
