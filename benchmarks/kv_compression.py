"""What presets of KV compression save and what their selection costs: `python -m benchmarks.kv_compression`."""

from __future__ import annotations

import torch

from benchmarks.model import large_model, small_model
from varsearch.accel import apply
from varsearch.calibration import Calibration
from varsearch.evaluators.calibrate import calibrate, protocol_of
from varsearch.evaluators.per_image import nll
from varsearch.evaluators.speed import dense_twin, interleaved, machine
from varsearch.evaluators.trace import trace
from varsearch.models import ImageModel, zoo
from varsearch.policy import Policy
from varsearch.space.presets.assumed import assumed
from varsearch.space.presets.hack import hack
from varsearch.space.presets.hackpp import hackpp
from varsearch.space.presets.scalekv import scalekv
from varsearch.target import ModelSpec, Target

REPEATS = 9


def policies(spec: ModelSpec, calibration: Calibration) -> dict[str, Policy]:
    return {
        "hack 50 %": hack(spec, calibration, 0.5),
        "hack 70 %": hack(spec, calibration),
        "hack++ 30/10 %": hackpp(spec, calibration),
        "hack++ 60/10 %": hackpp(spec, calibration, attention=0.6),
        "scalekv 20 %": scalekv(spec, calibration, 0.2),
        "scalekv 10 %": scalekv(spec, calibration),
    }


def show(name: str, model: ImageModel, calibration: Calibration, batch_size: int) -> None:
    target = Target(device="cpu", dtype="float32", batch_size=batch_size)
    full = trace(model, Policy.dense(model.spec.n_layers, len(model.spec.scales)), target)
    twin = dense_twin(model)
    held_out = zoo.held_out(name) if name in zoo.names() else None
    print(f"\n{name}: batch of {batch_size}; parts of dense")
    print("preset             KV  attention  scoring    all FLOPs  speed-up (95 %)       NLL")
    for label, policy in policies(model.spec, calibration).items():
        found = trace(model, policy, target)
        with apply(model, policy) as applied:
            timing = interleaved(twin, applied, batch_size, REPEATS)
            likelihood = nll(applied, *held_out, 64).value if held_out else float("nan")
        scoring = sum(op.flops for op in found.ops if op.scoring)
        attention, scored = ((n / full.attention_flops) for n in (found.attention_flops - scoring, scoring))
        print(
            f"{label:15}  {found.kv_bytes / full.kv_bytes:5.1%}  {attention:9.1%}  {scored:7.1%}"
            f"  {found.flops / full.flops:11.1%}"
            f"  {timing.speedup:5.2f} ({timing.low:.2f}-{timing.high:.2f})  {likelihood:8.3f}"
        )


def main() -> None:
    torch.set_num_threads(1)
    print(f"{machine(torch.device('cpu'))}; {REPEATS} rounds")
    small, large = small_model(), large_model()
    show("mnist", small, calibrate(small, protocol_of(small)), 16)
    show("32 x 32 map, random weights, calibration assumed", large, assumed(large.spec), 1)


if __name__ == "__main__":
    main()
