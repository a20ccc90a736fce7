"""`varsearch run` and `varsearch status`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from varsearch.cli import options as o
from varsearch.cli.render import announce_calibration, console, duration, print_json, quantity, table

if TYPE_CHECKING:
    from varsearch.search.progress import Progress, Status
    from varsearch.search.setup import Plan, Request


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(run)
    app.command()(status)


def run(
    model: o.Model = "mnist",
    target: o.TargetName = "cpu",
    budget: Annotated[int, typer.Option(help="Evaluations in total, earlier invocations included.")] = 50,
    time: Annotated[float | None, typer.Option(help="Minutes after which no evaluation begins.")] = None,
    workers: Annotated[int, typer.Option(help="Worker processes on Ray; 0 evaluates in this process.")] = 0,
    cpus_per_worker: Annotated[
        int | None, typer.Option(min=1, help="Cores per worker; default: divided evenly.")
    ] = None,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="GPUs per worker; fractions share one.")] = 0.0,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster; default: start Ray here.")] = None,
    batch_size: o.BatchSize = None,
    attention: o.Attention = "sdpa",
    images: o.Images = 512,
    objectives: Annotated[
        str | None,
        typer.Option(
            help="One to three metrics; default: delta_fid,latency_ms,peak_bytes, with speedup for measured latency."
        ),
    ] = None,
    max_latency: Annotated[str | None, typer.Option(help="Bound: 12ms, or 0.7x of dense.")] = None,
    max_memory: Annotated[str | None, typer.Option(help="Bound: 40MB, or 0.8x of dense.")] = None,
    max_fid: Annotated[str | None, typer.Option(help="Bound: 1.9, or +0.5 over dense.")] = None,
    seed: o.Seed = 0,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: from model, target and settings.")] = None,
    storage: o.Storage = o.DEFAULT_STORAGE,
    reference: o.Reference = None,
    inception: o.Inception = None,
) -> None:
    """Search policies; the same command again continues where it stopped."""
    from varsearch.search.setup import Request, check_budget, check_name, prepare

    check_budget(budget, time)
    if name is not None:
        check_name(name)
    request = Request(
        model=model,
        target=target,
        batch_size=batch_size,
        attention=attention,
        images=images,
        objectives=None if objectives is None else tuple(part.strip() for part in objectives.split(",")),
        max_latency=max_latency,
        max_memory=max_memory,
        max_fid=max_fid,
        seed=seed,
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        ray_address=ray_address,
        reference=reference,
        inception=inception,
    )
    _search(request, prepare(request, storage, announce_calibration), name, storage, budget, time)


def _search(request: Request, plan: Plan, name: str | None, storage: str, budget: int, minutes: float | None) -> None:
    from varsearch.cli.results import print_front
    from varsearch.search.gallery import attach_to_run
    from varsearch.search.run import run as search
    from varsearch.search.setup import check_name

    name = plan.settings.default_name if name is None else name
    check_name(name)
    _announce(plan, name, storage, budget, minutes)
    final = search(
        plan.settings,
        plan.space,
        plan.starts.by_origin,
        plan.worker.make,
        storage=storage,
        budget=budget,
        name=name,
        minutes=minutes,
        workers=request.workers,
        resources=plan.resources,
        ray_address=request.ray_address,
        on_event=_print_progress,
    )
    _conclude(final)
    print_front(storage, name)
    here = "" if storage == o.DEFAULT_STORAGE else f" --storage {shlex.quote(storage)}"
    run = shlex.quote(name)
    console.print(f"Next: varsearch export --run {run} --select knee{here}, or varsearch dashboard{here}")
    console.print("drawing sample grids for the dashboard; stopping now loses nothing else …")
    # Last, so that a picture that cannot be drawn or stored hides nothing of the result.
    console.print(f"{attach_to_run(storage, name)} sample grids drawn for the dashboard")


def _announce(plan: Plan, name: str, storage: str, budget: int, minutes: float | None) -> None:
    settings = plan.settings
    limits = ", ".join(f"{metric} {limit:.4g}" for metric, limit in settings.bounds.items()) or "none"
    console.print(
        f"{name}: {settings.model} on {settings.target}, latency and memory {settings.origin.value}", style="bold"
    )
    spend = f"{budget} evaluations" + (f" or {minutes:g} minutes" if minutes else "")
    console.print(
        f"budget {spend}, {settings.quality.n_images} images each; "
        f"{len(plan.space.knobs)} knobs; starts from {len(plan.starts.presets)} published systems and "
        f"{len(plan.starts.seeds)} hand-made policies; bounds: {limits}; storage {storage}"
    )
    for preset, reason in plan.starts.missing.items():
        console.print(f"not among them: {preset}: {reason}")


def _print_progress(event: Progress) -> None:
    trial, now = event.trial, event.status
    mark = "*" if trial.number in now.front else " "
    if trial.error:
        told = f"failed: {trial.error}"
    else:
        v = trial.values
        told = f"ΔFID {v['delta_fid']:+.2f}" if "delta_fid" in v else ""
        told += "".join(f", {quantity(m, v[m])}" for m in ("latency_ms", "speedup", "peak_bytes") if m in v)
    reused = " (known already)" if event.reused else ""
    volume = "" if now.hypervolume is None else f", hypervolume {now.hypervolume:.3f}"
    console.print(
        f"{mark} {now.evaluated:>3}/{now.budget} trial {trial.number:<3} {trial.origin:<22} {told}{reused}"
        f"  | front {len(now.front)}{volume}, ETA {duration(now.seconds_left)}"
    )


def _conclude(final: Status) -> None:
    why = "no untried policy is left" if final.exhausted else "budget or time spent"
    console.print(
        f"{why}: {final.evaluated} evaluated, {final.reused} known already, {final.failed} failed; "
        f"{len(final.front)} on the front"
    )


def status(run: o.RunName = None, storage: o.Storage = o.DEFAULT_STORAGE, json: o.Json = False) -> None:
    """List runs, how far they are and what they found."""
    from varsearch.search.overview import overview

    rows = overview(storage, run)
    if json:
        print_json(rows)
        return
    columns = (
        "<run",
        "<target",
        "<numbers",
        "<status",
        "complete",
        "failed",
        "open",
        "front",
        "hypervolume",
        "<updated",
    )
    table(
        f"{len(rows)} runs in {storage}",
        columns,
        (
            (
                str(row["run"]),
                str(row["target"]),
                str(row["origin"]),
                str(row["status"]),
                str(row["complete"]),
                str(row["failed"]),
                str(row["open"]),
                str(row["front"]),
                "" if row["hypervolume"] is None else f"{row['hypervolume']:.3f}",
                str(row["updated"]),
            )
            for row in rows
        ),
    )
