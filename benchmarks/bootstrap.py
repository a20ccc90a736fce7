"""How wide the Fréchet distance's interval is against the true spread: the table of docs/metrics.md."""

from __future__ import annotations

import torch

from varsearch.evaluators.fid import Bootstrap, frechet_distance
from varsearch.evaluators.reference import Reference

FEATURES, REFERENCE, REPEATS, RESAMPLES = 64, 4000, 100, 200


def main() -> None:
    """Draws perfect samples again and again and compares their spread with two bootstraps' standard errors."""
    torch.manual_seed(0)
    spread_D = 3 * torch.arange(1, FEATURES + 1).double() ** -0.35
    real_MD = torch.randn(REFERENCE, FEATURES, dtype=torch.float64) * spread_D
    reference = Reference("synthetic", REFERENCE, real_MD.mean(0), real_MD.mT.cov(), real_MD[:500].float())
    print("n     mean fid  spread  plain bootstrap  as used")
    for n in (128, 256, 512):
        used, plain = Bootstrap(reference, n), Bootstrap(reference, n)
        draws = [torch.randint(n, (n,)).bincount(minlength=n) for _ in range(RESAMPLES)]
        plain.counts_RN = torch.stack(draws).double()
        values, errors, plain_errors = [], [], []
        for _ in range(REPEATS):
            sample_ND = torch.randn(n, FEATURES, dtype=torch.float64) * spread_D
            values.append(frechet_distance(sample_ND, reference))
            errors.append(Bootstrap.error(used.distances(sample_ND)))
            plain_errors.append(float(plain.distances(sample_ND).std()))
        found = torch.tensor(values)
        means = (sum(e) / REPEATS for e in (plain_errors, errors))
        print(f"{n:<5} {found.mean():<9.2f} {found.std():<7.2f} " + " ".join(f"{m:<16.2f}" for m in means))


if __name__ == "__main__":
    main()
