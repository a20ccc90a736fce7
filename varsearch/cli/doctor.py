"""`varsearch doctor`: what a user runs first on a machine."""

from __future__ import annotations

from dataclasses import asdict

import typer

from varsearch.cli import options as o
from varsearch.cli.render import console, print_json, table


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(doctor)


def doctor(storage: o.Storage = o.DEFAULT_STORAGE, json: o.Json = False) -> None:
    """Try everything that the main job needs on this machine; the exit code is 0 only if that job can run."""
    from varsearch.doctor import examine

    checks = list(examine(storage))
    failed = [check.name for check in checks if check.status == "error"]
    if json:
        print_json({"can_run": not failed, "checks": [asdict(check) for check in checks]})
    else:
        table("", ("<check", "<", "<found", "<what to do"), ((c.name, c.status, c.told, c.advice) for c in checks))
        end = f"does not run here: {', '.join(failed)}" if failed else "can run here"
        console.print(f"varsearch run {end}")
    if failed:
        raise typer.Exit(1)
