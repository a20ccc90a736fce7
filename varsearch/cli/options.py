"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from varsearch.target import MAX_BATCH, AttentionName

Storage = Annotated[
    str,
    typer.Option(envvar="VARSEARCH_STORAGE", help="Database: a file, or any SQLAlchemy URL (postgresql+psycopg://…)."),
]
DEFAULT_STORAGE = "varsearch.db"
RunName = Annotated[str | None, typer.Option("--run", help="Name of the run; default: the latest.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LibraryFolder = Annotated[
    Path | None,
    typer.Option(envvar="VARSEARCH_LIBRARY", help="Folder of the policy library; default: the user's data folder."),
]
Model = Annotated[str, typer.Option(help="Name of a model (see 'varsearch models'), or a model's folder.")]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Of a published model: the folder of its files, hf:OWNER/REPOSITORY@REVISION, or random for seeded random "
        "weights, which tell latency and memory."
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(help="Of a model that reads texts: a file that 'varsearch prompts' wrote; default: the model's own."),
]
Precision = Annotated[
    str | None, typer.Option("--dtype", help="float32, float16 or bfloat16; default: the device's usual one.")
]
TargetName = Annotated[str, typer.Option(help="Device that latency and memory refer to; see 'varsearch targets'.")]
DeviceName = Annotated[
    str | None, typer.Option("--device", help="cpu or cuda: where images are drawn; default: a GPU if there is one.")
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, max=MAX_BATCH, help="Images per batch; default: the device's usual one.")
]
Attention = Annotated[
    AttentionName, typer.Option(help="Who computes attention where speed is measured; 'auto' takes what is installed.")
]
Images = Annotated[int, typer.Option(min=16, help="Images behind every quality number.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the images' noise and of the sampler.")]
Reference = Annotated[str | None, typer.Option(help="File of reference statistics; default: the model's own.")]
Objectives = Annotated[
    str | None,
    typer.Option(
        help="What to trade off: fid, latency, memory (default: all three), or metrics of docs/metrics.md. "
        "Without fid no image is drawn, so a model without trained weights will do."
    ),
]
Inception = Annotated[
    str | None, typer.Option("--inception-weights", help="Measure Inception-v3 features with these weights.")
]


def parts(text: str | None) -> tuple[str, ...] | None:
    """A list that was given with commas."""
    return None if text is None else tuple(part.strip() for part in text.split(","))
