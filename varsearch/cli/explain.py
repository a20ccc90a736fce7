"""`varsearch explain`: what each part of a policy saves and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from varsearch.cli import options as o
from varsearch.cli.render import console, print_json, table
from varsearch.errors import UsageError
from varsearch.files import write_atomically

if TYPE_CHECKING:
    from varsearch.explain.contributions import MeasuredLosses, PredictedSavings
    from varsearch.report.explanation import Explanation
    from varsearch.search.results.resolve_policy import Subject

KINDS = (".svg", ".png", ".html")


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(explain)


def explain(
    policy: Annotated[
        str,
        typer.Argument(
            help="Policy file, its name in the library, or a trial of a run: RUN:7, RUN:knee, or :knee of the latest."
        ),
    ],
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure what each change costs in quality; takes minutes.")
    ] = False,
    images: Annotated[int, typer.Option(min=16, help="Images that --measure draws for each change.")] = 128,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw it: SVG or PNG, or an HTML page with the table.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name or folder; default: the one the policy names.")] = None,
    weights: o.Weights = None,
    prompts: o.Prompts = None,
    storage: o.Storage = o.DEFAULT_STORAGE,
    library_folder: o.LibraryFolder = None,
    json: o.Json = False,
) -> None:
    """Show where a policy differs from dense, and what each change saves and costs."""
    if picture and picture.suffix.lower() not in KINDS:
        raise UsageError(f"--picture {picture}: expected a file that ends in one of {', '.join(KINDS)}")
    from varsearch.search.results.resolve_policy import find_subject

    subject = find_subject(policy, storage, library_folder, model, weights, prompts)
    found = _explanation(subject, images if measure else 0)
    if picture:
        write_atomically(picture, _drawn(found, picture.suffix.lower()))
    if json:
        print_json(found.as_json())
    else:
        _print(found)


def _explanation(subject: Subject, images: int) -> Explanation:
    """Every change with what it saves and, measured with so many images if any, costs."""
    from varsearch.explain.contributions import UnitCost
    from varsearch.explain.contributions import explain as explained
    from varsearch.policy import Policy
    from varsearch.report.explanation import Explanation

    policy = subject.file.policy
    savings, losses = _savings(subject), _losses(subject, images) if images else None
    with _progress() as advance:
        rows = explained(policy, [savings, losses] if losses else [savings], advance)
    dense = Policy.dense(len(policy.layers), len(policy.scales))
    whole = UnitCost(savings.against(dense), losses.against(dense) if losses else {})
    return Explanation(subject, rows, whole, images)


def _drawn(found: Explanation, kind: str) -> str | bytes:
    if kind == ".html":
        return found.html()
    if kind == ".svg":
        return found.chart().svg()
    return found.chart().png()


def _savings(subject: Subject) -> PredictedSavings:
    from varsearch.evaluators.cost_model import CostModel, predicted_protocol
    from varsearch.evaluators.workload import zoo_skeleton
    from varsearch.explain.contributions import PredictedSavings

    file = subject.file
    return PredictedSavings(file.policy, CostModel(zoo_skeleton(subject.model), predicted_protocol(file.target)))


def _losses(subject: Subject, images: int) -> MeasuredLosses:
    from varsearch.evaluators.quality import for_zoo
    from varsearch.explain.contributions import MeasuredLosses

    file = subject.file
    evaluator = for_zoo(subject.model, images, nll_images=images, seed=file.sample.seed if file.sample else 0)
    return MeasuredLosses(file.policy, evaluator)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar with the time that is left, on stderr."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("taking changes back", total=None)
        yield lambda done, all: bar.update(task, completed=done, total=all)


def _print(found: Explanation) -> None:
    from varsearch.report.explanation import COLUMNS

    table(found.title, ("<unit", "<technique", "<setting", *COLUMNS.values()), found.cells())
    for note in found.notes:
        console.print(note)
