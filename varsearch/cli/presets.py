"""`varsearch presets`: the published systems that are there by name."""

from __future__ import annotations

import typer

from varsearch.cli import options as o
from varsearch.cli.render import console, print_json, table


def register(app: typer.Typer) -> None:
    """Adds this file's command."""
    app.command()(presets)


def presets(json: o.Json = False) -> None:
    """List the published systems: their papers, and the policy fields that they set."""
    from varsearch.space.presets.catalogue import CATALOGUE

    if json:
        rows = {name: about._asdict() | {"url": about.url} for name, about in CATALOGUE.items()}
        print_json([{"name": name} | row for name, row in rows.items()])
        return
    columns = ("<name", "<paper", "<strength", "<policy fields")
    table(
        "", columns, ((name, about.paper, about.strength, "\n".join(about.fields)) for name, about in CATALOGUE.items())
    )
    console.print("arXiv numbers: https://arxiv.org/abs/NUMBER; strength: as in the paper's main results if empty")
    for need in dict.fromkeys(about.needs for about in CATALOGUE.values()):
        if need:
            names = ", ".join(name for name, about in CATALOGUE.items() if about.needs == need)
            console.print(f"{need} is needed by {names}")
    console.print("side by side: varsearch compare; what they do and claim: docs/techniques.md")
