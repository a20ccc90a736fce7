"""What a machine has and lacks for the main job: each check finds something out, and says what to do about it.

A check that fails tells of itself; the others go on.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from varsearch import library
from varsearch.accel import apply
from varsearch.errors import VarsearchError
from varsearch.evaluators.batches import free_bytes
from varsearch.evaluators.devices import local_device, no_compiler, why_not_here
from varsearch.evaluators.speed import cpu_name
from varsearch.evaluators.workload import cast, device_of
from varsearch.kernels.attention_backends import BACKENDS, Request, reference
from varsearch.kernels.packing import pack, quantize
from varsearch.kernels.quantized_linear import expand, quantized_linear, supported
from varsearch.models import zoo
from varsearch.models.image_model import ImageModel
from varsearch.models.noise import philox
from varsearch.models.random_weights import random_model
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig
from varsearch.policy import Policy
from varsearch.space.presets import presets, seeds
from varsearch.space.presets.assumed import assumed
from varsearch.target import devices

Status = Literal["ok", "warning", "error"]

NEEDED = {
    "torch": "pip install torch",
    "optuna": "pip install 'varsearch[search]'",
    "sqlalchemy": "pip install 'varsearch[search]'",
    "torchmetrics": "pip install 'varsearch[search]'",
}
OPTIONAL = {
    "ray": "pip install 'varsearch[search]': without it runs go with --workers 0",
    "triton": "pip install 'varsearch[triton]': without it quantized linears run on plain operators",
}
LITTLE_MEMORY = 2 * 2**30
"""Less than this is too little for anything but the shipped models."""

RAY_SECONDS = 180.0
ASKS_RAY = """
from varsearch.search.run.events import Resources
from varsearch.search.run.ray import ask
print(ask(None, Resources(cpus=1, gpus={gpus}), lambda: __import__("torch").cuda.is_available()))
"""

SCALES = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6))
LENGTHS = ((1, 1), (4, 5), (16, 33), (36, 66))
"""Queries and keys of small cases, such as scales have."""

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Errors of sound kernels on numbers of about 1 are a tenth of these; wrong ones have errors of about 1."""


class Found(NamedTuple):
    """What a check found out; `advice` says what to do, and is empty where there is nothing to do."""

    status: Status
    told: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    name: str
    status: Status
    told: str
    advice: str


