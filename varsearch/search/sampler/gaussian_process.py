"""Gaussian process regression with scales of the highest evidence.

    k(x, x') = a² φ(x)·φ(x') + b² exp(-d(x, x') / l) + s² [x = x']

A linear kernel of features φ, an exponential kernel of L1 distances d, and noise. Posterior:
Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", algorithm 2.1; the evidence
is their equation 2.30. A sample path is drawn at finitely many points and conditioned on there.

| symbol     | meaning                                                   |
|------------|-----------------------------------------------------------|
| N, M       | points with targets, points that are asked for            |
| F          | features φ                                                |
| P          | sample paths                                              |
| a, b, l, s | `Scales`: linear, rest, length, noise                     |
| L, α       | Cholesky factor of the covariance; its inverse on targets |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from varsearch.search.core.pareto import Array


class Scales(NamedTuple):
    """Standard deviations of the linear part, of the rest and of noise; length of distances."""

    linear: float
    rest: float
    length: float
    noise: float


@dataclass(frozen=True, slots=True)
class ScaleGrid:
    """Scales among which the evidence decides."""

    linear: tuple[float, ...] = (0.3, 1.0)
    rest: tuple[float, ...] = (0.1, 0.3, 1.0)
    length: tuple[float, ...] = (0.3, 1.0)
    noise: tuple[float, ...] = (0.02, 0.2)
    # Variance that is added to a covariance so that it can be factorized.
    jitter: float = 1e-6


@dataclass(frozen=True)
class Posterior:
    """A process given N targets; the targets are residuals of a prior mean.

    Attributes:
        residual_N: the targets, or (N, P) for P sample paths.
        lower_NN: L.
    """

    features_NF: Array
    residual_N: Array
    lower_NN: Array
    scales: Scales

    def predict(self, features_MF: Array, distances_MN: Array) -> tuple[Array, Array]:
        """Mean and standard deviation without noise, (M,) each.

        The mean is (M, P) for sample paths; the deviation is that from any of them.
        """
        mean, half_NM = self._known(features_MF, distances_MN)
        linear, rest, _, _ = self.scales
        prior_M = linear**2 * (features_MF**2).sum(1) + rest**2
        # Var = k(x, x) - |L⁻¹k|².
        variance_M = np.maximum(prior_M - (half_NM**2).sum(0), 1e-12)
        return mean, np.sqrt(variance_M)

    def sample_paths(
        self,
        features_MF: Array,
        distances_MN: Array,
        distances_MM: Array,
        eps_MP: Array,
        jitter: float,
    ) -> Posterior:
        """The process given equally likely paths through M points.

        Each path agrees with the targets; `eps_MP` are its standard normal numbers.
        """
        mean_M, half_NM = self._known(features_MF, distances_MN)
        gram_MM = features_MF @ features_MF.T
        spread_MM = _kernel(gram_MM, distances_MM, self.scales) - half_NM.T @ half_NM
        spread_MM[np.diag_indices_from(spread_MM)] += jitter
        # A draw of N(mean, C) is mean + chol(C) eps.
        path_MP = mean_M[:, None] + np.linalg.cholesky(spread_MM) @ eps_MP
        # A path is known exactly where it was drawn.
        scales = self.scales._replace(noise=jitter**0.5)
        return condition(scales, features_MF, distances_MM, path_MP, np.zeros(len(mean_M)))

    def _known(self, features_MF: Array, distances_MN: Array) -> tuple[Array, Array]:
        """The mean, and L⁻¹k (N, M), whose squares reduce the variance."""
        gram_MN = features_MF @ self.features_NF.T
        cross_MN = _kernel(gram_MN, distances_MN, self.scales)
        half_NM = solve_triangular(self.lower_NN, cross_MN.T, lower=True)
        return cross_MN @ self._weights_N, half_NM

    @cached_property
    def _weights_N(self) -> Array:
        """α."""
        weights: Array = cho_solve((self.lower_NN, True), self.residual_N)
        return weights

    @property
    def evidence(self) -> float:
        """The logarithm of the residuals' density, without its constant."""
        # -½ yᵀK⁻¹y - ½ log|K|, and log|K| = 2 Σ log L_ii.
        half_N = solve_triangular(self.lower_NN, self.residual_N, lower=True)
        return -0.5 * float(half_N @ half_N) - float(np.log(np.diag(self.lower_NN)).sum())


def fit(
    features_NF: Array,
    distances_NN: Array,
    residual_N: Array,
    noise_N: Array,
    grid: ScaleGrid,
    noise: Sequence[float] | None = None,
) -> Posterior:
    """The process with the scales of `grid` under which the residuals have the highest evidence.

    Args:
        features_NF: of the linear kernel.
        distances_NN: of the exponential kernel.
        residual_N: targets less their prior mean.
        noise_N: standard errors of single targets, besides the one that all share.
        grid: scales to choose from.
        noise: shared standard errors to choose from, by default those of the grid.
    """
    gram_NN = features_NF @ features_NF.T
    levels = grid.noise if noise is None else noise
    best: Posterior | None = None
    for linear, rest, length in product(grid.linear, grid.rest, grid.length):
        kernel_NN = _kernel(gram_NN, distances_NN, Scales(linear, rest, length, 0.0))
        for level in levels:
            scales = Scales(linear, rest, length, level)
            # Noise levels share the kernel.
            one = _factorized(scales, kernel_NN.copy(), features_NF, residual_N, noise_N)
            if best is None or one.evidence > best.evidence:
                best = one
    assert best is not None
    return best


def condition(
    scales: Scales, features_NF: Array, distances_NN: Array, residual_N: Array, noise_N: Array
) -> Posterior:
    """The process with these scales, see `fit`."""
    kernel_NN = _kernel(features_NF @ features_NF.T, distances_NN, scales)
    return _factorized(scales, kernel_NN, features_NF, residual_N, noise_N)


def _factorized(
    scales: Scales, kernel_NN: Array, features_NF: Array, residual_N: Array, noise_N: Array
) -> Posterior:
    """Adds noise to the kernel in place and factorizes it."""
    kernel_NN[np.diag_indices_from(kernel_NN)] += scales.noise**2 + noise_N**2
    lower_NN = np.linalg.cholesky(kernel_NN).astype(np.float64)
    return Posterior(features_NF, residual_N, lower_NN, scales)


def _kernel(gram_MN: Array, distances_MN: Array, scales: Scales) -> Array:
    linear, rest, length, _ = scales
    kernel: Array = linear**2 * gram_MN + rest**2 * np.exp(-distances_MN / length)
    return kernel
