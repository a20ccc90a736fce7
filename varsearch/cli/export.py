"""`varsearch export`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from varsearch import library
from varsearch.cli import options as o
from varsearch.cli.render import console, interval, quantity, table, times
from varsearch.errors import EvaluationError, UsageError

if TYPE_CHECKING:
    from varsearch.policy_file import PolicyFile
    from varsearch.search.core.protocols import Protocols
    from varsearch.search.results.front import FrontEntry


def register(app: typer.Typer) -> None:
    """Adds this file's command."""
    app.command()(export)


def export(
    run: o.RunName = None,
    select: Annotated[
        str,
        o.option(
            metavar="HOW",
            help="knee, fastest, smallest, best-quality, max-latency=12ms, max-memory=40MB or trial=7.",
        ),
    ] = "knee",
    output: Annotated[
        Path | None,
        o.option(metavar="FILE", help="File to write; default: MODEL-TARGET-SELECT.json."),
    ] = None,
    to_library: Annotated[bool, o.flag("--library", help="File it in the policy library.")] = False,
    name: Annotated[
        str | None,
        o.option(metavar="NAME", help="Its name in the library; default: the selection."),
    ] = None,
    library_folder: o.LibraryFolder = None,
    verify: Annotated[bool, o.flag("--verify", help="Evaluate it again in a fresh process and compare.")] = False,
    reference: o.Reference = None,
    inception: o.Inception = None,
    storage: o.Storage = o.DEFAULT_STORAGE,
) -> None:
    """Write a policy of the front as a file that 'varsearch apply' and load_policy read."""
    if to_library and output is not None:
        raise UsageError("--output and --library exclude each other: the library has places of its own")
    if name is not None and not to_library:
        raise UsageError("--name is a name in the library: give --library too, or name the file with --output")
    from varsearch.db import Store
    from varsearch.search.results.front import read_front
    from varsearch.search.results.runs import find_run, pick

    with Store(storage, create=False) as store:
        record = find_run(store, run)
        found = read_front(store, record)
        entry = pick(store, record, found, select)
    told = _told(entry)
    file = entry.to_file()
    if verify:
        _verify(file, found.settings.model, entry.protocols, reference, inception)
    label = select.replace("=", "-")
    if to_library:
        reference = f"{file.model.name}/{file.target.device}/{label if name is None else name}"
        if reference in library.index(library_folder):
            console.print(f"{reference} was in the library already: this replaces it")
        where = library.add(file, label if name is None else name, library_folder)
    else:
        where = str(output or Path(f"{file.model.name}-{file.target.device}-{label}.json"))
        file.write(Path(where))
    console.print(f"{where}: {told}; latency and memory {file.origin.value} for {file.target}")


def _told(entry: FrontEntry) -> str:
    from varsearch.search.results.table import known

    speedup, peak = (known(entry.metrics, metric) for metric in ("speedup", "peak_bytes"))
    judged = entry.protocols.quality is not None
    delta = f"ΔFID {interval(known(entry.metrics, 'delta_fid'))}" if judged else "quality NOT evaluated"
    doubt = "" if entry.is_confirmed else ", not confirmed on fresh noise"
    return (
        f"trial {entry.number} ({entry.origin}){doubt}, {delta}, {times(speedup)} dense, "
        f"peak {quantity('peak_bytes', peak.value)}"
    )


def _verify(file: PolicyFile, model: str, protocols: Protocols, reference: str | None, inception: str | None) -> None:
    """Prints every number beside its repetition; `EvaluationError` if one disagrees."""
    from varsearch.evaluators.worker import WorkerConfig
    from varsearch.search.results.export import shown, verify

    config = WorkerConfig(
        model=model,
        device=file.sample.device_type if file.sample else "cpu",
        threads=file.sample.threads if file.sample else os.cpu_count() or 1,
        reference=reference,
        inception=inception,
    )
    checks = verify(file, config, protocols)
    rows = ((c.metric, shown(c.metric, c.filed), shown(c.metric, c.found), "yes" if c.agrees else "NO") for c in checks)
    table("verified in a fresh process", ("<metric", "filed", "found", "agrees"), rows)
    wrong = [check.metric for check in checks if not check.agrees]
    if wrong:
        raise EvaluationError(f"the policy did not reproduce its {', '.join(wrong)}; nothing was exported")
