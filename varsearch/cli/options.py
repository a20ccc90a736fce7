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
Model = Annotated[str, typer.Option(help="Name of a shipped model, or a model's folder.")]
TargetName = Annotated[str, typer.Option(help="Device that latency and memory refer to; see 'varsearch targets'.")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, max=MAX_BATCH, help="Images per batch; default: the device's usual one.")
]
Attention = Annotated[
    AttentionName, typer.Option(help="Who computes attention where speed is measured; 'auto' takes what is installed.")
]
Images = Annotated[int, typer.Option(min=16, help="Images behind every quality number.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the images' noise and of the sampler.")]
Reference = Annotated[str | None, typer.Option(help="File of reference statistics; default: the model's own.")]
Inception = Annotated[
    str | None, typer.Option("--inception-weights", help="Measure Inception-v3 features with these weights.")
]
