"""Fréchet and kernel distance of generated to real images, in the features of one extractor.

The values come from torchmetrics. The Fréchet interval needs the distances of many resamples, so it uses a symmetric
form of the same formula that is much cheaper. Shape suffixes: N images, D features, R resamples, M reference features.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from varsearch.errors import UsageError
from varsearch.evaluators.per_image import Z_95, measured
from varsearch.evaluators.reference import Reference
from varsearch.measurement import Measurement

try:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
    raise UsageError(
        f"quality needs torchmetrics, which cannot be imported ({error}): pip install 'varsearch[search]', "
        "and install the torchvision that fits this torch, or none"
    ) from None

SEED = 0
"""Of resamples and subsets. It is fixed, so that equal features give equal numbers."""

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
ROWS = 1024
"""Rows of a kernel matrix held at a time."""

OVERSAMPLING = 16
"""Images of a resample over images of the sample."""


class Precomputed(nn.Module):
    """Stands where torchmetrics expects a network, and passes on features that were extracted before."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features_ND: Tensor) -> Tensor:
        """The features (N, D) themselves."""
        return features_ND


def frechet_distance(features_ND: Tensor, reference: Reference) -> float:
    """Distance of Gaussians fitted to `features_ND` and to the reference (Heusel et al. 2017, arXiv 1706.08500)."""
    metric = FrechetInceptionDistance(Precomputed(features_ND.shape[1]))
    mean_D, n = reference.mean_D, reference.count
    # torchmetrics keeps sums, from which it subtracts the mean again.
    metric.real_features_sum = mean_D * n
    metric.real_features_cov_sum = reference.covariance_DD * (n - 1) + n * mean_D.outer(mean_D)
    metric.real_features_num_samples = torch.tensor(n)
    metric.update(features_ND.double(), real=False)
    value: float = metric.compute().item()
    return value


def kid(features_ND: Tensor, reference: Reference) -> Measurement:
    """Squared maximum mean discrepancy under a cubic kernel (Bińkowski et al. 2018, arXiv 1801.01401).

    The value is torchmetrics' mean over random subsets. The interval is that of the estimate over all images at once,
    from its first-order (Hoeffding) projection; the reference counts as fixed.
    """
    size = min(KID_SUBSET_SIZE, len(features_ND) // 2, len(reference.features_MD) // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # says that features are kept in memory, which they are anyway
        metric = KernelInceptionDistance(Precomputed(features_ND.shape[1]), subsets=KID_SUBSETS, subset_size=size)
    metric.update(reference.features_MD.double(), real=True)
    metric.update(features_ND.double(), real=False)
    # torchmetrics draws its subsets from torch's global CPU generator.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        value: float = metric.compute()[0].item()
    half = Z_95 * _kid_error(features_ND.double(), reference.features_MD.double())
    note = f"{KID_SUBSETS} subsets of {size}"
    return measured("kid", value, len(features_ND), (value - half, value + half), note)


def _kid_error(x_ND: Tensor, reference_MD: Tensor) -> float:
    n, projection = len(x_ND), []
    for rows in x_ND.split(ROWS):
        own = _cubic_kernel(rows, rows).diagonal()
        within = (_cubic_kernel(rows, x_ND).sum(1) - own) / (n - 1)
        projection.append(within - _cubic_kernel(rows, reference_MD).mean(1))
    return 2 * torch.cat(projection).std().item() / math.sqrt(n)


def _cubic_kernel(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    k_NM = a_ND @ b_MD.mT / a_ND.shape[1] + 1
    return k_NM * k_NM * k_NM


class Bootstrap:
    """Fréchet distances of resampled images (Efron 1979).

    With the reference's covariance A and the samples' covariance S, the trace of sqrt(A S) is the sum of the singular
    values of Y / sqrt(N - 1), where Y are the centred samples times sqrt(A). Of Y'Y and YY' the smaller is taken;
    both are symmetric, so their eigenvalues are cheap, and real even where S is singular.

    All samples are resampled by the same indices: the r-th distances of two policies belong together, and their
    difference is a paired one.

    Resamples hold 16 N images, and their spread is multiplied by sqrt(16) (m out of n bootstrap, Bickel et al. 1997).
    Those of N images would repeat many, which inflates a distance, and near the floor its spread as well.

    Args:
        reference: statistics of real images.
        n_images: N of every sample.
    """

    def __init__(self, reference: Reference, n_images: int) -> None:
        self.mean_D, self.trace = reference.mean_D, reference.covariance_DD.trace()
        values_D, vectors_DD = torch.linalg.eigh(reference.covariance_DD)
        self.root_DD = vectors_DD * values_D.clamp(min=0).sqrt() @ vectors_DD.mT
        # A resample costs the cube of the smaller side; 20 of them still give the spread to about a sixth.
        resamples = 200 if min(n_images, len(self.mean_D)) <= 128 else 20
        generator = torch.Generator().manual_seed(SEED)
        draws = (torch.randint(n_images, (OVERSAMPLING * n_images,), generator=generator) for _ in range(resamples))
        self.counts_RN = torch.stack([index.bincount(minlength=n_images) for index in draws]).double()

    def distances(self, features_ND: Tensor) -> Tensor:
        """Fréchet distance of every resample, (R,) float64."""
        x_ND = features_ND.double() - self.mean_D
        y_ND = x_ND @ self.root_DD
        return torch.stack([self._distance(x_ND, y_ND, counts_N) for counts_N in self.counts_RN])

    def _distance(self, x_ND: Tensor, y_ND: Tensor, counts_N: Tensor) -> Tensor:
        n = counts_N.sum()
        shift_D, y_shift_D = counts_N @ x_ND / n, counts_N @ y_ND / n
        trace = (counts_N @ (x_ND - shift_D).square()).sum() / (n - 1)
        z_ND = (y_ND - y_shift_D) * counts_N[:, None].sqrt()
        gram = z_ND @ z_ND.mT if z_ND.shape[0] < z_ND.shape[1] else z_ND.mT @ z_ND
        cross = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum() / (n - 1).sqrt()
        return shift_D.square().sum() + trace + self.trace - 2 * cross

    @staticmethod
    def error(distances_R: Tensor) -> float:
        """Standard error of a distance, or of a difference of two, from its resamples."""
        return distances_R.std().item() * math.sqrt(OVERSAMPLING)
