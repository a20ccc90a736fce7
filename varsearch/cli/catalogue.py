"""`varsearch targets` and `varsearch models`: what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import BaseModel, ValidationError

from varsearch.cli import options as o
from varsearch.cli.render import console, print_json, scaled, table
from varsearch.errors import ModelError
from varsearch.policy import describe
from varsearch.target import default_target, devices


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(targets)
    app.command()(models)


def targets(
    json: o.Json = False,
    sources: Annotated[bool, typer.Option("--sources", help="Show where each figure is from.")] = False,
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


def models(
    name: Annotated[str | None, typer.Argument(help="Show this model's card.")] = None, json: o.Json = False
) -> None:
    """List the shipped models, or print one model's card with its evidence."""
    from varsearch.models import zoo

    if name is not None:
        _card(name, json)
        return
    manifests = {found: zoo.manifest(found) for found in zoo.names()}
    if json:
        print_json(
            [m.spec().model_dump(mode="json") | {"licence": m.licence, "data": m.data} for m in manifests.values()]
        )
        return
    table(
        "",
        ("<name", "<what", "layers", "heads", "tokens", "image", "weights", "<licence"),
        (
            (
                found,
                m.description,
                str(m.transformer.depth),
                str(m.transformer.heads),
                str(sum(m.spec().tokens)),
                "x".join(map(str, m.image_size)),
                scaled(zoo.stored_bytes(found), ("B", "kB", "MB")),
                m.licence,
            )
            for found, m in manifests.items()
        ),
    )
    for found, reason in zoo.UNTRAINED.items():
        console.print(f"{found} has no weights yet: {reason}")


class Scan(BaseModel):
    """Quality at one strength of guidance."""

    guidance: float
    fid: float


class Card(BaseModel):
    """The parts of `card.json` that are shown; there may be more."""

    numbers: dict[str, float]
    scan: list[Scan]
    minutes: dict[str, float]


def _card(name: str, json: bool) -> None:
    from varsearch.models import zoo

    found, m = zoo.card(name), zoo.manifest(name)
    try:
        card = Card.model_validate(found)
    except ValidationError as error:
        raise ModelError(f"the card of model {name} is damaged: {describe(error)}") from None
    if json:
        print_json(found)
        return
    console.print(f"{m.name}: {m.description}", style="bold")
    console.print(f"data: {m.data}\nlicence: {m.licence}\nweights: {m.fingerprint()}")
    rows = (
        (figure, f"{value:.0f}" if value.is_integer() else f"{value:.5g}") for figure, value in card.numbers.items()
    )
    table("evidence, printed by the recipe", ("<figure", "value"), rows)
    console.print("guidance scan: " + ", ".join(f"{row.guidance:g}: FID {row.fid:.2f}" for row in card.scan))
    minutes = ", ".join(f"{stage} {minutes:.0f}" for stage, minutes in card.minutes.items())
    console.print(f"training minutes: {minutes}")
    beside = ", ".join(spec.name for spec in zoo.siblings(name))
    console.print(f"smaller models of the same tokens: {beside or 'none'}")
    console.print(f"samples: {zoo.folder(name) / 'samples.png'}")
