"""Statistics of real images that generated ones are compared with, as one safetensors file.

Shape suffixes: D features, M kept feature vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from varsearch.errors import ModelError, UsageError
from varsearch.evaluators.extractors import Extractor
from varsearch.files import write_atomically
from varsearch.models import zoo

EXTRACTOR_KEY = "extractor"


@dataclass(frozen=True, slots=True)
class Reference:
    """Gaussian statistics and a sample of the features of real images.

    Args:
        extractor: `Extractor.identity` that the features come from.
        count: number of images behind mean and covariance.
        mean_D: float64.
        covariance_DD: unbiased (divided by count - 1), float64.
        features_MD: features of a random subset of the images, float32 or float16, for kernel and neighbour distances.
    """

    extractor: str
    count: int
    mean_D: Tensor
    covariance_DD: Tensor
    features_MD: Tensor

    @property
    def digest(self) -> str:
        """Sha256 of extractor, count and all numbers; independent of the file they were read from."""
        found = hashlib.sha256(f"{self.extractor} {self.count}\n".encode())
        for tensor in (self.mean_D, self.covariance_DD, self.features_MD):
            found.update(f"{tuple(tensor.shape)}\n".encode())
            found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()

    def require(self, extractor: Extractor) -> None:
        """Raises `UsageError` unless the features come from `extractor`."""
        if self.extractor != extractor.identity:
            raise UsageError(
                f"reference statistics are of extractor {self.extractor}, images would be measured with "
                f"{extractor.identity}: their numbers cannot be compared; build the reference with the same extractor"
            )

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all; `OutputError` if it cannot be written."""
        tensors = {
            "mean": self.mean_D,
            "covariance": self.covariance_DD,
            "features": self.features_MD,
            "count": torch.tensor(self.count),
        }
        write_atomically(path, to_bytes(tensors, {EXTRACTOR_KEY: self.extractor}))


def build_reference(
    batches: Iterable[Tensor], extractor: Extractor, keep_features: int, dtype: torch.dtype = torch.float16
) -> Reference:
    """Statistics of images, given in batches (N, C, H, W) in [0, 1].

    Args:
        batches: at least two images in all.
        extractor: where the features come from.
        keep_features: at most so many feature vectors are kept, a seeded random subset, stored as `dtype`.
        dtype: float16 halves the file; its rounding is far below what kernel and neighbour distances notice.
    """
    parts = [extractor.features(batch).cpu() for batch in batches]
    features_ND = torch.cat(parts) if parts else torch.empty(0, extractor.num_features)
    if len(features_ND) < 2:
        raise UsageError(f"reference statistics need at least 2 images, got {len(features_ND)}")
    order_N = torch.randperm(len(features_ND), generator=torch.Generator().manual_seed(0))
    doubles_ND = features_ND.double()
    covariance_DD = doubles_ND.mT.cov()
    return Reference(
        extractor=extractor.identity,
        count=len(features_ND),
        mean_D=doubles_ND.mean(0),
        covariance_DD=(covariance_DD + covariance_DD.mT) / 2,  # matrix products of large blocks are not quite symmetric
        features_MD=features_ND[order_N[:keep_features]].to(dtype),
    )


def load_reference(path: Path) -> Reference:
    """The statistics in a file; `ModelError` if it is missing, damaged or of another layout."""
    if path.is_dir():  # the system's own word for it is "No such device"
        raise ModelError(f"cannot read reference statistics {path}: it is a folder")
    try:
        return reference_of(load_file(path), _metadata(path), str(path))
    except OSError as error:
        raise ModelError(f"cannot read reference statistics {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from None


def zoo_reference(model: str) -> Reference:
    """The reference statistics that ship with a zoo model, after its sha256 was checked."""
    tensors = zoo.tensors(model, "reference")
    path = zoo.folder(model) / zoo.manifest(model).files["reference"][0]
    return reference_of(tensors, _metadata(path), str(path))


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def reference_of(tensors: dict[str, Tensor], metadata: dict[str, str], source: str) -> Reference:
    """Checks tensors and metadata of a file called `source` in messages, and makes a `Reference` of them."""
    extractor = metadata.get(EXTRACTOR_KEY)
    missing = sorted({"mean", "covariance", "features", "count"} - tensors.keys())
    if missing or not extractor:
        raise ModelError(f"{source} holds no reference statistics: {', '.join(missing) or 'extractor name'} missing")
    mean, covariance, features, count = (tensors[name] for name in ("mean", "covariance", "features", "count"))
    width = mean.shape[0] if mean.ndim == 1 else -1
    if covariance.shape != (width, width) or features.ndim != 2 or features.shape[1] != width or count.numel() != 1:
        shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in sorted(tensors))
        raise ModelError(f"{source}: expected mean (D,), covariance (D, D), features (M, D), count (), got {shapes}")
    if mean.dtype != torch.float64 or covariance.dtype != torch.float64 or not features.is_floating_point():
        types = f"{mean.dtype}, {covariance.dtype} and {features.dtype}"
        raise ModelError(f"{source}: expected float64 mean and covariance and float features, got {types}")
    n = int(count)
    if n < max(2, len(features)):
        raise ModelError(f"{source}: count {n} must be at least 2 and at least the {len(features)} kept features")
    if not all(bool(t.isfinite().all()) for t in (mean, covariance, features)) or not torch.equal(
        covariance, covariance.mT
    ):
        raise ModelError(f"{source}: mean, covariance and features must be finite, and the covariance symmetric")
    return Reference(extractor, n, mean, covariance, features)
