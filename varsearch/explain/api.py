"""Explains and compares policies: the command line, examples and notebooks call these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from varsearch.db import Store
from varsearch.evaluators.cost_model import CostModel, predicted_protocol
from varsearch.evaluators.quality import for_zoo
from varsearch.evaluators.workload import zoo_skeleton
from varsearch.explain.compare import Comparison, chosen_policies, compare_rows, filed_policies
from varsearch.explain.contributions import (
    MeasuredLosses,
    PredictedSavings,
    UnitCost,
    explain_changes,
)
from varsearch.measurement import Origin
from varsearch.models import zoo
from varsearch.policy import Policy
from varsearch.search.results.resolve_policy import resolve_policy
from varsearch.search.setup.prepare import prepare
from varsearch.search.setup.request import Request
from varsearch.target import AttentionName, default_target, find_device

if TYPE_CHECKING:
    from varsearch.report.explanation import Explanation


class Conditions(TypedDict, total=False):
    """The less common arguments of `compare`; `search.setup.request.Request` has their defaults."""

    weights: str | None
    prompts: str | None
    batch_size: int | None
    dtype: str | None
    attention: AttentionName
    images: int
    objectives: tuple[str, ...] | None
    seed: int
    reference: str | None
    inception: str | None


def compare(
    *policies: str,
    model: str = "mnist",
    target: str = "cpu",
    predict: str = "4090",
    storage: str | Path = "varsearch.db",
    library: Path | None = None,
    on_calibration: Callable[[], None] = lambda: None,
    on_row: Callable[[str, bool], None] = lambda name, reused: None,
    **conditions: Unpack[Conditions],
) -> Comparison:
    """Evaluates policies side by side on the same noise; stored evidence is not evaluated again.

    Args:
        *policies: published systems (`varsearch presets`), hand-made policies, policy files, names
            of the library. None at all is all published systems. Dense is always compared.
        model: name of a model, or a model's folder.
        target: device that latency and memory refer to.
        predict: second device, whose latency is predicted.
        storage: path of an SQLite file, or any SQLAlchemy URL.
        library: folder of the policy library; None is the user's.
        on_calibration: called before a calibration pass.
        on_row: called after each policy with its name, and whether everything was stored.
        **conditions: batch size, images, objectives and the like, as `varsearch.search` takes them.

    Raises:
        PolicyError: no such policy, or one that does not fit the model.
        EvaluationError: a policy gave no usable number.
    """
    request = Request(model=model, target=target, **conditions).joined()
    model = request.model
    spec = zoo.manifest(model).spec()
    second = default_target(find_device(predict), spec=spec)
    filed = filed_policies(policies, spec, library)
    problem = prepare(request, storage, on_calibration)
    settings = problem.settings
    chosen = chosen_policies(policies, filed, problem.starts)
    is_target = second == settings.target and settings.origin is Origin.PREDICTED
    cost_model = None if is_target else CostModel(zoo_skeleton(model), predicted_protocol(second))
    with Store(storage) as store:
        rows = compare_rows(chosen, settings, problem.worker.make(), store, cost_model, on_row)
    return Comparison(rows, settings, second, {} if policies else problem.starts.missing)


def explain(
    policy: str,
    *,
    measure: int = 0,
    storage: str | Path = "varsearch.db",
    model: str | None = None,
    weights: str | None = None,
    prompts: str | None = None,
    library: Path | None = None,
    on_change: Callable[[int, int], None] = lambda done, total: None,
) -> Explanation:
    """Shows where a policy differs from dense, and what each change saves and costs.

    Args:
        policy: policy file, name of the library, or trial of a run: "RUN:7", "RUN:knee", or ":knee"
            of the latest run.
        measure: images that are drawn for each change to measure its loss; 0 measures none.
        storage: database of runs.
        model: name or folder of the model; None takes the model that the policy names.
        weights: of a published model, the place of its weights.
        prompts: of a model that reads texts, its prompts.
        library: folder of the policy library; None is the user's.
        on_change: called after each change with how many are done, and of how many.

    Raises:
        UsageError, PolicyError: there is no such policy, or it is not for this model.
        EvaluationError: a change gave no usable number.
    """
    # The page and the picture of an explanation are drawn by the report, which is above this room.
    from varsearch.report.explanation import Explanation

    resolved = resolve_policy(policy, storage, library=library, model=model, weights=weights, prompts=prompts)
    file = resolved.file
    skeleton = zoo_skeleton(resolved.model)
    savings = PredictedSavings(file.policy, CostModel(skeleton, predicted_protocol(file.target)))
    losses = None
    if measure:
        seed = file.sample.seed if file.sample else 0
        evaluator = for_zoo(resolved.model, measure, nll_images=measure, seed=seed)
        losses = MeasuredLosses(file.policy, evaluator)
    rows = explain_changes(file.policy, [savings, losses] if losses else [savings], on_change)
    dense = Policy.dense(len(file.policy.layers), len(file.policy.scales))
    whole = UnitCost(savings.against(dense), losses.against(dense) if losses else {})
    return Explanation(resolved, rows, whole, measure)
