from __future__ import annotations

import math
import statistics
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from varsearch.evaluators.fid import KID_SUBSETS, SEED, Bootstrap, Precomputed, frechet_distance, kid
from varsearch.evaluators.per_image import Z_95
from varsearch.evaluators.reference import Reference


def gaussian(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Correlated features of unequal variance, (n, d) float32."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1).pow(-0.35)
    mix = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(99))).Q
    return scale * (torch.randn(n, d, generator=generator) * spectrum) @ mix + shift * spectrum


def reference_from(features_ND: Tensor) -> Reference:
    doubles = features_ND.double()
    return Reference("synthetic@0", len(doubles), doubles.mean(0), doubles.mT.cov(), features_ND)


def symmetric_form(features_ND: Tensor, reference: Reference) -> float:
    """The bootstrap's own distance, of the sample as it is."""
    bootstrap = Bootstrap(reference, len(features_ND))
    bootstrap.counts_RN = torch.ones(1, len(features_ND), dtype=torch.float64)
    return bootstrap.distances(features_ND).item()


def exact(mean_D: Tensor, variances_D: Tensor) -> Tensor:
    """A sample whose mean and (diagonal) covariance are exactly these, (4 D, D) float64."""
    d = len(mean_D)
    noise = torch.randn(4 * d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    white = torch.linalg.qr(noise - noise.mean(0)).Q * (4 * d - 1) ** 0.5
    return white * variances_D.sqrt() + mean_D


def test_the_distance_of_gaussians_is_the_closed_form() -> None:
    means, variances = torch.tensor([[0.0, 1, 2, 3], [1.0, 1, 0, 3]]), torch.tensor([[1.0, 4, 9, 0.25], [4.0, 4, 1, 1]])
    samples = [exact(m.double(), v.double()) for m, v in zip(means, variances, strict=True)]
    # Diagonal covariances commute: |m - m'|^2 + sum (s - s')^2 with the standard deviations s.
    want = 5.0 + (1 + 0 + 4 + 0.25)
    assert frechet_distance(samples[0], reference_from(samples[1])) == pytest.approx(want, rel=1e-9)
    assert symmetric_form(samples[0], reference_from(samples[1])) == pytest.approx(want, rel=1e-9)


def test_injected_statistics_equal_torchmetrics_fed_with_both_samples() -> None:
    real, fake = gaussian(300, 16, 0, shift=0.5) + 20, gaussian(120, 16, 1, scale=1.3) + 20
    metric = FrechetInceptionDistance(Precomputed(16)).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    assert frechet_distance(fake, reference_from(real)) == pytest.approx(metric.compute().item(), rel=1e-9)


@settings(max_examples=60)
@given(n=st.integers(3, 60), d=st.integers(2, 24), seed=st.integers(0, 999), scale=st.floats(0.2, 5))
def test_the_symmetric_form_equals_torchmetrics(n: int, d: int, seed: int, scale: float) -> None:
    fake, reference = gaussian(n, d, seed, scale, shift=0.3), reference_from(gaussian(200, d, seed + 1))
    # Where the sample's covariance is singular, torchmetrics takes the root of rounding errors, about 1e-8 each.
    rounding = 1e-6 * (reference.covariance_DD.trace() + fake.double().mT.cov().trace()).item() if n <= d else 0.0
    want = frechet_distance(fake, reference)
    assert symmetric_form(fake, reference) == pytest.approx(want, rel=1e-6, abs=max(rounding, 1e-12))


def test_a_sample_is_at_distance_zero_of_itself() -> None:
    features = gaussian(200, 12, 0)
    assert frechet_distance(features, reference_from(features)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_the_interval_covers_the_mean_over_fresh_samples(shift: float) -> None:
    n, repeats = 120, 60
    reference = reference_from(gaussian(2000, 8, 10_000))
    bootstrap = Bootstrap(reference, n)
    samples = [gaussian(n, 8, seed, shift=shift) for seed in range(repeats)]
    values = torch.tensor([frechet_distance(sample, reference) for sample in samples])
    errors = torch.tensor([Bootstrap.error(bootstrap.distances(sample)) for sample in samples])
    covered = ((values - values.mean()).abs() <= Z_95 * errors).double().mean()
    assert covered >= 0.9
    assert errors.mean() < 1.7 * values.std()


def test_a_paired_difference_spreads_less_than_an_unpaired_one() -> None:
    reference = reference_from(gaussian(2000, 8, 10_000))
    base = gaussian(200, 8, 0, shift=0.3)
    changed = base + 0.1 * gaussian(200, 8, 1)
    bootstrap = Bootstrap(reference, 200)
    first, second = bootstrap.distances(changed), bootstrap.distances(base)
    paired, unpaired = Bootstrap.error(first - second), Bootstrap.error(first - second.roll(1))
    assert paired < unpaired / 2
    assert Bootstrap.error(first - first) == 0


def test_only_problems_with_two_large_sides_get_few_resamples() -> None:
    reference = reference_from(gaussian(400, 200, 3))
    assert len(Bootstrap(reference, 40).distances(gaussian(40, 200, 4))) == 200
    assert len(Bootstrap(reference, 300).counts_RN) == 20


def cubic(a: Tensor, b: Tensor) -> float:
    return (float(a @ b) / len(a) + 1) ** 3


def brute_force_kid(fake: Tensor, real: Tensor, size: int) -> float:
    """Unbiased cubic MMD of the same random subsets, term by term."""
    generator, total = torch.Generator().manual_seed(SEED), 0.0
    for _ in range(KID_SUBSETS):
        x = real[torch.randperm(len(real), generator=generator)[:size]]
        y = fake[torch.randperm(len(fake), generator=generator)[:size]]
        own = sum(cubic(z[i], z[j]) for z in (x, y) for i in range(size) for j in range(size) if i != j)
        total += own / (size * (size - 1)) - 2 * sum(cubic(a, b) for a in x for b in y) / size**2
    return total / KID_SUBSETS


def brute_force_error(fake: Tensor, real: Tensor) -> float:
    """Twice the standard error of what each image contributes, on average over its partners."""
    n = len(fake)
    own = [sum(cubic(fake[i], fake[j]) for j in range(n) if j != i) / (n - 1) for i in range(n)]
    cross = [sum(cubic(image, b) for b in real) / len(real) for image in fake]
    return 2 * statistics.stdev(a - b for a, b in zip(own, cross, strict=True)) / math.sqrt(n)


def test_kid_equals_brute_force() -> None:
    real, fake = gaussian(9, 5, 0), gaussian(7, 5, 1, shift=1)
    found = kid(fake, reference_from(real))
    value, error = brute_force_kid(fake.double(), real.double(), 3), brute_force_error(fake.double(), real.double())
    assert found.value == pytest.approx(value, rel=1e-9)
    assert (found.low, found.high) == (pytest.approx(value - Z_95 * error), pytest.approx(value + Z_95 * error))
    assert found.n == 7 and found.note == "100 subsets of 3"


def test_kid_repeats_and_leaves_the_global_generator_alone() -> None:
    reference, fake = reference_from(gaussian(60, 5, 0)), gaussian(40, 5, 1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = kid(fake, reference)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert kid(fake, reference) == first


def test_the_kid_interval_is_that_of_fresh_samples() -> None:
    reference = reference_from(gaussian(600, 6, 10_000))
    found = [kid(gaussian(100, 6, seed, shift=0.5), reference) for seed in range(40)]
    values = torch.tensor([m.value for m in found])
    error = torch.tensor([m.high - m.low for m in found if m.high is not None and m.low is not None]).mean() / 2 / Z_95
    assert 0.7 * values.std() < error < 1.5 * values.std()


def test_an_unusable_torchmetrics_is_one_clear_line() -> None:
    code = """
import sys
sys.modules["torchmetrics.image.fid"] = None
from varsearch.errors import UsageError
try:
    import varsearch.evaluators.fid
except UsageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'varsearch[search]'" in done.stdout and len(done.stdout.splitlines()) == 1
