"""A calibration for models that nothing was learnt of: of random weights, or in a run that evaluates no quality.

It assumes what published systems report of trained models:

- Half of the heads are contextual: all their queries look at the same keys, most of them in the first maps
  (HACK, arXiv 2504.09261; SparVAR, arXiv 2602.04361). The others are structural: half of their attention goes to the
  query's own map, half of the rest to the one before, and so on.
- A structural head's attention to a map falls with the distance in raster order, by a factor of e per tenth of the
  map. LiteVAR (arXiv 2411.17178) reports that bands of coverage 0.95 remove 70 % of attention; with this decay they do
  here. What its presets save is therefore assumed, and only their times and bytes are found.
- Both halves of guidance attend alike: LiteVAR's published code shares attention everywhere.
- First layers look back the most (ScaleKV's published tables, arXiv 2505.19602); early and final layers see the
  whole, those in the middle details (ToProVAR, arXiv 2602.22948).
- All images answer SkipVAR's question as its published classifiers answer for the average of the features they were
  trained on (arXiv 2506.08908): two scales skipped at a similarity of 0.84, three unguided at 0.88.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from varsearch.calibration import Calibration, CalibrationProtocol, Floats, widths
from varsearch.errors import UsageError
from varsearch.policy import Decision
from varsearch.space.presets.skipvar import LAST, untrained
from varsearch.target import ModelSpec

DECAY = 1 / 10
"""Part of a map within which a structural head's attention falls by a factor of e."""

THREE_UNGUIDED, TWO_SKIPPED = LAST, LAST + 2
"""Actions of SkipVAR's decision."""


def assumed(spec: ModelSpec) -> Calibration:
    """The calibration of a model of this shape."""
    scales, layers = range(len(spec.scales)), range(spec.n_layers)
    structural = [head % 2 == 0 for head in range(spec.n_heads)]
    mass = tuple((tuple(_scale_mass(k, kind) for kind in structural),) * spec.n_layers for k in scales)
    bands = [tuple(_band_mass(n, kind) for n in spec.tokens) for kind in structural]
    middle = (spec.n_layers - 1) / 2
    return Calibration(
        fingerprint=spec.fingerprint,
        protocol=CalibrationProtocol(images=1, guidance=0.0, top_k=0, top_p=0.0),
        column_variance=(tuple(map(float, structural)),) * spec.n_layers,
        scale_mass=mass,
        band_mass=tuple((tuple(by_map[: k + 1] for by_map in bands),) * spec.n_layers for k in scales),
        history_top=(tuple(float(layer) for layer in layers),) * len(scales),
        entropy_ratio=(tuple(1 + abs(layer - middle) for layer in layers),) * len(scales),
        half_distance=((0.0,) * spec.n_layers,) * len(scales),
        low_entropy=((0.5,),) * len(scales),
        skipvar=_decisions(spec),
        sqnr=({},) * spec.n_layers,
        seconds=0.0,
    )


def _decisions(spec: ModelSpec) -> dict[float, Decision]:
    """SkipVAR's by similarity; none of a model with too few scales."""
    try:
        decision = untrained(spec)
    except UsageError:
        return {}
    return {0.84: _always(decision, TWO_SKIPPED), 0.88: _always(decision, THREE_UNGUIDED)}


def _scale_mass(k: int, structural: bool) -> Floats:
    """Attention of scale k's queries to each map up to their own."""
    halving: Sequence[float] = [2.0**-j for j in range(k + 1)]
    return tuple(x / sum(halving) for x in (reversed(halving) if structural else halving))


def _band_mass(tokens: int, structural: bool) -> Floats:
    """Share of the attention to a map that lies within each of its `widths`."""
    if structural:
        return tuple(1 - math.exp(-w / (DECAY * tokens)) for w in widths(tokens))
    return tuple(1 - (1 - w / tokens) ** 2 for w in widths(tokens))


def _always(decision: Decision, chosen: int) -> Decision:
    """The decision that every image answers with one action."""
    answers = ({"bias": float(a == chosen), "share": float(a == chosen)} for a in range(len(decision.actions)))
    actions = (action.model_copy(update=answer) for action, answer in zip(decision.actions, answers, strict=True))
    return decision.model_copy(update={"actions": tuple(actions)})
