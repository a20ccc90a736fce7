"""`varsearch apply`: a policy at work. Needs nothing but the deployment install."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from varsearch import library
from varsearch.cli import options as o
from varsearch.cli.render import console, print_json
from varsearch.errors import UsageError
from varsearch.files import write_atomically
from varsearch.target import MAX_THREADS, check_dtype, default_target

if TYPE_CHECKING:
    from torch import Tensor

    from varsearch.accel import Accelerated
    from varsearch.models.image_model import ImageModel
    from varsearch.policy_file import PolicyFile
    from varsearch.target import AttentionName

AT_ONCE = 64
"""Images at a time where there is room for them."""


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(apply)


def apply(
    policy: Annotated[str, typer.Argument(help="Policy file, or its name in the library: model/target/name.")],
    model: o.OwnModel = None,
    weights: o.Weights = None,
    prompts: o.Prompts = None,
    device: o.DeviceName = None,
    dtype: o.Precision = None,
    output: Annotated[Path, o.option(metavar="FILE", help="PNG to write.")] = Path("samples.png"),
    labels: Annotated[
        str | None,
        o.option(metavar="CLASSES", help="Classes, such as 3,1,4; default: each in turn."),
    ] = None,
    count: Annotated[int, o.option(metavar="N", min=1, max=10000, help="Images to draw if no labels are given.")] = 40,
    seed: Annotated[int, o.option(metavar="N", min=0, help="Seed of the images.")] = 0,
    threads: Annotated[
        int | None,
        o.option(
            metavar="N",
            min=1,
            max=MAX_THREADS,
            help="CPU threads; default: as the policy was searched.",
        ),
    ] = None,
    batch_size: o.BatchSize = None,
    attention: o.Attention = "sdpa",
    library_folder: o.LibraryFolder = None,
    json: o.Json = False,
) -> None:
    """Draw images with a policy, check them against the search worker's, and time it next to dense."""
    import torch

    from varsearch.evaluators.devices import place_of
    from varsearch.models import registry, zoo

    file = library.load_policy(policy, library_folder)
    chosen_model = registry.join(model or file.model.name, weights, prompts)
    place = place_of(device, dtype or (file.target.dtype if _is_of_gpu(file) else None), file.model)
    loaded = zoo.load(chosen_model, *((place[0], check_dtype(dtype)) if place[0] == "cpu" else place))
    file.check_model(loaded.spec)
    chosen = _labels(labels, count, loaded.spec.classes)
    torch.set_num_threads(threads or _threads(file))
    write_atomically(output, _picture(loaded, file, chosen, seed))
    found = (
        {"policy": policy, "output": str(output), "images": len(chosen)}
        | _sample(loaded, file)
        | _speed(loaded, file, batch_size, attention)
    )
    if json:
        print_json(found)
        return
    console.print(f"{output}: {len(chosen)} images by {policy} ({file.provenance.run}, trial {file.provenance.trial})")
    console.print(str(found["check"]))
    console.print(
        f"measured here ({found['machine']}, attention by {found['attention']}), batch {found['batch_size']}: "
        f"{found['latency_ms']:.1f} ms, dense {found['dense_latency_ms']:.1f} ms: "
        f"{found['speedup']:.2f}x [{found['low']:.2f}, {found['high']:.2f}] "
        "(medians: of the times, and of the ratios of paired rounds)"
    )
    if "speedup" in file.values:
        doubt = ", not confirmed on fresh noise" if file.provenance.confirmed is False else ""
        console.print(f"the file says {file.values['speedup']:.2f}x, {file.origin.value} for {file.target}{doubt}")


def _is_of_gpu(file: PolicyFile) -> bool:
    return file.target.dtype != "float32"


def _threads(file: PolicyFile) -> int:
    """As many as the policy was searched with, because bits depend on it; more than there are cores only lose time."""
    cores = os.cpu_count() or 1
    wanted = file.sample.threads if file.sample else cores
    if wanted > cores:
        typer.echo(
            f"note: {cores} threads instead of {wanted}: samples may differ in the last bits",
            err=True,
        )
    return min(wanted, cores)


def _labels(text: str | None, count: int, classes: int) -> list[int]:
    if text is None:
        return [i % classes for i in range(count)]
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--labels {text!r}: expected whole numbers separated by commas") from None
    wrong = [label for label in found if not 0 <= label < classes]
    if wrong:
        raise UsageError(f"--labels: {wrong[0]} is not a class of this model, which has 0 to {classes - 1}")
    return found


def _picture(model: ImageModel, file: PolicyFile, labels: list[int], seed: int) -> bytes:
    import torch

    from varsearch.accel import apply as applied
    from varsearch.models.pictures import grid_png

    with applied(model, file) as fast:
        images = torch.cat(list(_drawn(fast, torch.tensor(labels), seed, file)))
    return grid_png(images, columns=10, zoom=max(1, 96 // model.spec.image_size[0]))


def _drawn(fast: Accelerated, labels_N: Tensor, seed: int, file: PolicyFile) -> Iterator[Tensor]:
    """Images with these labels, in parts that there is room for, on the CPU; with the noise of the file's sample."""
    from varsearch.evaluators.batches import Batches
    from varsearch.evaluators.workload import device_of

    noise = file.sample.noise if file.sample else None
    at_once = Batches(fast.model, AT_ONCE).of(file.policy)
    for first in range(0, len(labels_N), at_once):
        part_N = labels_N[first : first + at_once].to(device_of(fast.model))
        yield fast.images(part_N, seed, first, noise).cpu()


def _sample(model: ImageModel, file: PolicyFile) -> dict[str, object]:
    """Draws the search worker's sample again and says whether every pixel is the same; None if there is no sample."""
    import torch

    from varsearch.accel import apply as applied
    from varsearch.models.pictures import to_bytes

    if file.sample is None:
        return {
            "same_images": None,
            "check": "WARNING: the search that found this policy did not look at any image",
        }
    with applied(model, file) as fast:
        parts = _drawn(fast, torch.tensor(file.sample.labels), file.sample.seed, file)
        images = torch.cat([to_bytes(part) for part in parts])
    same = hashlib.sha256(images.numpy().tobytes()).hexdigest() == file.sample.sha256
    told = f"{len(images)} images equal the search worker's, bit for bit"
    if not same:
        told = (
            f"WARNING: images differ from the search worker's ({file.sample.device}, {file.sample.threads} threads, "
            f"torch {file.sample.torch}, {file.sample.dtype}); other hardware, versions or number formats round "
            "differently"
        )
    return {"same_images": same, "check": told}


def _speed(model: ImageModel, file: PolicyFile, batch_size: int | None, attention: AttentionName) -> dict[str, object]:
    """The policy timed next to dense on this machine, in the file's batches if they were meant for this device."""
    from varsearch.evaluators.devices import local_device
    from varsearch.evaluators.speed import time_against_dense

    here = local_device()
    elsewhere = here is not None and here.name != file.target.device
    batch_size = batch_size or (
        default_target(here, spec=model.spec).batch_size if here and elsewhere else file.target.batch_size
    )
    timed = time_against_dense(model, file.policy, batch_size, attention)
    return {
        "batch_size": batch_size,
        "machine": timed.machine,
        "attention": timed.attention,
        "latency_ms": timed.latency_ms,
        "dense_latency_ms": timed.dense_latency_ms,
        "speedup": timed.speedup,
        "low": timed.low,
        "high": timed.high,
    }
