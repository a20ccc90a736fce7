"""Gaussian process regression: weighted features and what remains by distance, with weights of the best evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular

Array = NDArray[np.float64]

LINEAR, REST, LENGTH = (0.3, 1.0), (0.1, 0.3, 1.0), (0.3, 1.0)
"""Scales of what features and what distance explain, and the distance over which policies are alike."""

JITTER = 1e-6
"""Variance that is added to a covariance so that it can be factorized."""

NOISE = (0.02, 0.2)
"""Standard deviations of a target, if nothing is said."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A process that was fitted to N targets, as a function of features (M, F) and distances (M, N) to the fitted."""

    features_NF: Array
    residual_N: Array
    lower_NN: Array
    scales: tuple[float, float, float, float]

    def __call__(self, features_MF: Array, distances_MN: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of what is added to the prior mean, without noise, (M,) each.

        Where the targets are several courses, (N, W), so is the mean, (M, W): the deviation is that from any of them.
        """
        mean, half_NM = self._known(features_MF, distances_MN)
        linear, rest, _, _ = self.scales
        prior_M = linear**2 * (features_MF**2).sum(1) + rest**2
        variance_M = np.maximum(prior_M - (half_NM**2).sum(0), 1e-12)
        return mean, np.sqrt(variance_M)

    def courses(self, features_MF: Array, distances_MN: Array, distances_MM: Array, luck_MW: Array) -> Fit:
        """The process as it is known at M points where it takes W equally likely courses.

        Each course is one that agrees with the targets, drawn with standard normal numbers `luck_MW`.
        """
        mean_M, half_NM = self._known(features_MF, distances_MN)
        spread_MM = _kernel(features_MF, features_MF, distances_MM, *self.scales[:3]) - half_NM.T @ half_NM
        spread_MM[np.diag_indices_from(spread_MM)] += JITTER
        course_MW = mean_M[:, None] + np.linalg.cholesky(spread_MM) @ luck_MW
        scales = (*self.scales[:3], JITTER**0.5)
        return condition(scales, features_MF, distances_MM, course_MW, np.zeros(len(mean_M)))

    def _known(self, features_MF: Array, distances_MN: Array) -> tuple[Array, Array]:
        """What the targets say: the mean, and (N, M), by whose squares they lessen the variance."""
        linear, rest, length, _ = self.scales
        cross_MN = _kernel(features_MF, self.features_NF, distances_MN, linear, rest, length)
        half_NM = solve_triangular(self.lower_NN, cross_MN.T, lower=True)
        return cross_MN @ cho_solve((self.lower_NN, True), self.residual_N), half_NM


def fit(
    features_NF: Array, distances_NN: Array, residual_N: Array, noise_N: Array, levels: Sequence[float] = NOISE
) -> Fit:
    """The process under which the residuals, targets less their prior mean, have the highest evidence.

    `noise_N` are the standard errors of single targets, besides that of all, which is one of `levels`.
    """
    fits = (
        condition(scales, features_NF, distances_NN, residual_N, noise_N)
        for scales in product(LINEAR, REST, LENGTH, levels)
    )
    return max(fits, key=_evidence)


def condition(
    scales: tuple[float, float, float, float],
    features_NF: Array,
    distances_NN: Array,
    residual_N: Array,
    noise_N: Array,
) -> Fit:
    """The process with these scales: of what is linear, of the rest, of distances, of noise."""
    kernel_NN = _kernel(features_NF, features_NF, distances_NN, *scales[:3])
    kernel_NN[np.diag_indices_from(kernel_NN)] += scales[3] ** 2 + noise_N**2
    lower_NN = np.linalg.cholesky(kernel_NN).astype(np.float64)
    return Fit(features_NF, residual_N, lower_NN, scales)


def _evidence(found: Fit) -> float:
    """The logarithm of the residuals' density, without its constant."""
    half_N = solve_triangular(found.lower_NN, found.residual_N, lower=True)
    return -0.5 * float(half_N @ half_N) - float(np.log(np.diag(found.lower_NN)).sum())


def _kernel(a_MF: Array, b_NF: Array, distances_MN: Array, linear: float, rest: float, length: float) -> Array:
    kernel: Array = linear**2 * (a_MF @ b_NF.T) + rest**2 * np.exp(-distances_MN / length)
    return kernel
