"""A policy unit by unit, as rows of words, as a picture and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from varsearch.evaluators.workload import zoo_skeleton
from varsearch.explain.contributions import LOSSES, SAVINGS, Row, UnitCost
from varsearch.formatting import interval, quantity
from varsearch.measurement import Measurement
from varsearch.policy.summary import summarize
from varsearch.report.charts import Chart, beside
from varsearch.report.page import page
from varsearch.report.policy_charts import caption, policy_charts
from varsearch.report.work import WorkLeft
from varsearch.search.results.resolve_policy import ResolvedPolicy

COLUMNS = {
    "latency_ms": "saved latency",
    "peak_bytes": "saved peak",
    "kv_bytes": "saved KV",
    "weight_bytes": "saved weights",
    "flops": "saved FLOPs",
    "feature_distance": "lost distance [95 %]",
    "nll": "lost NLL [95 %]",
}
"""Names of the columns: what is saved, then what it costs."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A policy with what is known of its changes.

    Attributes:
        rows: one per change.
        whole: the policy beside dense.
        images: behind every loss; 0 where none was measured.
    """

    subject: ResolvedPolicy
    rows: Sequence[Row]
    whole: UnitCost
    images: int

    @property
    def title(self) -> str:
        """What is explained, in one sentence."""
        file = self.subject.file
        values = {m.metric: m for m in file.measurements}
        told = f"ΔFID {interval(values['delta_fid'])}, " if "delta_fid" in values else ""
        told += f"{values['speedup'].value:.2f}x dense's speed, " if "speedup" in values else ""
        doubt = ", not confirmed on fresh noise" if self.subject.confirmed is False else ""
        return f"{self.subject.name}: {told}{file.origin.value} for {file.target}{doubt}; {summarize(file.policy)}"

    @property
    def notes(self) -> list[str]:
        """Where the numbers come from and what they do not say."""
        target = self.subject.file.target
        saved = (
            f"saved: PREDICTED for {target.device}, by taking one change back and leaving the rest; as changes meet in "
            "the same place, they do not add up"
        )
        if not self.images:
            return [saved, "quality: not measured; --measure does"]
        lost = (
            f"quality: measured with {self.images} images on the same noise, with and without the change; distance is "
            "that of features to dense's image"
        )
        return [saved, lost]

    def cells(self) -> Iterator[list[str]]:
        """Unit, technique, setting and the columns, for every change, their sum and the whole policy."""
        for row in self.rows:
            change = row.change
            alone = change.without is not None
            yield [change.unit, change.kind, change.setting, *self._numbers(row.cost, "" if alone else "not alone")]
        total = {metric: sum(row.cost.saved.get(metric, 0.0) for row in self.rows) for metric in SAVINGS}
        yield ["sum", "", "", *self._numbers(UnitCost(saved=total), "", summed=True)]
        yield ["whole policy", "", "beside dense", *self._numbers(self.whole, "")]

    def _numbers(self, cost: UnitCost, missing: str, *, summed: bool = False) -> list[str]:
        saved = [signed(metric, cost.saved[metric]) if metric in cost.saved else missing for metric in SAVINGS]
        if not self.images:
            return [*saved, *("" if summed else missing or "not measured" for _ in LOSSES)]
        undefined = "" if summed else missing or "undefined"
        return [*saved, *(loss(cost.lost[m]) if m in cost.lost else undefined for m in LOSSES)]

    def chart(self) -> Chart:
        """The charts of the policy, side by side."""
        return beside(self._charts(), self.title, caption(self.subject.file.policy))

    def html(self) -> str:
        """A page with the table and the charts."""
        return page(
            "explain.html.jinja",
            explanation=self,
            columns=list(COLUMNS.values()),
            drawn=self._charts(),
            caption=caption(self.subject.file.policy),
        )

    def _charts(self) -> list[Chart]:
        file, model = self.subject.file, zoo_skeleton(self.subject.model)
        return policy_charts(file.policy, model.spec, WorkLeft(model, file.target).of(file.policy))

    def as_json(self) -> dict[str, object]:
        """Everything, with full precision."""
        file = self.subject.file
        return {
            "policy": self.subject.name,
            "digest": file.policy.digest,
            "model": file.model.name,
            "target": file.target.model_dump(mode="json"),
            "measured_images": self.images,
            "units": [
                {
                    "unit": row.change.unit,
                    "technique": row.change.kind,
                    "setting": row.change.setting,
                    "alone": row.change.without is not None,
                    **_json(row.cost),
                }
                for row in self.rows
            ],
            "whole": _json(self.whole),
        }


def signed(metric: str, value: float) -> str:
    """A difference with its sign and unit; a plain 0 if there is none."""
    if abs(value) < 1e-9:
        return "0"
    return f"{'+' if value > 0 else '-'}{quantity(metric, abs(value))}"


def loss(m: Measurement) -> str:
    """A difference of a small metric with its interval."""
    return f"{m.value:+.4f}" + (f" [{m.low:+.4f}, {m.high:+.4f}]" if m.low is not None and m.high is not None else "")


def _json(cost: UnitCost) -> Mapping[str, object]:
    lost = {name: m.model_dump(mode="json", exclude={"metric"}) for name, m in cost.lost.items()}
    return {"saved": dict(cost.saved), "lost": lost}
