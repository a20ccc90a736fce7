"""The published models on a CUDA device: `python -m benchmarks.models [MODEL:BATCH …]`, all cases without arguments.

Random weights in bfloat16, decoding included. For each case: the dense latency with every attention back-end that can
run, where its time goes, the memory peak, and every published system next to dense, timed in turn. What presets learn
from a model is assumed (`assumed.py`), so these are costs and no quality. Each case is one JSON file in
`benchmarks/results`, written anew after each figure, so that a case that is cut short leaves what it found.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.model import random
from benchmarks.stopwatch import shares
from varsearch.accel import Accelerated, apply
from varsearch.errors import TargetError
from varsearch.evaluators.speed import Timing, cuda_peak, dense_twin, interleaved, machine
from varsearch.evaluators.trace import record
from varsearch.evaluators.workload import device_of
from varsearch.kernels.attention_backends import BACKENDS
from varsearch.models import ImageModel
from varsearch.space.presets import presets
from varsearch.space.presets.assumed import assumed
from varsearch.target import AttentionBackend

RESULTS = Path(__file__).parent / "results"
CASES = {"var-d30": (1, 8, 64), "infinity-2b": (1, 4)}
"""Batch sizes by model."""

ROUNDS = {1: 15, 8: 9}
"""Timed rounds by batch size; larger batches have the fewest with a 95 % interval of their median."""

FEWEST = 6
SIBLING = {"var-d30": "var-d16"}
"""The smaller model that CoDe's preset hands the late scales to."""

PACKAGES = ("torch", "triton", "flash-attn")
Figures = dict[str, Any]


def measure(
    model: ImageModel, batch_size: int, rounds: int, siblings: tuple[str, ...], save: Callable[[Figures], object]
) -> Figures:
    """All figures of one case, where `model` is and in its dtype; `save` gets them each time that there is one more."""
    dense, spec = dense_twin(model), model.spec
    chosen, missing = presets(spec, assumed(spec), [model.sibling(name).spec for name in siblings])

    def preset(name: str) -> Figures:
        with apply(model, chosen[name]) as applied:
            timing = interleaved(dense, applied, batch_size, rounds)
            return figures(timing) | memory(applied, batch_size) | {"shares": shares(applied, batch_size)}

    found: Figures = {"attention": {}, "presets": {name: {"refused": reason} for name, reason in missing.items()}}
    for backend in BACKENDS:
        found["attention"][backend] = attempt(partial(with_backend, dense, backend, batch_size, rounds))
        save(found)
    found["shares"] = shares(dense, batch_size)
    for name in chosen:
        found["presets"][name] = attempt(partial(preset, name))
        save(found)
    return found


def with_backend(dense: Accelerated, name: AttentionBackend, batch_size: int, rounds: int) -> Figures:
    """Dense with one attention back-end, next to dense with the default."""
    other = dense_twin(dense.model, name)
    return figures(interleaved(dense, other, batch_size, rounds)) | memory(other, batch_size)


def attempt(fn: Callable[[], Figures]) -> Figures:
    """What `fn` finds, or in one line why it finds nothing."""
    try:
        return fn()
    except TargetError as error:
        return {"refused": str(error)}
    except Exception as error:  # Drivers and compilers fail in their own ways, and the other figures are still of use.
        return {"failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}


def figures(timing: Timing) -> Figures:
    """A timing as JSON; `speedup` is over dense in the same rounds."""
    low, middle, high = timing.quartiles_ms
    return {
        "attention": timing.attention,
        "latency_ms": middle,
        "latency_quartiles_ms": [low, high],
        "speedup": timing.speedup,
        "speedup_interval": [timing.low, timing.high],
        "rounds": len(timing.policy_s),
    }


def memory(applied: Accelerated, batch_size: int) -> dict[str, int]:
    """Bytes of one batch; the peak is the CUDA allocator's where there is one."""
    exact = record(applied, batch_size)
    on_cuda = device_of(applied.model).type == "cuda"
    peak = exact.weight_bytes + cuda_peak(applied, batch_size) if on_cuda else exact.peak_bytes
    return {"peak_bytes": peak, "kv_bytes": exact.kv_bytes, "weight_bytes": exact.weight_bytes}


def about(model: ImageModel, name: str, batch_size: int) -> Figures:
    """What the figures are of."""
    return {
        "model": name,
        "batch_size": batch_size,
        "weights": "random",
        "dtype": str(model.transformer.pos_start.dtype).removeprefix("torch."),
        "device": machine(device_of(model)),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "command": " ".join(["python -m benchmarks.models", *sys.argv[1:]]),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write(found: Figures, folder: Path) -> Path:
    """Writes one case into its file."""
    device = re.sub(r"\W+", "-", found["device"].split(",")[0]).strip("-").lower()
    path = folder / f"{found['model']}-b{found['batch_size']}-{device}.json"
    folder.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def summary(found: Figures) -> str:
    """The case in a few lines."""
    rows = [f"{found['model']}, batch {found['batch_size']}, {found['dtype']}; {found['device']}"]
    rows.append("  time of dense: " + ", ".join(f"{part} {share:.0%}" for part, share in found["shares"].items()))
    for kind in ("attention", "presets"):
        for name, got in found[kind].items():
            if "latency_ms" in got:
                low, high = got["speedup_interval"]
                told = f"{got['latency_ms']:9.1f} ms  {got['speedup']:5.2f}x ({low:.2f}-{high:.2f})"
                told += f"  peak {got['peak_bytes'] / 1e9:.2f} GB, KV {got['kv_bytes'] / 1e9:.2f} GB"
            else:
                told = "; ".join(f"{key}: {value}" for key, value in got.items())
            rows.append(f"  {name:14} {told}")
    return "\n".join(rows)


def run(model: ImageModel, name: str, batch_size: int, rounds: int, folder: Path, siblings: tuple[str, ...]) -> None:
    """Measures one case, writes it and prints it."""
    header = about(model, name, batch_size)
    found = header | measure(model, batch_size, rounds, siblings, lambda part: write(header | part, folder))
    print(f"{summary(found)}\n  written to {write(found, folder)}", flush=True)


def main() -> None:
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA device; none is here, so nothing was measured.")
        return
    cases = [(name, size) for name, sizes in CASES.items() for size in sizes]
    if len(sys.argv) > 1:
        cases = [(name, int(size or 1)) for name, _, size in (argument.partition(":") for argument in sys.argv[1:])]
    for name in dict.fromkeys(name for name, _ in cases):
        model = random(name, "cuda", "bfloat16")
        for size in (size for other, size in cases if other == name):
            siblings = (SIBLING[name],) if name in SIBLING else ()
            run(model, name, size, ROUNDS.get(size, FEWEST), RESULTS, siblings)


if __name__ == "__main__":
    main()
