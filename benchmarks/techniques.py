"""Every published system next to dense, and what its paper claims: `python -m benchmarks.techniques`.

One batch of one image, on random weights: work and bytes are exact, times are measured here on one thread, dense and
policy in turn, choosing tokens and keys included. Random weights show cost only. What presets learn from a model is
assumed (`varsearch/space/presets/assumed.py`); quality is `varsearch compare`'s.
"""

from __future__ import annotations

import torch

from benchmarks.model import large_model
from varsearch.accel import apply
from varsearch.evaluators.decisions import measure_shares
from varsearch.evaluators.speed import dense_twin, interleaved, machine
from varsearch.evaluators.trace import Trace, trace
from varsearch.models import ImageModel
from varsearch.policy import Policy
from varsearch.space.presets import presets
from varsearch.space.presets.assumed import assumed
from varsearch.target import Target

ROUNDS = 6
"""The fewest that have a 95 % interval of their median."""

LOW_BIT = "low-bit linears save time only in a fused GPU kernel; here they save bytes alone"
TOKENS = "10,521 tokens in bf16 on a GPU; here 2,521 in float32"
BANDWIDTH = "memory bandwidth of a GPU, and batches that only fit with a smaller cache"
BATCHES = "batches of 64 on a GPU, where the cache of the large model is most of the memory"

CLAIMS = {
    "litevar": ("attention -85.2 %, memory -50 %, 1.5x; VAR-d30, 256 pixels (2411.17178)", LOW_BIT),
    "litevar-w6": ("no time; FID 1.98 to 3.04 in VAR-d30 by FPQVAR (2505.16335)", LOW_BIT),
    "litevar-85": ("as litevar; this strength is for maps of 8 x 8 and takes more from larger ones", LOW_BIT),
    "fastvar": ("2.7x, 16.1 to 11.9 GB; Infinity-2B, RTX 3090 (2503.23367)", TOKENS),
    "fastvar-hart": (
        "1.5x, 18.9 to 14.7 GB; HART-0.7B, RTX 3090 (2503.23367)",
        "9,451 tokens on a GPU, fused attention",
    ),
    "hack": ("KV -70 %, 1.57x, 60.4 to 34.4 GB; Infinity-8B, A100 (2504.09261)", BANDWIDTH),
    "hack-50": ("KV -50 %, FID 1.92 to 2.06, no time; VAR-d30 (2504.09261)", BANDWIDTH),
    "hackpp": ("KV -90 %, attention -60 %, 1.52x; Infinity-8B (2606.08302)", BANDWIDTH),
    "scalekv": ("KV -90 %, up to 1.25x; Infinity-8B, H20 (2505.19602); 0.67x by SparVAR (2602.04361)", BANDWIDTH),
    "scalekv-20": ("KV -80 %, no time; Infinity-8B (2505.19602)", BANDWIDTH),
    "sparvar": ("1.57x; Infinity-8B (2602.04361)", "fused block-sparse kernels, and 10,521 tokens to skip among"),
    "toprovar": ("3.4x; Infinity-2B, L40 (2602.22948)", "entropy inside a fused attention kernel; " + TOKENS),
    "skipvar": ("2.0x; Infinity-2B, L40, by ToProVAR (2602.22948)", TOKENS),
    "skipvar-88": ("1.81x at a mean similarity above 0.88; Infinity (2506.08908)", TOKENS),
    "code": ("1.7x, 39.2 to 21.0 GB; VAR-d30 with VAR-d16 from scale 8 of 10 (2411.17787)", BATCHES),
    "code-6": ("2.9x, 39.2 to 19.9 GB; VAR-d30 with VAR-d16 from scale 6 of 10 (2411.17787)", BATCHES),
}
"""What the paper of a preset claims, with its arXiv number, and which part of that a CPU cannot show."""


TARGET = Target(device="cpu", dtype="float32", batch_size=1)


def row(model: ImageModel, full: Trace, name: str, policy: Policy) -> None:
    """One system: ratios to dense, whose trace is `full`, and its paper's."""
    policy = measure_shares(model, policy, TARGET.batch_size) if policy.decisions else policy
    cost = trace(model, policy, TARGET)
    with apply(model, policy) as applied:
        timing = interleaved(dense_twin(model), applied, TARGET.batch_size, ROUNDS)
    ratios = (
        cost.flops / full.flops,
        cost.attention_flops / full.attention_flops,
        cost.kv_bytes / full.kv_bytes,
        cost.peak_bytes / full.peak_bytes,
    )
    columns = "  ".join(f"{ratio:9.2f}" for ratio in ratios)
    paper, missing = CLAIMS[name]
    print(f"{name:12s}  {columns}  {timing.speedup:5.2f}x ({timing.low:.2f}-{timing.high:.2f})  paper: {paper}")
    print(f"{'':78s}not here: {missing}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    model = large_model()
    print(f"{machine(torch.device('cpu'))}; median of {ROUNDS} rounds with its 95 % interval")
    print("random weights, 6 layers of width 256, 10 scales up to 32 x 32, one image; calibration assumed;")
    print("FLOPs, attention, KV and peak bytes are parts of dense, speed-ups are those on this CPU")
    print(f"{'':12s}  {'FLOPs':>9s}  {'attention':>9s}  {'KV':>9s}  {'peak':>9s}  speed-up (95 %)")
    full = trace(model, Policy.dense(model.spec.n_layers, len(model.spec.scales)), TARGET)
    chosen, missing = presets(model.spec, assumed(model.spec), [model.sibling("half").spec])
    for name, policy in chosen.items():
        row(model, full, name, policy)
    for name, reason in missing.items():
        print(f"not shown: {name}: {reason}")


if __name__ == "__main__":
    main()
