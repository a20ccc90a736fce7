"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from varsearch.models.names import refuse_unknown
from varsearch.target import MAX_BATCH, AttentionName


def _known_model(model: str | None) -> str | None:
    """Refuses a wrong name before anything slow is imported."""
    if model is not None:
        refuse_unknown(model)
    return model


def model_option(help: str) -> Any:
    """`--model`."""
    return option(metavar="NAME", callback=_known_model, help=help)


def model_argument() -> Any:
    """A model as an argument."""
    return typer.Argument(callback=_known_model, help="Show what is known of this model.")


def flag(*names: str, help: str) -> Any:
    """A switch: its help names no type, because it takes no value."""
    return typer.Option(*names, metavar="", help=help)


def option(*names: str, metavar: str, help: str, **more: Any) -> Any:
    """An option with a value, which the help calls `metavar`."""
    return typer.Option(*names, metavar=metavar, help=help, **more)


Storage = Annotated[
    str,
    option(
        metavar="DATABASE",
        envvar="VARSEARCH_STORAGE",
        help="SQLite file, or any SQLAlchemy URL.",
    ),
]
DEFAULT_STORAGE = "varsearch.db"
RunName = Annotated[str | None, option("--run", metavar="NAME", help="Name of the run; default: the latest.")]
Json = Annotated[bool, flag("--json", help="Print JSON instead of a table.")]
LibraryFolder = Annotated[
    Path | None,
    option(
        metavar="FOLDER",
        envvar="VARSEARCH_LIBRARY",
        help="Folder of the policy library; default: in the user's data folder.",
    ),
]
Model = Annotated[str, model_option("A model's name ('varsearch models') or folder.")]
OwnModel = Annotated[str | None, model_option("Model name or folder; default: the one that the policy names.")]
Weights = Annotated[
    str | None,
    option(
        metavar="PLACE",
        help="Weights of a published model: their folder, hf:OWNER/REPOSITORY@REVISION, or random "
        "for seeded random ones, which tell latency and memory.",
    ),
]
Prompts = Annotated[
    str | None,
    option(
        metavar="FILE",
        help="For a model that reads texts: a file of 'varsearch prompts'; default: its own.",
    ),
]
Precision = Annotated[
    str | None,
    option(
        "--dtype",
        metavar="FORMAT",
        help="float32, float16 or bfloat16; default: the device's usual one.",
    ),
]
TargetName = Annotated[str, option(metavar="DEVICE", help="Device of latency and memory ('varsearch targets').")]
DeviceName = Annotated[
    str | None,
    option(
        "--device",
        metavar="DEVICE",
        help="cpu or cuda: where images are drawn; default: a GPU if there is one.",
    ),
]
BatchSize = Annotated[
    int | None,
    option(metavar="N", min=1, max=MAX_BATCH, help="Images per batch; default: the device's usual one."),
]
Attention = Annotated[
    AttentionName,
    option(
        metavar="NAME",
        help="Attention back-end where speed is measured: sdpa, reference, cudnn, flash-attn, or "
        "auto for the best that is installed.",
    ),
]
Images = Annotated[int, option(metavar="N", min=16, help="Images behind every quality number.")]
Seed = Annotated[int, option(metavar="N", min=0, help="Seed of the images' noise and of the sampler.")]
Reference = Annotated[
    str | None,
    option(metavar="FILE", help="Reference statistics; default: the model's own."),
]
Objectives = Annotated[
    str | None,
    option(
        metavar="NAMES",
        help="One to four of fid, latency, memory (default: these three) and the metrics of "
        "docs/metrics.md, with commas. Without a metric of quality no image is drawn.",
    ),
]
Inception = Annotated[
    str | None,
    option(
        "--inception-weights",
        metavar="FILE",
        help="Measure Inception-v3 features with these weights.",
    ),
]


def parts(text: str | None) -> tuple[str, ...] | None:
    """A list that was given with commas."""
    return None if text is None else tuple(part.strip() for part in text.split(","))
