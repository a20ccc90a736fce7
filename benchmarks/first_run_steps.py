"""The steps of `first_run.py`; each prints parts of one JSON object, a line each."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.model import random
from varsearch.accel import Accelerated, apply, labels_for
from varsearch.evaluators.draws import Drawing
from varsearch.evaluators.speed import cuda_peak, dense_twin, interleaved
from varsearch.evaluators.trace import record
from varsearch.evaluators.workload import cast, default_sampler, device_of, run_batch
from varsearch.kernels.attention_backends import BACKENDS, Request, reference
from varsearch.kernels.packing import pack, quantize
from varsearch.kernels.quantized_linear import expand, quantized_linear, supported
from varsearch.models import ImageModel
from varsearch.models.infinity.tokenizer import BitTokenizerConfig
from varsearch.models.infinity.transformer import InfinityConfig
from varsearch.models.mamba import MambaConfig
from varsearch.models.mvar import MVARConfig
from varsearch.models.pictures import to_bytes
from varsearch.models.random_weights import random_model
from varsearch.models.sampling import PairedSampler
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig
from varsearch.policy import Policy
from varsearch.space.presets import presets, seeds
from varsearch.space.presets.assumed import assumed

SCALES = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6))
N = 4


def tell(**found: Any) -> None:
    """Prints a part of what a step found."""
    print(json.dumps(found), flush=True)


def tiny_models() -> dict[str, ImageModel]:
    """One of each family, with random weights."""
    pixels = TokenizerConfig(
        SCALES, vocab=32, z_channels=8, ch=16, ch_mult=(1, 2), res_blocks=1, image_channels=1, norm_groups=8
    )
    bits = BitTokenizerConfig(SCALES, channels=4, ch=16, ch_mult=(1, 2), res_blocks=1, norm_groups=8)
    shape: dict[str, Any] = {"depth": 3, "width": 64, "heads": 4, "classes": 10, "vocab": 32, "z_channels": 8}
    infinity = InfinityConfig(SCALES, SCALES[-1], 3, 64, 4, chunks=1, bits=4, text_channels=128, text_length=6)
    return {
        "var": random_model(VARConfig(SCALES, **shape), pixels, (12, 12)),
        "infinity": random_model(infinity, bits, (12, 12)),
        "mvar": random_model(MVARConfig(SCALES, **shape, mamba=MambaConfig(state=8, head_dim=16)), pixels, (12, 12)),
    }


def policies_of(model: ImageModel) -> dict[str, Policy]:
    """Hand-made ones and published systems with assumed constants."""
    known = None if model.spec.family == "mvar" else assumed(model.spec)
    return {**seeds(model.spec), **presets(model.spec, known)[0]}


def environment(device: str) -> None:
    """What is there, by the package's own checks."""
    from varsearch.doctor import examine

    with tempfile.TemporaryDirectory() as folder:
        checks = [asdict(check) for check in examine(f"{folder}/new.db")]
    tell(python=platform.python_version(), torch=torch.__version__, cuda=torch.version.cuda, checks=checks)
    if device == "cuda":
        smi = subprocess.run(["nvidia-smi", "-q", "-d", "CLOCK,POWER"], capture_output=True, text=True, check=False)
        print(smi.stdout, file=sys.stderr)
        tell(gpu=torch.cuda.get_device_name(), free_bytes=torch.cuda.mem_get_info()[0])


