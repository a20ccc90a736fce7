"""Presets of published systems: their constants, on the shapes they were published for and on ours."""

from __future__ import annotations

import pytest

from tests.space.test_space import D16, MNIST, SHARED_ADALN
from varsearch.calibration import Calibration, CalibrationProtocol, widths
from varsearch.policy import Quantization, Reach
from varsearch.space.presets.litevar import litevar
from varsearch.space.presets.sparvar import sparvar
from varsearch.target import ModelSpec

SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
INFINITY = D16.model_copy(update={"n_layers": 32, "scales": tuple((s, s) for s in SIDES)})


def calibration(spec: ModelSpec) -> Calibration:
    """Attention falls off evenly to the ends of a map; later maps get more of it; late scales' halves differ more."""
    n, layers, heads = len(spec.scales), range(spec.n_layers), range(spec.n_heads)
    band = [tuple(w / spec.tokens[j] for w in widths(spec.tokens[j])) for j in range(n)]
    mass = [tuple((j + 1) / sum(range(1, k + 2)) for j in range(k + 1)) for k in range(n)]
    return Calibration(
        fingerprint="f",
        protocol=CalibrationProtocol(guidance=1.5, top_k=0, top_p=0.0),
        column_variance=tuple(tuple(0.0 for _ in heads) for _ in layers),
        scale_mass=tuple(tuple(tuple(mass[k] for _ in heads) for _ in layers) for k in range(n)),
        band_mass=tuple(tuple(tuple(tuple(band[: k + 1]) for _ in heads) for _ in layers) for k in range(n)),
        history_top=((0.0,),),
        entropy_ratio=((1.0,),),
        half_distance=tuple(tuple(k / n for _ in layers) for k in range(n)),
        low_entropy=(),
        skipvar={},
        sqnr=(),
        seconds=1.0,
    )


def test_litevar_takes_the_narrowest_band_that_covers_enough() -> None:
    policy = litevar(D16, calibration(D16), coverage=0.6, floor=0.05)
    policy.check(D16)
    attention = policy.layers[0].attention
    assert attention.band[2][0] is None
    reach = attention.band[9][0]
    assert isinstance(reach, tuple) and reach[:2] == (None, None)
    # Map j of 0..9 gets (j + 1) / 55, so none from the third on is dropped, and each needs three fifths of its tokens.
    for j, width in enumerate(reach[2:], start=2):
        known = widths(D16.tokens[j])
        assert width == next(w for w in known if w / D16.tokens[j] >= 0.6)


def test_litevar_drops_maps_below_the_floor_and_leaves_those_it_cannot_narrow() -> None:
    band = litevar(D16, calibration(D16), coverage=1.0, floor=0.1).layers[3].attention.band
    assert band[9][5] == (None, None, 0, 0, 0, None, None, None, None, None)


@pytest.mark.parametrize("spec", [MNIST, D16, SHARED_ADALN], ids=lambda s: s.name)
def test_litevar_shares_and_rounds(spec: ModelSpec) -> None:
    policy = litevar(spec, calibration(spec), difference=0.5, bits=4)
    policy.check(spec)
    n = len(spec.scales)
    everywhere = tuple(range(spec.n_layers))
    assert [s.shared_attention for s in policy.scales] == [everywhere if k <= n / 2 else () for k in range(n)]
    weights = policy.layers[0].weights
    assert weights.qkv == Quantization(bits=4, activation_bits=4) and weights.fc2 is None
    assert (weights.ada is None) == spec.shared_adaln
    assert all(s.guidance == "full" for s in litevar(spec, calibration(spec), difference=-1).scales)


def test_lower_coverage_never_widens_a_band() -> None:
    def width(reach: Reach, j: int) -> float:
        found = reach[j] if isinstance(reach, tuple) else reach
        return float("inf") if found is None else found

    wide, narrow = (litevar(D16, calibration(D16), coverage=c).layers[0].attention.band for c in (0.95, 0.6))
    for k in range(3, 10):
        assert all(width(narrow[k][0], j) <= width(wide[k][0], j) for j in range(k + 1))


def test_sparvar_has_the_published_constants_on_the_published_schedule() -> None:
    policy = sparvar(INFINITY)
    policy.check(INFINITY)
    early, late = policy.layers[10].attention, policy.layers[11].attention
    assert early.cross_scale is not None and not early.window and late.cross_scale is None
    chosen = early.cross_scale
    assert (chosen.decision_scale, chosen.keys, chosen.sink_scales, chosen.radius) == (10, 0.2, 5, (1, 2, 3))
    assert late.window[7] == (None,) * 16
    assert late.window[12][0] == (*(None,) * 8, 0, 0, 1, 2, 3)


@pytest.mark.parametrize("spec", [MNIST, D16, INFINITY, SHARED_ADALN], ids=lambda s: str(len(s.scales)))
def test_sparvar_fits_other_models(spec: ModelSpec) -> None:
    for keys in (0.05, 0.2):
        sparvar(spec, keys).check(spec)
    short = spec.model_copy(update={"scales": spec.scales[:2]})
    sparvar(short).check(short)


def test_sparvar_on_the_shipped_model() -> None:
    policy = sparvar(MNIST)
    chosen, window = policy.layers[1].attention.cross_scale, policy.layers[2].attention.window
    assert chosen is not None and (chosen.decision_scale, chosen.sink_scales) == (3, 2)
    assert window[5][0] == (None, None, None, 1, 2, 3)
