"""`varsearch run` and `varsearch status`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varsearch.cli import options as o
from varsearch.cli.render import (
    BLIND,
    announce_calibration,
    announce_missing,
    announce_no_profile,
    announce_profile,
    bound,
    console,
    print_calibration_step,
    print_json,
    table,
)
from varsearch.search.core.source import kind_of

if TYPE_CHECKING:
    from varsearch.policy import Policy
    from varsearch.search.run.events import Status
    from varsearch.search.setup.prepare import Plan, Request


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(run)
    app.command()(status)


def run(
    model: o.Model = "mnist",
    weights: o.Weights = None,
    prompts: o.Prompts = None,
    target: o.TargetName = "cpu",
    budget: Annotated[int, typer.Option(help="Evaluations in total, earlier invocations included.")] = 50,
    time: Annotated[float | None, typer.Option(help="Minutes after which no evaluation begins.")] = None,
    workers: Annotated[int, typer.Option(help="Worker processes on Ray; 0 evaluates in this process.")] = 0,
    cpus_per_worker: Annotated[
        int | None, typer.Option(min=1, help="Cores per worker; default: divided evenly.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GPUs per worker; fractions share one, where no latency is measured. Default: 1 where it is, else 0.",
        ),
    ] = None,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster; default: start Ray here.")] = None,
    batch_size: o.BatchSize = None,
    dtype: o.Precision = None,
    attention: o.Attention = "sdpa",
    images: o.Images = 512,
    quality_dtype: Annotated[
        str | None,
        typer.Option(help="Number format that images are drawn in; default: the target's on a GPU, float32 on a CPU."),
    ] = None,
    objectives: o.Objectives = None,
    max_latency: Annotated[str | None, typer.Option(help="Bound: 12ms, or 0.7x of dense.")] = None,
    max_memory: Annotated[str | None, typer.Option(help="Bound: 8GB, or 0.5x of dense.")] = None,
    max_fid: Annotated[str | None, typer.Option(help="Bound: 1.9, or +0.5 over dense.")] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop when so many evaluations, after the starts, made the hypervolume grow by 0.1 % or less."
        ),
    ] = None,
    no_profile: Annotated[
        bool,
        typer.Option(
            "--no-profile",
            help="Neither use a profile of the model's settings nor make one, as budgets from 100 on do.",
        ),
    ] = False,
    warm_starts: Annotated[
        int, typer.Option(min=0, help="Policies of the profile, from mild to strong, to start from besides the usual.")
    ] = 0,
    rungs: Annotated[
        bool, typer.Option("--rungs", help="Give policies up after a part of their images, where there is little hope.")
    ] = False,
    no_confirm: Annotated[
        bool, typer.Option("--no-confirm", help="Leave out the evaluation of finalists on fresh noise at the end.")
    ] = False,
    seed: o.Seed = 0,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: from model, target and settings.")] = None,
    storage: o.Storage = o.DEFAULT_STORAGE,
    reference: o.Reference = None,
    inception: o.Inception = None,
) -> None:
    """Search policies; the same command again continues where it stopped."""
    from varsearch.errors import UsageError
    from varsearch.models import registry
    from varsearch.search.run.stopping import check_limits
    from varsearch.search.setup.prepare import Request, check_name, prepare

    check_limits(budget, time, patience)
    if warm_starts and no_profile:
        raise UsageError("--warm-starts come from a profile, without which --no-profile goes: give one of the two")
    if name is not None:
        check_name(name)
    request = Request(
        model=registry.join(model, weights, prompts),
        target=target,
        batch_size=batch_size,
        dtype=dtype,
        attention=attention,
        images=images,
        objectives=o.parts(objectives),
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
        quality_dtype=quality_dtype,
    )
    limits = {"budget": budget, "minutes": time, "patience": patience}
    plan = prepare(request, storage, announce_calibration, print_calibration_step)
    if rungs and not plan.rungs:
        raise UsageError("--rungs: there is none before so few images, or of other metrics of quality than FID")
    _search(request, plan, name, storage, limits, not no_profile, warm_starts, rungs, not no_confirm)


def _search(
    request: Request,
    plan: Plan,
    name: str | None,
    storage: str,
    limits: dict[str, Any],
    use_profile: bool,
    n_warm: int,
    rungs: bool,
    confirm: bool,
) -> None:
    from varsearch.cli.profile import print_step
    from varsearch.cli.progress import ProgressLines, announce_known
    from varsearch.search.run.driver import run as search
    from varsearch.search.setup.guidance import guided
    from varsearch.search.setup.prepare import check_name
    from varsearch.search.setup.transfer import knowledge

    name = plan.settings.default_name if name is None else name
    check_name(name)
    known = knowledge(plan.settings, name, storage)
    proposals = limits["budget"] - known.taken
    told = announce_no_profile, announce_profile, print_step
    guide, starts = guided(plan, storage, proposals, use_profile, n_warm, *told)
    starts = known.starts(starts)
    _announce(plan, starts, name, storage, **limits)
    announce_known(known)
    lines = ProgressLines(starts, known.judged)
    final = search(
        plan.settings,
        plan.space,
        starts,
        plan.worker.make,
        guide=guide,
        rungs=plan.rungs if rungs else (),
        confirm=confirm,
        storage=storage,
        name=name,
        workers=request.workers,
        resources=plan.resources,
        ray_address=request.ray_address,
        on_event=lines,
        **limits,
    )
    conclude(final, limits["patience"])
    lines.conclude()
    _show(name, storage, judged=plan.settings.quality is not None)


def _show(name: str, storage: str, judged: bool) -> None:
    """The result, and then its pictures."""
    from varsearch.cli.results import print_front
    from varsearch.report.dashboard import attach_to_run

    print_front(storage, name)
    here = "" if storage == o.DEFAULT_STORAGE else f" --storage {shlex.quote(storage)}"
    run = shlex.quote(name)
    console.print(f"Next: varsearch export --run {run} --select knee{here}, or varsearch dashboard{here}")
    if not judged:
        return
    console.print("drawing sample grids for the dashboard; stopping now loses nothing else …")
    # Last, so that a picture that cannot be drawn or stored hides nothing of the result.
    console.print(f"{attach_to_run(storage, name)} sample grids drawn for the dashboard")


def _announce(
    plan: Plan,
    starts: Mapping[str, Policy],
    name: str,
    storage: str,
    budget: int,
    minutes: float | None,
    patience: int | None,
) -> None:
    settings, quality = plan.settings, plan.settings.quality
    limits = ", ".join(bound(metric, limit) for metric, limit in settings.bounds.items()) or "none"
    console.print(
        f"{name}: {settings.model} on {settings.target}, latency and memory {settings.origin.value}", style="bold"
    )
    if quality is None:
        console.print(BLIND)
    spend = f"{budget} evaluations" + (f" or {minutes:g} minutes" if minutes else "")
    spend += f", patience {patience}" if patience else ""
    console.print(
        f"budget {spend}, {quality.n_images if quality else 'no'} images each; "
        f"{len(plan.space.knobs)} knobs; starts from {_counted(starts)}; bounds: {limits}; storage {storage}"
    )
    announce_missing("not among them", plan.starts.missing)
    if plan.starts.assumed:
        console.print(
            f"constants assumed, as in the papers, because no quality is evaluated: {', '.join(plan.starts.assumed)}"
        )


def _counted(starts: Mapping[str, Policy]) -> str:
    names = {
        "preset": "published systems",
        "warm": "policies of the profile",
        "seed": "hand-made policies",
        "known": "policies of other runs",
    }
    found = Counter(kind_of(origin).value for origin in starts)
    return " and ".join(f"{found[kind]} {name}" for kind, name in names.items() if found[kind])


def conclude(final: Status, patience: int | None) -> None:
    """Says why a search ended."""
    why = "no untried policy is left" if final.exhausted else "budget or time spent"
    if final.plateau:
        why = f"the hypervolume did not grow in the last {patience} evaluations; a larger --patience, or none, goes on"
    console.print(
        f"{why}: {final.evaluated} evaluated, {final.stopped} stopped early, {final.reused} known already, "
        f"{final.failed} failed"
    )
    for rung in final.rungs:
        told = "switched off" if rung.is_off else f"stopped {rung.stopped}"
        rank = "not known from so few trials" if rung.rank is None else f"{rung.rank:.2f}"
        console.print(f"rung of {rung.name}: {told}; rank correlation with the final numbers {rank}")


def status(run: o.RunName = None, storage: o.Storage = o.DEFAULT_STORAGE, json: o.Json = False) -> None:
    """List runs, how far they are and what they found."""
    from varsearch.search.results.runs import overview

    rows = overview(storage, run)
    if json:
        print_json(rows)
        return
    columns = (
        "<run",
        "<target",
        "<numbers",
        "<objectives",
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
                ", ".join(row["objectives"]),
                str(row["status"]),
                f"{row['complete']}" + (f" + {row['stopped']} stopped" if row["stopped"] else ""),
                str(row["failed"]),
                str(row["open"]),
                f"{row['front']}" + ("" if row["confirmed"] or row["exact"] else " candidates"),
                "" if row["hypervolume"] is None else f"{row['hypervolume']:.3f}",
                str(row["updated"]),
            )
            for row in rows
        ),
    )
