"""`varsearch compare`: policies side by side under one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from varsearch.cli import options as o
from varsearch.cli.render import (
    announce_calibration,
    announce_missing,
    console,
    measurements_json,
    print_json,
    table,
)

if TYPE_CHECKING:
    from varsearch.explain.compare import Comparison, Row


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(compare)


def compare(
    policies: Annotated[
        list[str] | None,
        typer.Argument(
            help="Published systems (litevar, hack, …), hand-made policies, policy files, library names; "
            "default: dense and all published systems."
        ),
    ] = None,
    model: o.Model = "mnist",
    weights: o.Weights = None,
    prompts: o.Prompts = None,
    target: o.TargetName = "cpu",
    predict: Annotated[str, o.option(metavar="DEVICE", help="Device that latency is also predicted for.")] = "4090",
    batch_size: o.BatchSize = None,
    dtype: o.Precision = None,
    attention: o.Attention = "sdpa",
    images: o.Images = 512,
    objectives: o.Objectives = None,
    seed: o.Seed = 0,
    storage: o.Storage = o.DEFAULT_STORAGE,
    library_folder: o.LibraryFolder = None,
    reference: o.Reference = None,
    inception: o.Inception = None,
    json: o.Json = False,
) -> None:
    """Evaluate policies side by side on the same noise; what the database knows is not evaluated again."""
    from varsearch.explain.api import compare as compared

    found = compared(
        *policies or (),
        model=model,
        target=target,
        predict=predict,
        storage=storage,
        library=library_folder,
        on_calibration=announce_calibration if not json else lambda: None,
        on_row=lambda name, reused: _progress(name, reused, quiet=json),
        weights=weights,
        prompts=prompts,
        batch_size=batch_size,
        dtype=dtype,
        attention=attention,
        images=images,
        objectives=o.parts(objectives),
        seed=seed,
        reference=reference,
        inception=inception,
    )
    if json:
        print_json(_json(found))
        return
    shown = found.table()
    table(shown.title, shown.columns, shown.rows)
    announce_missing("not shown", found.missing)


def _progress(name: str, reused: bool, *, quiet: bool) -> None:
    if not quiet:
        console.print(f"{name}: {'known already' if reused else 'evaluated'}")


def _json(found: Comparison) -> dict[str, object]:
    def policy(row: Row) -> dict[str, object]:
        predicted = {name: row.predicted[name] for name in ("latency_ms", "speedup") if row.predicted}
        return measurements_json(row.metrics) | ({"predicted": measurements_json(predicted)} if predicted else {})

    settings = found.settings
    return {
        "model": settings.model,
        "target": settings.target.model_dump(mode="json"),
        "origin": settings.origin.value,
        "images": settings.quality.n_images if settings.quality else 0,
        "predicted_target": found.second.model_dump(mode="json"),
        "policies": {name: policy(row) for name, row in found.rows.items()},
    }
