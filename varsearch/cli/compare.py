"""`varsearch compare`: policies side by side under one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from varsearch.cli import options as o
from varsearch.cli.render import console, interval, known, measurements_json, print_json, quantity, ratio, table

if TYPE_CHECKING:
    from varsearch.measurement import Measurement
    from varsearch.policy import Policy
    from varsearch.search.setup import Plan


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(compare)


def compare(
    policies: Annotated[
        list[str] | None, typer.Argument(help="Seeds' names, policy files, library names; default: all seeds.")
    ] = None,
    model: o.Model = "mnist",
    target: o.TargetName = "cpu",
    batch_size: o.BatchSize = None,
    images: o.Images = 512,
    seed: o.Seed = 0,
    storage: o.Storage = o.DEFAULT_STORAGE,
    library_folder: o.LibraryFolder = None,
    reference: o.Reference = None,
    inception: o.Inception = None,
    json: o.Json = False,
) -> None:
    """Evaluate policies side by side on the same noise; what the database knows is not evaluated again."""
    from varsearch.db import Store
    from varsearch.search.compare import compare as evaluate
    from varsearch.search.compare import named_policies
    from varsearch.search.setup import Request, prepare

    request = Request(
        model=model,
        target=target,
        batch_size=batch_size,
        images=images,
        seed=seed,
        reference=reference,
        inception=inception,
    )
    plan = prepare(request)
    chosen = named_policies(policies, plan.seeds, plan.space.spec, library_folder)
    with Store(storage) as store:
        rows = evaluate(
            chosen, plan.settings, plan.worker.make(), store, lambda name, reused: _progress(name, reused, json)
        )
    if json:
        print_json({name: measurements_json(row) for name, row in rows.items()})
        return
    _print(plan, chosen, rows)


def _progress(name: str, reused: bool, quiet: bool) -> None:
    if not quiet:
        console.print(f"{name}: {'known already' if reused else 'evaluated'}")


def _print(plan: Plan, policies: dict[str, Policy], rows: dict[str, dict[str, Measurement]]) -> None:
    dense = rows.get("dense")
    settings = plan.settings
    title = (
        f"{settings.model} on {settings.target}; latency and memory are {settings.origin.value.upper()}; "
        f"quality of {settings.quality.n_images} images"
    )
    columns = (
        "<policy",
        "ΔFID [95 %]",
        "distance",
        "NLL",
        "FLOPs",
        "attention",
        "KV",
        "weights",
        "peak",
        "latency",
        "speed-up",
    )
    table(
        title,
        columns,
        (
            (
                name,
                interval(known(m, "delta_fid")),
                f"{known(m, 'feature_distance').value:.3f}",
                f"{m['nll'].value:.3f}" if "nll" in m else "",
                *(
                    ratio(m, dense, metric)
                    for metric in ("flops", "attention_flops", "kv_bytes", "weight_bytes", "peak_bytes")
                ),
                quantity("latency_ms", known(m, "latency_ms").value),
                f"{known(m, 'speedup').value:.2f}x",
            )
            for name, m in rows.items()
        ),
    )
    if dense is None:
        console.print("add 'dense' to the policies to see ratios")
