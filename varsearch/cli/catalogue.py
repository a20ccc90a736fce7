"""`varsearch targets`: the devices that there is something known about."""

from __future__ import annotations

from typing import Annotated

import typer

from varsearch.cli import options as o
from varsearch.cli.render import console, print_json, table
from varsearch.target import default_target, devices


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(targets)


def targets(
    json: o.Json = False,
    sources: Annotated[bool, o.flag("--sources", help="Show where each figure is from.")] = False,
) -> None:
    """List the devices that latency can be predicted for, and which of them is this machine."""
    from varsearch.evaluators.speed import local_device

    here = local_device()
    rows = [device.model_dump(mode="json") | {"local": device == here} for device in devices().values()]
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
            for device in devices().values()
        ),
    )
    if sources:
        for device in devices().values():
            for figure, source in device.sources.items():
                console.print(f"{device.name} {figure}: {source}")
