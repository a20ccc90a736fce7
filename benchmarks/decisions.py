"""FastVAR, SkipVAR and ToProVAR next to dense: `python -m benchmarks.decisions`.

Work and bytes are of one batch of 16 and exact, for batches that part as the images of the calibration did; times are
measured here, on one thread. `python -m benchmarks.techniques` has a model whose maps are large.
"""

from __future__ import annotations

import torch

from benchmarks.model import beside_dense, small_model
from varsearch.evaluators.calibrate import calibrate, protocol_of
from varsearch.evaluators.decisions import fit_skipvar, measure_shares, similarity
from varsearch.evaluators.speed import machine
from varsearch.models import ImageModel
from varsearch.policy import Policy
from varsearch.space.presets.fastvar import HART, fastvar
from varsearch.space.presets.skipvar import skipvar
from varsearch.space.presets.toprovar import toprovar

ROUNDS, IMAGES, BATCH = 5, 200, 16
SIMILAR = (0.84, 0.86, 0.88, 0.95)


def row(model: ImageModel, name: str, policy: Policy) -> None:
    """One line: ratios to dense."""
    cost, full, speedup = beside_dense(model, policy, BATCH, ROUNDS)
    shares = "; ".join("/".join(f"{a.share:.0%}" for a in d.actions) for d in policy.decisions)
    ssim = similarity(model, policy, IMAGES).mean()
    ratios = {
        "FLOPs": cost.flops / full.flops,
        "attention": cost.attention_flops / full.attention_flops,
        "KV": cost.kv_bytes / full.kv_bytes,
        "peak": cost.peak_bytes / full.peak_bytes,
    }
    columns = "  ".join(f"{label} {ratio:4.2f}" for label, ratio in ratios.items())
    print(f"{name:20s} {columns}  CPU {speedup:4.2f}x  SSIM {ssim:.3f}  {shares}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    model = small_model()
    print(f"{machine(torch.device('cpu'))}; {model.spec.name}, batch {BATCH}; similarity and shares of {IMAGES} images")
    found = calibrate(model, protocol_of(model))
    policies = {
        "fastvar (Infinity)": fastvar(model.spec),
        "fastvar (HART)": fastvar(model.spec, HART, layers=(0, 1)),
        **{f"skipvar {t}": skipvar(model.spec, d) for t, d in fit_skipvar(model, SIMILAR, IMAGES).items()},
        "toprovar": measure_shares(model, toprovar(model.spec, found), IMAGES),
        "toprovar tau 0.48": measure_shares(model, toprovar(model.spec, found, tau=0.48), IMAGES),
    }
    for name, policy in policies.items():
        row(model, name, policy)


if __name__ == "__main__":
    main()