@contextmanager
def no_waits(device: str) -> Iterator[None]:
    """Raises where the host would wait for the GPU."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def techniques(device: str) -> None:
    """Every policy on tiny models: the CPU's images, finite in 16 bits, and nothing waited for in the second run."""
    for family, cpu in tiny_models().items():
        there = cast(cpu, device, torch.float32)
        rows: dict[str, dict[str, Any]] = {}
        for name, policy in policies_of(cpu).items():
            try:
                rows[name] = _beside_cpu(cpu, there, policy, device)
            except Exception as error:  # the others are still of use
                rows[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        for dtype in (torch.float16, torch.bfloat16):
            half = cast(cpu, device, dtype)
            rows[str(dtype)] = {
                name: bool(images_of(half, policy).isfinite().all()) for name, policy in policies_of(cpu).items()
            }
        tell(**{family: rows})


def _beside_cpu(cpu: ImageModel, there: ImageModel, policy: Policy, device: str) -> dict[str, Any]:
    difference = (images_of(there, policy) - images_of(cpu, policy)).abs().flatten(1).amax(1)
    row: dict[str, Any] = {"largest": float(difference.max()), "images_off": int((difference > 1e-2).sum())}
    with apply(there, policy) as applied:
        run_batch(applied, N, default_sampler(there))
        labels_N = labels_for(N, there.spec.classes, device)
        sampler = default_sampler(there)
        try:
            with no_waits(device):
                there.generate(labels_N, sampler, applied.plan)
        except RuntimeError as error:
            row["waits"] = str(error).splitlines()[0]
    return row


def images_of(model: ImageModel, policy: Policy) -> Tensor:
    """A few images on the CPU, in fp32."""
    with apply(model, policy) as applied:
        labels_N = labels_for(N, model.spec.classes, device_of(model))
        return applied.images(labels_N, seed=1, noise="philox").cpu().float()


def kernels(device: str) -> None:
    """Attention back-ends and quantized linears beside their definitions."""
    last = ((64, 100),) if device == "cpu" else ((4096, 10521),)
    dtypes = (torch.float32,) if device == "cpu" else (torch.float16, torch.bfloat16)
    found: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(0)
    for name, backend in BACKENDS.items():
        for dtype in dtypes:
            if reason := backend.unsupported(Request(torch.device(device), dtype, 64)):
                found[f"{name} {dtype}"] = {"refused": reason}
                continue
            for length, keys in ((1, 1), (4, 5), (16, 21), (36, 57), *last):
                q, k, v = (
                    torch.randn(1, 4, n, 64, generator=generator).to(device, dtype) for n in (length, keys, keys)
                )
                mask = (torch.rand(1, 4, length, keys, generator=generator) < 0.5).to(device)
                mask[:, 0, 0] = False
                masks = (
                    {"": None}
                    if backend.unsupported(Request(torch.device(device), dtype, 64, masked=True))
                    else {"": None, " masked": mask}
                )
                for label, chosen in masks.items():
                    want = reference(q.float() / 8, k.float(), v.float(), chosen)
                    error = (backend.run(q / 8, k, v, chosen).float() - want).abs().max()
                    found[f"{name} {dtype} {length}x{keys}{label}"] = float(error)
    tell(attention=found)
    tell(quantized=_quantized(device, generator))


def _quantized(device: str, generator: torch.Generator) -> dict[str, Any]:
    found: dict[str, Any] = {}
    dtypes = (torch.float32,) if device == "cpu" else (torch.float16, torch.bfloat16, torch.float32)
    for dtype in dtypes:
        backend = "torch" if supported(torch.device(device), dtype) else "triton"
        for bits in (8, 6, 4, 3):
            q, scale = quantize(torch.randn(93, 130, generator=generator), bits)
            packed, scale = pack(q, bits).to(device), scale.to(device, dtype)
            for rows in (1, 2, 17, 33, 256, 257):
                x = torch.randn(rows, 130, generator=generator).to(device, dtype)
                want = x.float() @ expand(packed, scale, bits, 130, dtype).float().T
                got = quantized_linear(x, packed, scale, None, bits, 130, backend).float()  # type: ignore[arg-type]
                found[f"{backend} {dtype} {bits} bits {rows} rows"] = float((got - want).abs().max() / want.abs().max())
    return found


def broken_policy(device: str) -> None:
    """What logits of NaN do to the trial, and to those after it."""
    from varsearch.errors import EvaluationError
    from varsearch.evaluators.extractors import check_finite

    sound = cast(tiny_models()["var"], device, torch.float32)
    bad = cast(tiny_models()["var"], device, torch.float32)
    next(iter(bad.transformer.layers[0].parameters())).fill_(torch.nan)
    plan = bad.dense_plan()
    told: list[str] = []
    for sampler in (default_sampler(bad), PairedSampler(0, range(N), noise="philox")):
        try:
            check_finite(bad.generate(labels_for(N, 10, device), sampler, plan), "images")
            told.append("nothing was noticed")
        except (EvaluationError, RuntimeError) as error:
            told.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    images = run_batch(Accelerated(sound, sound.dense_plan()), N, default_sampler(sound))
    tell(told=told, next_is_finite=bool(images.isfinite().all()))


def var_d16(device: str) -> None:
    """VAR-d16 dense: milliseconds, and how many kernels of what length."""
    small = device == "cpu"
    model = tiny_models()["var"] if small else random("var-d16", device, "float16")
    dense = dense_twin(model)
    for batch in (1, 16):
        timing = interleaved(dense, dense, batch, 3 if small else 15)
        tell(**{f"eager_b{batch}_ms": timing.latency_ms})
    activities = [torch.profiler.ProfilerActivity.CPU if small else torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiled:
        run_batch(dense, 1, default_sampler(model))
    events = profiled.events() or []
    busy = sum(e.cpu_time_total if small else e.device_time_total for e in events if not small or not e.cpu_parent)
    tell(kernels=len(events), busy_ms=busy / 1e3)
    if not small:
        tell(**_graphed(dense))


def _graphed(dense: Accelerated) -> dict[str, Any]:
    """One CUDA graph of a whole generation with greedy codes, if it can be captured."""
    from varsearch.models.sampling import GreedySampler

    labels_N = labels_for(1, dense.model.spec.classes, "cuda")
    draw = partial(dense.model.generate, labels_N, GreedySampler(), dense.plan)
    for _ in range(3):
        draw()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            draw()
    except RuntimeError as error:
        return {"graph": f"refused: {str(error).splitlines()[0]}"}
    times = []
    for _ in range(15):
        torch.cuda.synchronize()
        started = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - started))
    return {"graph_b1_ms": sorted(times)[len(times) // 2]}


def infinity_2b(device: str) -> None:
    """Infinity-2B at 1024 pixels: dense, its memory beside the trace's, and published systems in turn with it."""
    small = device == "cpu"
    model = tiny_models()["infinity"] if small else random("infinity-2b", device, "bfloat16")
    dense, rounds = dense_twin(model), 3 if small else 15
    tell(dense_ms=interleaved(dense, dense, 1, rounds).latency_ms, traced=_memory(dense, device))
    for name, policy in policies_of(model).items():
        if name not in ("fastvar", "scalekv", "hack", "litevar", "sparvar", "skipvar", "w8", "w4"):
            continue
        try:
            with apply(model, policy) as applied:
                timing = interleaved(dense, applied, 1, 3 if small else 6)
                tell(**{name: {"ms": timing.latency_ms, "speedup": timing.speedup} | _memory(applied, device)})
        except Exception as error:  # the others are still of use
            tell(**{name: {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}})


def _memory(applied: Accelerated, device: str) -> dict[str, int]:
    exact = record(applied, 1)
    peak = {} if device == "cpu" else {"allocator_bytes": exact.weight_bytes + cuda_peak(applied, 1)}
    return {"traced_bytes": exact.peak_bytes} | peak


def rates(device: str) -> None:
    """What products and attention reach: TFLOP/s of 16 bits, int8 and fp8, and GB/s of plain operators."""
    small = device == "cpu"
    m, k, n = (64, 64, 64) if small else (8192, 2048, 8192)
    dtype = torch.float32 if small else torch.bfloat16
    x, w = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
    work: dict[str, Callable[[], object]] = {"linear": lambda: F.linear(x, w)}
    if not small:
        a, b = (t.clamp(-3, 3).mul(40).to(torch.int8) for t in (x, w))
        work["int8"] = lambda: torch._int_mm(a, b.T)
        if torch.cuda.get_device_capability() >= (8, 9):
            one = torch.ones((), device=device)
            a8, b8 = (t.to(torch.float8_e4m3fn) for t in (x, w))
            work["fp8"] = lambda: torch._scaled_mm(a8, b8.T, one, one, out_dtype=torch.bfloat16)
    for name, call in work.items():
        try:
            tell(**{f"{name}_tflops": 2 * m * k * n / _seconds(call, device) / 1e12})
        except RuntimeError as error:
            tell(**{f"{name}_tflops": f"refused: {str(error).splitlines()[0]}"})
    length, keys = (64, 100) if small else (4096, 10521)
    q, kk, v = (torch.randn(2, 16, s, 128, device=device, dtype=dtype) for s in (length, keys, keys))
    seconds = _seconds(lambda: F.scaled_dot_product_attention(q, kk, v, scale=1.0), device)
    tell(sdpa_tflops=4 * 2 * 16 * length * keys * 128 / seconds / 1e12)
    tell(add_gb_per_s=3 * x.nbytes / _seconds(lambda: x + x, device) / 1e9)


def _seconds(call: Callable[[], object], device: str) -> float:
    """Shortest of a few runs after a warm-up."""

    def once() -> float:
        started = time.perf_counter()
        for _ in range(5):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / 5

    once()
    return min(once() for _ in range(5))


def whole_job(device: str) -> None:
    """A run that is killed and continued, its state, its export, and the policy at work."""
    folder = tempfile.mkdtemp()
    here = [sys.executable, "-m", "varsearch"]
    budget, images = ("4", "16") if device == "cpu" else ("8", "64")
    run = [*here, "run", "--target", "local", "--objectives", "fid,latency", "--budget", budget, "--images", images]
    run += ["--no-confirm", "--name", "first"]
    surroundings = os.environ | {"PYTHONPATH": str(Path.cwd()), "VARSEARCH_LIBRARY": f"{folder}/policies"}
    options: dict[str, Any] = {"cwd": folder, "env": surroundings}
    begun = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    time.sleep(15)
    begun.kill()
    begun.wait()
    tell(killed_after_s=15)
    commands = {
        "run": run,
        "status": [*here, "status", "--json"],
        "export": [*here, "export", "--run", "first", "--select", "knee", "--output", "policy.json"],
        "apply": [*here, "apply", "policy.json", "--json"],
    }
    for name, command in commands.items():
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        print(done.stdout, done.stderr, file=sys.stderr)
        if done.returncode:
            raise SystemExit(f"{name} left with {done.returncode}: {done.stderr.strip()}")
        tell(**{name: done.stdout.splitlines()[-1] if done.stdout else ""})


def drawing(device: str) -> None:
    """Images per second, the share of their noise, and whether two runs give the same bytes."""
    small = device == "cpu"
    model = tiny_models()["var"] if small else random("var-d16", device, "float16")
    applied, n = Accelerated(model, model.dense_plan()), 8 if small else 128
    hashes = []
    for noise in ("philox", "mt19937", "philox"):
        started = time.perf_counter()
        seen = hashlib.sha256()
        for images in Drawing(0, noise, 64).images(applied, n):
            seen.update(to_bytes(images).numpy().tobytes())
        hashes.append(seen.hexdigest())
        tell(**{f"{noise}_images_per_s": n / (time.perf_counter() - started)})
    tell(same_bytes=hashes[0] == hashes[2])


@dataclass(frozen=True, slots=True)
class Step:
    """What a step does on a device, and how long it may take."""

    run: Callable[[str], None]
    limit_s: float


STEPS = {
    "environment": Step(environment, 40),
    "techniques": Step(techniques, 70),
    "broken": Step(broken_policy, 20),
    "infinity-2b": Step(infinity_2b, 150),
    "var-d16": Step(var_d16, 60),
    "kernels": Step(kernels, 45),
    "job": Step(whole_job, 90),
    "rates": Step(rates, 30),
    "drawing": Step(drawing, 35),
}
"""By what they tell if time is short: the first ones first."""


def main() -> None:
    small = "--small" in sys.argv
    device = "cpu" if small or not torch.cuda.is_available() else "cuda"
    if not small and device == "cpu":
        raise SystemExit("there is no GPU: --small tries the steps on the CPU")
    STEPS[sys.argv[1]].run(device)


if __name__ == "__main__":
    main()
