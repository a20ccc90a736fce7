from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from varsearch.errors import ModelError, OutputError, UsageError
from varsearch.evaluators.extractors import Extractor
from varsearch.evaluators.reference import Reference, build_reference, load_reference


def pooled(weights: str = "0" * 64) -> Extractor:
    """Means of the quarters of an 8x8 image."""
    return Extractor("pooled", weights, 4, (1, 8, 8), lambda x: torch.nn.functional.avg_pool2d(x, 4).flatten(1))


def batches() -> list[Tensor]:
    return list(torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)).split(16))


@pytest.fixture
def reference() -> Reference:
    return build_reference(batches(), pooled(), keep_features=20)


def test_statistics_are_those_of_all_images(reference: Reference) -> None:
    features = torch.cat([pooled().features(batch) for batch in batches()]).numpy().astype(np.float64)
    np.testing.assert_allclose(reference.mean_D.numpy(), features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(reference.covariance_DD.numpy(), np.cov(features.T), rtol=1e-9)
    assert reference.count == 50 and reference.extractor == pooled().identity


def test_kept_features_are_distinct_images_of_the_set(reference: Reference) -> None:
    features = pooled().features(torch.cat(batches())).half()
    rows = [tuple(row) for row in reference.features_MD.tolist()]
    assert len(rows) == len(set(rows)) == 20
    assert set(rows) <= {tuple(row) for row in features.tolist()}
    # A random subset, not the first images: sets are often sorted by class.
    assert rows != [tuple(row) for row in features[:20].tolist()]


def test_a_file_gives_back_the_same_reference(reference: Reference, tmp_path: Path) -> None:
    reference.save(tmp_path / "reference.safetensors")
    found = load_reference(tmp_path / "reference.safetensors")
    assert found.digest == reference.digest and found.extractor == reference.extractor
    for name in ("mean_D", "covariance_DD", "features_MD"):
        assert torch.equal(getattr(found, name), getattr(reference, name))
    assert [p.name for p in tmp_path.iterdir()] == ["reference.safetensors"]


def test_many_features_make_a_symmetric_covariance(tmp_path: Path) -> None:
    wide = Extractor("flat", "0" * 64, 1024, (1, 32, 32), lambda x: x.flatten(1))
    images = torch.randn(40, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    build_reference([images], wide, keep_features=4).save(tmp_path / "wide.safetensors")
    covariance = load_reference(tmp_path / "wide.safetensors").covariance_DD
    assert torch.equal(covariance, covariance.mT)


def test_the_digest_covers_every_field(reference: Reference) -> None:
    changed = [
        replace(reference, extractor="other@0"),
        replace(reference, count=51),
        replace(reference, mean_D=reference.mean_D + 1e-9),
        replace(reference, covariance_DD=reference.covariance_DD * 1.0001),
        replace(reference, features_MD=reference.features_MD[:-1]),
        replace(reference, features_MD=reference.features_MD.flip(0)),
    ]
    assert len({r.digest for r in (reference, *changed)}) == 7


def test_another_extractor_is_refused(reference: Reference) -> None:
    reference.require(pooled())
    with pytest.raises(UsageError, match="cannot be compared"):
        reference.require(pooled(weights="1" * 64))


def test_statistics_of_one_image_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 2 images, got 1"):
        build_reference([batches()[0][:1]], pooled(), 10)
    with pytest.raises(UsageError, match="at least 2 images, got 0"):
        build_reference([], pooled(), 10)


Damage = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "mean"}, "mean missing"),
        (lambda t: t | {"covariance": torch.eye(5).double()}, r"got count \(\), covariance \(5, 5\)"),
        (lambda t: t | {"features": t["features"][:, :3].contiguous()}, r"features \(20, 3\)"),
        (lambda t: t | {"features": t["features"].int()}, "expected float64 mean and covariance and float features"),
        (lambda t: t | {"covariance": t["covariance"].float()}, "expected float64"),
        (lambda t: t | {"mean": t["mean"][0].clone()}, r"expected mean \(D,\)"),
        (lambda t: t | {"count": torch.tensor([50, 50])}, r"count \(2,\)"),
        (lambda t: t | {"count": torch.tensor(3)}, "at least the 20 kept features"),
        (lambda t: t | {"mean": t["mean"] * torch.nan}, "must be finite"),
        (lambda t: t | {"covariance": t["covariance"] + torch.arange(4).double()}, "symmetric"),
    ],
)
def test_damaged_statistics_are_refused(reference: Reference, tmp_path: Path, damage: Damage, message: str) -> None:
    path = tmp_path / "reference.safetensors"
    reference.save(path)
    save_file(damage(load_file(path)), path, {"extractor": reference.extractor})
    with pytest.raises(ModelError, match=message):
        load_reference(path)


def test_a_file_without_extractor_is_refused(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    reference.save(path)
    save_file(load_file(path), path)
    with pytest.raises(ModelError, match="extractor name missing"):
        load_reference(path)


def test_a_truncated_file_is_refused(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    reference.save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match="is not a safetensors file"):
        load_reference(path)
    with pytest.raises(ModelError, match="cannot read reference statistics"):
        load_reference(tmp_path / "none.safetensors")


def test_a_file_that_cannot_be_written_leaves_nothing(reference: Reference, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        reference.save(tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_the_saved_bytes_repeat(reference: Reference, tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        build_reference(batches(), pooled(), keep_features=20).save(tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
