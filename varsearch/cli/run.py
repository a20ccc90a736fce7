"""`varsearch run` and `varsearch status`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from varsearch.cli import options as o
from varsearch.cli.help import Command
from varsearch.cli.render import console, print_json, table

PANELS: Mapping[str, tuple[str, ...]] = {
    "What to search": (*("model", "weights", "prompts", "target", "batch_size", "dtype", "objectives", "images"),),
    "Budget": ("budget", "time", "patience"),
    "Bounds": ("max_latency", "max_memory", "max_fid"),
    "Workers": ("workers", "cpus_per_worker", "gpus_per_worker", "ray_address"),
}
"""Panels of the help with their options; the rest is advanced."""


class PanelCommand(Command):
    """A command whose help sorts its options into `PANELS`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        panel_of = {name: panel for panel, names in PANELS.items() for name in names}
        # Panels appear in the order of their first option.
        order = [*panel_of]
        self.params.sort(key=lambda p: order.index(str(p.name)) if p.name in order else len(order))
        for param in self.params:
            param.rich_help_panel = panel_of.get(str(param.name), "Advanced")  # type: ignore[attr-defined]


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command(cls=PanelCommand)(run)
    app.command()(status)


def run(
    model: o.Model = "mnist",
    weights: o.Weights = None,
    prompts: o.Prompts = None,
    target: o.TargetName = "cpu",
    budget: Annotated[int, o.option(metavar="N", help="Evaluations in total, earlier calls included.")] = 50,
    time: Annotated[float | None, o.option(metavar="MINUTES", help="No evaluation begins after this time.")] = None,
    workers: Annotated[int, o.option(metavar="N", help="Processes on Ray; 0 evaluates in this process.")] = 0,
    cpus_per_worker: Annotated[
        int | None, o.option(metavar="N", min=1, help="Cores per worker; default: divided evenly.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        o.option(
            metavar="X",
            min=0,
            help="GPUs per worker; default: 1 where latency is measured on a GPU, else 0.",
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        o.option(metavar="HOST", help="A running Ray cluster; default: start Ray here."),
    ] = None,
    batch_size: o.BatchSize = None,
    dtype: o.Precision = None,
    attention: o.Attention = "sdpa",
    images: o.Images = 512,
    quality_dtype: Annotated[
        str | None,
        o.option(
            metavar="FORMAT",
            help="Number format of drawn images; default: the target's on a GPU, float32 on a CPU.",
        ),
    ] = None,
    objectives: o.Objectives = None,
    max_latency: Annotated[str | None, o.option(metavar="TIME", help="12ms, or 0.7x of dense.")] = None,
    max_memory: Annotated[str | None, o.option(metavar="BYTES", help="8GB, or 0.5x of dense.")] = None,
    max_fid: Annotated[str | None, o.option(metavar="FID", help="1.9, or +0.5 above dense.")] = None,
    patience: Annotated[
        int | None,
        o.option(
            metavar="N",
            help="Stop when N evaluations after the initial design let the hypervolume grow by 0.1 % or less.",
        ),
    ] = None,
    no_profile: Annotated[
        bool,
        o.flag(
            "--no-profile",
            help="Use no sensitivity profile. Otherwise budgets from 100 on make one.",
        ),
    ] = False,
    warm_starts: Annotated[
        int,
        o.option(
            metavar="N",
            min=0,
            help="Policies of the profile, from mild to strong, to try first.",
        ),
    ] = 0,
    rungs: Annotated[
        bool,
        o.flag("--rungs", help="Give policies up after a part of their images if there is little hope."),
    ] = False,
    no_confirm: Annotated[
        bool,
        o.flag("--no-confirm", help="Do not evaluate the finalists again on fresh noise."),
    ] = False,
    seed: o.Seed = 0,
    name: Annotated[
        str | None,
        o.option(metavar="NAME", help="Name of the run; default: from model, target and settings."),
    ] = None,
    storage: o.Storage = o.DEFAULT_STORAGE,
    reference: o.Reference = None,
    inception: o.Inception = None,
) -> None:
    """Search policies; the same command again continues where it stopped."""
    from varsearch.cli.progress import ProgressLines
    from varsearch.search.api import search

    front = search(
        model,
        target,
        budget=budget,
        storage=storage,
        objectives=o.parts(objectives),
        listener=ProgressLines(storage, budget, time, patience),
        weights=weights,
        prompts=prompts,
        name=name,
        images=images,
        batch_size=batch_size,
        dtype=dtype,
        attention=attention,
        max_latency=max_latency,
        max_memory=max_memory,
        max_fid=max_fid,
        minutes=time,
        patience=patience,
        profile=not no_profile,
        warm_starts=warm_starts,
        rungs=rungs,
        confirm=not no_confirm,
        seed=seed,
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        ray_address=ray_address,
        reference=reference,
        inception=inception,
        quality_dtype=quality_dtype,
    )
    from varsearch.cli.results import print_front
    from varsearch.report.dashboard import attach_to_run

    print_front(front)
    here = "" if storage == o.DEFAULT_STORAGE else f" --storage {shlex.quote(storage)}"
    run = shlex.quote(front.run)
    console.print(f"Next: varsearch export --run {run} --select knee{here}, or varsearch dashboard{here}")
    if front.settings.quality is None:
        return
    console.print("drawing sample grids for the dashboard; stopping now loses nothing else …")
    # Last, so that a picture that cannot be drawn or stored hides nothing of the result.
    console.print(f"{attach_to_run(storage, front.run)} sample grids drawn for the dashboard")


def status(run: o.RunName = None, storage: o.Storage = o.DEFAULT_STORAGE, json: o.Json = False) -> None:
    """List runs, how far they are and what they found."""
    from varsearch.search.results.runs import overview

    rows = overview(storage, run)
    if json:
        print_json(rows)
        return
    columns = (
        *("<run", "<target", "<numbers", "<objectives", "<status"),
        *("complete", "failed", "open", "front", "hypervolume", "<updated"),
    )
    table(f"{len(rows)} runs in {storage}", columns, map(_status, rows))


def _status(row: Mapping[str, Any]) -> tuple[str, ...]:
    stopped = f" + {row['stopped']} stopped" if row["stopped"] else ""
    return (
        str(row["run"]),
        str(row["target"]),
        str(row["origin"]),
        ", ".join(row["objectives"]),
        str(row["status"]),
        f"{row['complete']}{stopped}",
        str(row["failed"]),
        str(row["open"]),
        f"{row['front']}" + ("" if row["confirmed"] or row["exact"] else " candidates"),
        "" if row["hypervolume"] is None else f"{row['hypervolume']:.3f}",
        str(row["updated"]),
    )
