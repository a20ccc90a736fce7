"""What one calibration pass learns about a model: the statistics that published techniques set their constants by.

Torch-free data, bound to weights and protocol. Indices: scale k of the queries, layer l, head h, scale
j <= k of the keys.
"""

from __future__ import annotations

from pydantic import Field

from varsearch.policy import Decision
from varsearch.target import DType, Frozen, ModelSpec, Noise

Floats = tuple[float, ...]

MAX_WIDTHS = 32
"""Band widths kept per pair of scales: all of a small map, about evenly spaced ones of a large map."""


class CalibrationProtocol(Frozen):
    """What a calibration depends on besides the model."""

    images: int = Field(default=50, ge=1)
    seed: int = Field(default=0, ge=0)
    guidance: float
    top_k: int
    top_p: float
    temperature: float = 1.0
    guidance_layer: int = 0
    noise: Noise = "mt19937"
    dtype: DType = "float32"
    version: int = 1


class Calibration(Frozen):
    """Statistics of a model's dense sampling.

    Args:
        fingerprint: of the model's weights.
        protocol: how the images were drawn.
        column_variance: [l][h], variance of the last scale's attention over its queries, summed over keys: low where
            all queries look at the same keys (HACK, arXiv 2504.09261).
        scale_mass: [k][l][h][j], attention that a query of scale k pays to scale j, on average (HACK++'s scale prior).
        band_mass: [k][l][h][j][i], share of that attention within `widths(L_j)[i]` of the query's place in raster order
            (LiteVAR's windows, arXiv 2411.17178).
        history_top: [k][l], attention that a query of scale k pays to the tenth of all earlier keys that it likes best
            (the second factor of ScaleKV's index, arXiv 2505.19602; the first is `scale_mass[k][l][h][k]`).
        entropy_ratio: [k][l], first over second singular value of the map of attention entropies (ToProVAR,
            arXiv 2602.22948); 1 where the map has a single row or column.
        half_distance: [k][l], distance of the unconditional rows' attention output from the conditional rows', relative
            to the latter's norm (where LiteVAR and SkipVAR share or drop one half).
        low_entropy: [k][n], share of image n's tokens whose attention entropy, mean over heads and layers, is below
            their mean (ToProVAR asks images by it).
        skipvar: the decision of SkipVAR (arXiv 2506.08908) for each threshold of structural similarity, trained on
            images of the model; empty where it has too few scales.
        sqnr: [l] of linear name to bits to signal-to-quantization-noise ratio of its output at the last scale, in dB
            (MixDQ's sensitivity, arXiv 2405.17873).
        seconds: what the pass took.
    """

    fingerprint: str
    protocol: CalibrationProtocol
    column_variance: tuple[Floats, ...]
    scale_mass: tuple[tuple[tuple[Floats, ...], ...], ...]
    band_mass: tuple[tuple[tuple[tuple[Floats, ...], ...], ...], ...]
    history_top: tuple[Floats, ...]
    entropy_ratio: tuple[Floats, ...]
    half_distance: tuple[Floats, ...]
    low_entropy: tuple[Floats, ...]
    skipvar: dict[float, Decision]
    sqnr: tuple[dict[str, dict[int, float]], ...]
    seconds: float

    def fits(self, spec: ModelSpec) -> bool:
        """Whether there is a number for every layer, head and scale of `spec`."""
        n, heads, layers = len(spec.scales), spec.n_heads, spec.n_layers
        by_head = [*self.column_variance, *(row for rows in (*self.scale_mass, *self.band_mass) for row in rows)]
        tables = (self.scale_mass, self.band_mass, self.history_top, self.entropy_ratio, self.half_distance)
        by_layer = [self.column_variance, self.sqnr, *(rows for table in tables for rows in table)]
        by_scale = [*tables, self.low_entropy]
        counted = ((by_scale, n), (by_layer, layers), (by_head, heads))
        return all(len(rows) == count for group, count in counted for rows in group)


def widths(tokens: int) -> tuple[int, ...]:
    """Half-widths in tokens that `Calibration.band_mass` knows for a map of so many tokens, ascending."""
    if tokens <= MAX_WIDTHS:
        return tuple(range(1, tokens + 1))
    return tuple(dict.fromkeys(max(1, tokens * i // MAX_WIDTHS) for i in range(1, MAX_WIDTHS + 1)))
