"""`varsearch targets`: the devices that there is something known about."""

from __future__ import annotations

from typing import Annotated

import typer

from varsearch.cli import options as o
from varsearch.cli.render import console, print_json, table
from varsearch.target import Device, default_target, devices


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(targets)


def targets(
    json: o.Json = False,
    sources: Annotated[bool, o.flag("--sources", help="Show where each figure is from.")] = False,
) -> None:
    """List the devices that latency can be predicted for, and which of them is this machine."""
    from varsearch.evaluators.devices import local_device, obstacles

    here = local_device()
    known = devices() if here is None else {**devices(), here.name: here}
    rows = [
        device.model_dump(mode="json") | {"local": device == here, "cannot": obstacles(device)}
        for device in known.values()
    ]
    if json:
        print_json(rows)
        return
    columns = (
        "<name",
        "<device",
        "<numbers",
        "fp32 TFLOP/s",
        "fp16",
        "bf16",
        "GB/s",
        "launch µs",
        "memory GB",
        "<default",
    )
    table(
        "",
        columns,
        (
            (
                device.name,
                device.label,
                "measured" if device == here else "predicted",
                *(f"{device.tflops.get(dtype, 0):g}" for dtype in ("float32", "float16", "bfloat16")),
                f"{device.gb_per_s:g}",
                f"{device.launch_us:g}",
                f"{device.memory_gb:g}",
                str(default_target(device)),
            )
            for device in known.values()
        ),
    )
    _tell_obstacles(here)
    if sources:
        for device in known.values():
            for figure, source in device.sources.items():
                console.print(f"{device.name} {figure}: {source}")


def _tell_obstacles(here: Device | None) -> None:
    """What cannot run here, and why."""
    from varsearch.evaluators.devices import obstacles, why_not_here

    if here is not None:
        for what, reason in obstacles(here).items():
            console.print(f"{here.name}, without {what}: {reason}")
    if here is None or here.kind == "cpu":
        gpu = next(device for device in devices().values() if device.kind == "cuda")
        console.print(f"GPUs are predicted: {why_not_here(gpu)}")
    console.print("--target local is the device at hand; 'varsearch doctor' tries all of this")