def examine(storage: str) -> Iterator[Check]:
    """All checks, one after the other, with what each found out.

    Args:
        storage: the database that a run would use.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checks: list[tuple[str, Callable[[], Found]]] = [
        ("python", _python),
        *((f"package {name}", lambda name=name: _package(name)) for name in (*NEEDED, *OPTIONAL)),
        ("device", _device),
        ("memory", lambda: _memory(device)),
        *((f"attention {name}", lambda name=name: _attention(name, device)) for name in BACKENDS),
        ("triton product", lambda: _triton(device)),
        ("noise", lambda: _noise(device)),
        ("techniques", lambda: _techniques(device)),
        ("model mnist", _shipped_model),
        ("ray", _ray),
        ("database", lambda: _database(storage)),
        ("library", _library),
    ]
    for name, check in checks:
        yield Check(name, *_tried(check))


def _tried(check: Callable[[], Found]) -> Found:
    try:
        return check()
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        told = first if isinstance(error, VarsearchError) else f"{type(error).__name__}: {first}"
        return Found("error", told, "this should work: please report it with the output of varsearch doctor --json")


def _python() -> Found:
    told = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Found("ok", told) if sys.version_info >= (3, 11) else Found("error", told, "install Python 3.11 or later")


def _package(name: str) -> Found:
    try:
        return Found("ok", version(name))
    except PackageNotFoundError:
        return (
            Found("error", "not installed", NEEDED[name])
            if name in NEEDED
            else Found("warning", "not installed", OPTIONAL[name])
        )


def _device() -> Found:
    if not torch.cuda.is_available():
        gpu = next(row for row in devices().values() if row.kind == "cuda")
        told = f"{cpu_name()}, {os.cpu_count()} cores, no GPU"
        return Found("warning", told, f"{why_not_here(gpu)}; without a GPU its speed is predicted")
    row, name = local_device(), torch.cuda.get_device_name()
    count = torch.cuda.device_count()
    told = f"{count} x {name}, CUDA {torch.version.cuda}"
    if row is None:
        return Found("error", told, "its compute capability is unknown here: name another --target")
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return Found("warning", told, f"compute capability {major}.{minor}: no bfloat16, no Triton kernels")
    return Found("ok", f"{told}, --target {row.name}")


def _memory(device: torch.device) -> Found:
    main, told = free_bytes(torch.device("cpu")), []
    told.append(f"{main / 1e9:.1f} GB of main memory free")
    least = main
    if device.type == "cuda":
        on_gpu = free_bytes(device)
        told.append(f"{on_gpu / 1e9:.1f} GB of the GPU's")
        least = min(main, on_gpu)
    if least < LITTLE_MEMORY:
        return Found("warning", ", ".join(told), "enough for the shipped models alone: end what else runs")
    return Found("ok", ", ".join(told))


def _attention(name: str, device: torch.device) -> Found:
    backend = next(b for known, b in BACKENDS.items() if known == name)
    dtypes = (torch.float32,) if device.type == "cpu" else tuple(TOLERANCE)
    worst, ran = 0.0, []
    for dtype in dtypes:
        reason = backend.unsupported(Request(device, dtype, 64))
        if reason:
            continue
        ran.append(str(dtype).removeprefix("torch."))
        for masked in (False, True):
            if masked and backend.unsupported(Request(device, dtype, 64, masked=True)):
                continue
            for length, keys in LENGTHS:
                error = _attention_error(backend.run, (length, keys), masked, device, dtype)
                if not error <= TOLERANCE[dtype]:
                    where = f"{length} queries, {keys} keys, {dtype}{', a mask with an empty row' if masked else ''}"
                    advice = f"give --attention another name than {name}"
                    return Found("error", f"differs from the definition by {error:.2g} ({where})", advice)
                worst = max(worst, error)
    if not ran:
        return Found("warning" if name == "sdpa" else "ok", f"not here: {reason}")
    return Found("ok", f"largest error {worst:.1g} in {', '.join(ran)}")


def _attention_error(
    run: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    size: tuple[int, int],
    masked: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """Largest difference from the definition; NaN if any number is NaN."""
    generator = torch.Generator().manual_seed(0)
    length, keys = size
    q, k, v = (torch.randn(2, 4, n, 64, generator=generator) for n in (length, keys, keys))
    mask = torch.rand(1, 4, length, keys, generator=generator) < 0.5
    mask[:, 0, 0] = False
    chosen = mask if masked else None
    there = [t if t is None or t.dtype == torch.bool else t.to(dtype) for t in (q / 8, k, v, chosen)]
    want = reference(*(t if t is None or t.dtype == torch.bool else t.float() for t in there))  # type: ignore[arg-type]
    found = run(*(t if t is None else t.to(device) for t in there))  # type: ignore[arg-type]
    return float((found.cpu().float() - want).abs().max())


def _triton(device: torch.device) -> Found:
    if device.type == "cpu":
        return Found("ok", "not needed on a CPU")
    reason = supported(device, torch.float16) or no_compiler()
    if reason:
        return Found("warning", reason, "until then quantized linears take --backend torch's plain operators")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 128, generator=generator)
    for bits in (8, 6, 4, 3):
        q, scale = quantize(weight, bits)
        packed, scale = pack(q, bits).to(device), scale.half().to(device)
        x = torch.randn(16, 128, generator=generator).half().to(device)
        want = x.float() @ expand(packed, scale, bits, 128, torch.float16).float().T
        found = quantized_linear(x, packed, scale, None, bits, 128, "triton").float()
        error = float((found - want).abs().max() / want.abs().max())
        if not error < 1e-2:
            return Found("error", f"{bits} bits: relative error {error:.2g}", "update triton, or remove it")
    return Found("ok", "a compiled product of 16 x 32 x 128 equals the definition in 8, 6, 4 and 3 bits")


def _noise(device: torch.device) -> Found:
    words = torch.zeros(2, 1, dtype=torch.int64, device=device)
    found = [int(word) for word in philox((words, words.clone()), (0, 0))]
    known = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    if found != known:
        return Found("error", "integers of 64 bits do not wrap here", "images of one seed would differ from others'")
    return Found("ok", "Philox gives its published numbers")


def _small_model() -> ImageModel:
    tokenizer = TokenizerConfig(
        SCALES, vocab=32, z_channels=8, ch=16, ch_mult=(1, 2), res_blocks=1, image_channels=1, norm_groups=8
    )
    transformer = VARConfig(SCALES, depth=3, width=64, heads=4, classes=10, vocab=32, z_channels=8)
    return random_model(transformer, tokenizer, (12, 12))


def _techniques(device: torch.device) -> Found:
    cpu = _small_model()
    found, _ = presets(cpu.spec, assumed(cpu.spec))
    policies = {**seeds(cpu.spec), **found}
    there = cpu if device.type == "cpu" else cast(cpu, str(device), torch.float32)
    worst = 0.0
    for name, policy in policies.items():
        images = _images(there, policy)
        if not images.isfinite().all():
            return Found("error", f"{name}: images are not finite", "please report it")
        if device.type != "cpu":
            # One token of another code changes a few pixels of one image, so most must be equal.
            worst = max(worst, float((images - _images(cpu, policy)).abs().flatten(1).median(1).values.median()))
            if worst > 1e-2:
                return Found("error", f"{name}: images differ from the CPU's by {worst:.2g}", "please report it")
    beside = "finite images" if device.type == "cpu" else f"the CPU's images, median difference {worst:.1g}"
    return Found("ok", f"{len(policies)} small policies: {beside}")


def _images(model: ImageModel, policy: Policy) -> Tensor:
    with apply(model, policy) as applied:
        return applied.images(torch.arange(4, device=device_of(model)), seed=0, noise="philox").cpu()


def _shipped_model() -> Found:
    model = zoo.load("mnist")
    return Found("ok", f"its files are those of the manifest, weights {model.spec.fingerprint[:12]}…")


def _ray() -> Found:
    """In a process of its own, which can be ended: Ray waits for ever for what does not come."""
    gpus = int(torch.cuda.is_available())
    try:
        version("ray")
        done = subprocess.run(
            [sys.executable, "-c", ASKS_RAY.format(gpus=gpus)],
            capture_output=True,
            text=True,
            timeout=RAY_SECONDS,
            check=False,
        )
    except PackageNotFoundError:
        return Found("warning", "not installed", OPTIONAL["ray"])
    except subprocess.TimeoutExpired:
        return Found("warning", f"no worker within {RAY_SECONDS:g} s", "is the machine busy? --workers 0 needs no Ray")
    if done.returncode:
        return Found("warning", (done.stderr.strip().splitlines() or ["it failed"])[-1], "--workers 0 needs no Ray")
    if gpus and "True" not in done.stdout:
        return Found("error", "a worker with a GPU sees none", "is CUDA_VISIBLE_DEVICES set for this shell?")
    return Found("ok", f"a worker starts{' and sees its GPU' if gpus else ''}")


def _database(storage: str) -> Found:
    from sqlalchemy import make_url

    from varsearch.db import Store

    if "://" in storage and make_url(storage).get_backend_name() != "sqlite":
        with Store(storage, create=False):
            return Found("ok", "the server answers, and the schema is this version's")
    path = Path(make_url(storage).database or "") if "://" in storage else Path(storage)
    if path.exists():
        with Store(storage, create=False):
            return Found("ok", f"{path} opens")
    with tempfile.TemporaryDirectory(dir=path.absolute().parent) as folder, Store(Path(folder) / "new.db"):
        return Found("ok", f"{path} is not there yet, and can be made")


def _library() -> Found:
    folder = library.default_folder()
    there = next(part for part in (folder, *folder.parents) if part.exists())
    if not os.access(there, os.W_OK):
        return Found("error", f"{there} cannot be written", "set VARSEARCH_LIBRARY to a folder that can")
    count = len(library.index(folder))
    free = shutil.disk_usage(there).free
    if free < LITTLE_MEMORY:
        return Found("warning", f"{folder}: {count} policies, {free / 1e9:.1f} GB of disk free", "make room")
    return Found("ok", f"{folder}: {count} policies")
