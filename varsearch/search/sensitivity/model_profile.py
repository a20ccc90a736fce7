"""A profile as its reader meets it: one row per setting, the most harmless first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from varsearch.formatting import data_frame
from varsearch.search.sensitivity.additive_model import Estimates
from varsearch.sensitivity_profile import Profile
from varsearch.space.one_at_a_time import cost_parts

if TYPE_CHECKING:
    from pandas import DataFrame


class SettingEffect(NamedTuple):
    """The effect of one setting alone, against dense.

    Attributes:
        setting: name of the setting, such as "L3.fc1=4bit".
        technique: kind of the setting.
        loss: loss of quality, about in units of ΔFID.
        loss_error: standard error of the loss.
        latency_ms: change of a batch's latency, in milliseconds.
        peak_bytes: change of the peak memory, in bytes.
    """

    setting: str
    technique: str
    loss: float
    loss_error: float
    latency_ms: float
    peak_bytes: float


@dataclass
class ModelProfile:
    """What each setting of a model loses and saves on its own, on one target.

    Attributes:
        data: everything that was measured.
    """

    data: Profile

    @cached_property
    def estimates(self) -> Estimates:
        """Sums of the effects: losses and costs of any settings together."""
        return Estimates(self.data)

    @cached_property
    def rows(self) -> list[SettingEffect]:
        """Every setting, the least loss first."""
        rows: list[SettingEffect] = []
        for name, (setting,) in self.estimates.probes.singles.items():
            loss = self.estimates.losses[name]
            change = self.estimates.change(cost_parts([setting])[0])
            costs = change.latency_ms, change.peak_bytes
            rows.append(SettingEffect(name, setting.kind, loss.value, loss.error, *costs))
        return sorted(rows, key=lambda row: row.loss)

    def __iter__(self) -> Iterator[SettingEffect]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dataframe(self) -> DataFrame:
        """A row per setting; `UsageError` if pandas is not installed."""
        return data_frame([row._asdict() for row in self.rows], index="setting")

    def __repr__(self) -> str:
        target = self.data.costs.protocol.speed.target
        return f"<profile of {self.data.spec.name} on {target}: {len(self)} settings>"

    def _repr_html_(self) -> str:
        html: str = self.to_dataframe().to_html()
        return html
