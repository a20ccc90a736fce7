"""Numbers as people read them: on the terminal, in reports and as data frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from varsearch.errors import UsageError
from varsearch.measurement import METRICS, Measurement

if TYPE_CHECKING:
    from pandas import DataFrame


def quantity(metric: str, value: float) -> str:
    """A value in a unit that people read: kB and MB for bytes, GFLOP for operations."""
    unit = METRICS[metric].unit
    if unit == "B":
        return scaled(value, ("B", "kB", "MB", "GB"))
    if unit == "FLOP":
        return scaled(value, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"))
    return f"{value:.4g}{' ' if unit not in ('', 'x') else ''}{unit}"


def scaled(value: float, units: Sequence[str]) -> str:
    """`value` in the largest unit that leaves at least one digit before the point."""
    step = 0
    while abs(value) >= 1000 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    return f"{value:.3g} {units[step]}"


def interval(m: Measurement) -> str:
    """Value with its interval, if it has one."""
    return f"{m.value:+.2f}" + (f" [{m.low:+.2f}, {m.high:+.2f}]" if m.low is not None and m.high is not None else "")


def times(m: Measurement) -> str:
    """A factor with its interval, if it has one."""
    return f"{m.value:.2f}x" + (f" [{m.low:.2f}, {m.high:.2f}]" if m.low is not None and m.high is not None else "")


def ratio(metrics: Mapping[str, Measurement], dense: Mapping[str, Measurement] | None, metric: str) -> str:
    """A metric relative to dense, such as "0.53x"; empty where one of them is missing."""
    if dense is None or metric not in metrics or metric not in dense or not dense[metric].value:
        return ""
    return f"{metrics[metric].value / dense[metric].value:.2f}x"


def bound(metric: str, limit: float) -> str:
    """A bound as people write it, such as "peak_bytes <= 40 MB"."""
    return f"{metric} {'<=' if METRICS[metric].direction == 'minimize' else '>='} {quantity(metric, limit)}"


def data_frame(rows: list[dict[str, object]], index: str) -> DataFrame:
    """Rows as a pandas table; `UsageError` with the install command if pandas is missing."""
    try:
        import pandas
    except ModuleNotFoundError:
        raise UsageError("a data frame needs pandas: pip install pandas") from None
    columns = dict.fromkeys(name for row in rows for name in row)
    return pandas.DataFrame(rows, columns=list(columns) or [index]).set_index(index)
