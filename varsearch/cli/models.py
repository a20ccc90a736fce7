"""`varsearch models` and `varsearch prompts`: what there is to search, and what to ask it for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from varsearch.cli import options as o
from varsearch.cli.render import console, print_json, scaled, table
from varsearch.errors import ModelError, UsageError
from varsearch.policy import describe

if TYPE_CHECKING:
    from varsearch.models.overview import Overview

K = TypeVar("K", bound=Hashable)
BYTES = ("B", "kB", "MB", "GB", "TB")


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(models)
    app.command()(prompts)


def models(name: Annotated[str | None, o.model_argument()] = None, json: o.Json = False) -> None:
    """List the shipped and the published models, or print one model's card with its evidence."""
    from varsearch.models.overview import overview, overviews

    if name is not None:
        _card(name, overview(name), json)
        return
    rows = overviews()
    if json:
        print_json([row.model_dump(mode="json") for row in rows])
        return
    columns = (
        "<name",
        "pixels",
        "params",
        "layers",
        "heads",
        "tokens",
        "memory\nbatch 1",
        "memory\nbatch 8",
    )
    table("", columns, map(_row, rows))
    _notes(rows)


def _row(about: Overview) -> tuple[str, ...]:
    """What fits beside each other on 80 columns."""
    spec, (height, width) = about.spec, about.spec.image_size
    return (
        about.name,
        str(height) if height == width else f"{height}x{width}",
        scaled(about.parameters, ("", "k", "M", "G")),
        str(spec.n_layers),
        str(spec.n_heads),
        str(sum(spec.tokens)),
        *(scaled(about.memory[n], BYTES) for n in (1, 8)),
    )


def _notes(rows: list[Overview]) -> None:
    """The rest in words, models of which the same is to be said together."""
    from varsearch.models import zoo

    for about, names in _together(rows, lambda row: f"{row.description}; {_weights(row)}; licence: {row.licence}"):
        console.print(f"{names}: {about}")
    for untrained, reason in zoo.UNTRAINED.items():
        console.print(f"{untrained} has no weights yet: {reason}")
    console.print(
        "memory: weights of transformer and tokenizer and the full KV cache or state, in 16 bits, without activations"
    )
    console.print(
        "all techniques apply to all models, but for linears that a model lacks (varsearch models NAME), and:"
    )
    for refused, names in _together([row for row in rows if row.refused], lambda row: tuple(row.refused)):
        console.print(f"{names}: without {', '.join(refused)}")


def _weights(about: Overview) -> str:
    return "shipped" if about.shipped else f"weights not shipped: from {about.source}, or --weights random"


def _together(rows: list[Overview], key: Callable[[Overview], K]) -> Iterator[tuple[K, str]]:
    for value in dict.fromkeys(map(key, rows)):
        yield value, ", ".join(row.name for row in rows if key(row) == value)


def prompts(
    texts: Annotated[Path, typer.Argument(help="Text file with one prompt per line.")],
    output: Annotated[Path, typer.Argument(help="Features to write, a safetensors file for --prompts.")],
    negative: Annotated[
        Path | None,
        o.option(
            metavar="FILE",
            help="Text file with what guidance leads away from: one line, or one per prompt.",
        ),
    ] = None,
    encoder: Annotated[
        str, o.option(metavar="NAME", help="Folder or hub name of the T5 encoder.")
    ] = "google/flan-t5-xl",
    device: Annotated[str, o.option(metavar="DEVICE", help="Where the encoder runs.")] = "cpu",
) -> None:
    """Encode prompts once, so that no search or deployment needs the text encoder in memory."""
    lines = _lines(texts)
    away = _lines(negative) if negative else []
    if len(away) == 1:
        away *= len(lines)
    if away and len(away) != len(lines):
        raise UsageError(f"{negative} holds {len(away)} prompts, {texts} {len(lines)}: give one, or one for each")
    from varsearch.models.infinity.t5 import encode
    from varsearch.models.infinity.text import save_prompts

    features = encode([*lines, *away], encoder, device=device)
    save_prompts(output, features[: len(lines)], features[len(lines) :])
    console.print(f"{output}: features of {len(lines)} prompts" + (", each with a negative one" if away else ""))


def _lines(path: Path) -> list[str]:
    try:
        found = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read prompts from {path}: {error}") from None
    if not found:
        raise UsageError(f"{path} holds no prompts: expected one per line")
    return found


class Scan(BaseModel):
    """Quality at one strength of guidance."""

    guidance: float
    fid: float


class Card(BaseModel):
    """The parts of `card.json` that are shown; there may be more."""

    numbers: dict[str, float]
    scan: list[Scan]
    minutes: dict[str, float]


def _card(name: str, about: Overview, json: bool) -> None:
    from varsearch.models import zoo

    if not about.shipped:
        _published(about, json)
        return
    found, m = zoo.card(name), zoo.manifest(name)
    try:
        card = Card.model_validate(found)
    except ValidationError as error:
        raise ModelError(f"the card of model {name} is damaged: {describe(error)}") from None
    if json:
        print_json(found)
        return
    console.print(f"{m.name}: {m.description}", style="bold")
    size = scaled(zoo.stored_bytes(name), BYTES)
    console.print(f"data: {m.data}\nlicence: {m.licence}\nweights: {m.fingerprint()}, {size} in all files")
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


def _published(about: Overview, json: bool) -> None:
    from varsearch.evaluators.trace import dense_peaks

    peaks = dense_peaks(about.name)
    if json:
        print_json(about.model_dump(mode="json") | {"peak_bytes": peaks})
        return
    spec, sampling = about.spec, about.sampling
    console.print(f"{about.name}: {about.description}", style="bold")
    console.print(f"{_weights(about)}\nlicence: {about.licence}")
    console.print(f"parameters: {about.parameters / 1e6:.1f} M, tokenizer {about.tokenizer_parameters / 1e6:.1f} M")
    console.print(f"{spec.n_layers} layers of {spec.n_heads} heads of {spec.head_dim} channels; maps of tokens:")
    console.print("  " + " ".join(f"{height}x{width}" for height, width in spec.scales))
    console.print(
        f"sampled with guidance {sampling.guidance:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g}, "
        f"temperature {sampling.temperature:g}"
    )
    console.print(f"files: {about.files[0]} and {about.files[1]}, in any format of docs/models.md")
    told = ", ".join(f"batch {n}: {scaled(peak, BYTES)}" for n, peak in peaks.items())
    console.print(f"peak memory of dense sampling in 16 bits, traced: {told}")
    console.print("quantizable linears of a layer: " + ", ".join(spec.linears))
    for field, reason in about.refused.items():
        console.print(f"without {field}: {about.name} {reason}")
