"""Tables, JSON and units on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from varsearch.cli.streams import printable
from varsearch.formatting import bound as bound
from varsearch.formatting import interval as interval
from varsearch.formatting import quantity as quantity
from varsearch.formatting import ratio as ratio
from varsearch.formatting import scaled as scaled
from varsearch.formatting import times as times
from varsearch.measurement import Measurement

if TYPE_CHECKING:
    from varsearch.evaluators.calibrate import Step


class Terminal(Console):
    """Prints text as it is: brackets are no markup, `:x:` is no picture, and control characters do nothing."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Whatever is printed comes through here: lines, titles and cells of tables."""
        return super().render_str(printable(text), **options)


console = Terminal(
    markup=False,
    emoji=False,
    highlight=False,
    soft_wrap=not sys.stdout.isatty(),
    width=None if sys.stdout.isatty() else 160,
)


def announce_calibration() -> None:
    """Says why nothing seems to happen."""
    console.print("calibrating the model for published systems, once per database …")


def print_calibration_step(step: Step) -> None:
    """How far a calibration is, in one line that is written over."""
    if console.is_terminal or not step.left:
        minutes = f", about {step.seconds_left / 60:.0f} min left" if step.seconds_left >= 60 else ""
        message = f"calibration: {step.done} of {step.done + step.left} images{minutes}"
        console.print(f"{message:<60}", end="\r" if step.left else "\n")


def announce_missing(what: str, missing: Mapping[str, str]) -> None:
    """Published systems that are not there, those with the same reason together."""
    for reason in dict.fromkeys(missing.values()):
        console.print(f"{what}: {', '.join(name for name, why in missing.items() if why == reason)}: {reason}")


def print_json(value: object) -> None:
    """Pretty JSON on stdout."""
    print(json.dumps(value, indent=1))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with numbers to the right; columns whose name starts with "<" stay to the left."""
    grid = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        left = column.startswith("<")
        grid.add_column(column.removeprefix("<"), justify="left" if left else "right", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    console.print(grid)


def duration(seconds: float | None) -> str:
    """Minutes and seconds; a question mark while nobody knows."""
    return "?" if seconds is None else f"{int(seconds) // 60}m{int(seconds) % 60:02d}s"


def measurements_json(metrics: Mapping[str, Measurement]) -> dict[str, object]:
    """Metric name to everything known about its value."""
    return {name: m.model_dump(mode="json", exclude={"metric"}) for name, m in metrics.items()}
