"""`varsearch compare`: policies side by side under one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from varsearch.cli import options as o
from varsearch.cli.render import (
    BLIND,
    announce_calibration,
    announce_missing,
    console,
    interval,
    known,
    measurements_json,
    print_json,
    quantity,
    ratio,
    table,
)

if TYPE_CHECKING:
    from varsearch.explain.compare import Row
    from varsearch.measurement import Measurement
    from varsearch.search.core.settings import RunSettings
    from varsearch.target import Target

RATIOS = {
    "flops": "FLOPs",
    "attention_flops": "attention",
    "kv_bytes": "KV",
    "weight_bytes": "weights",
    "peak_bytes": "peak",
}


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(compare)


def compare(
    policies: Annotated[
        list[str] | None,
        typer.Argument(
            help="Published systems (litevar, hack, …), hand-made policies, policy files, library names; "
            "default: dense and all published systems."
        ),
    ] = None,
    model: o.Model = "mnist",
    weights: o.Weights = None,
    prompts: o.Prompts = None,
    target: o.TargetName = "cpu",
    predict: Annotated[str, typer.Option(help="Device that latency is also predicted for.")] = "4090",
    batch_size: o.BatchSize = None,
    dtype: o.Precision = None,
    attention: o.Attention = "sdpa",
    images: o.Images = 512,
    objectives: o.Objectives = None,
    seed: o.Seed = 0,
    storage: o.Storage = o.DEFAULT_STORAGE,
    library_folder: o.LibraryFolder = None,
    reference: o.Reference = None,
    inception: o.Inception = None,
    json: o.Json = False,
) -> None:
    """Evaluate policies side by side on the same noise; what the database knows is not evaluated again."""
    from varsearch.db import Store
    from varsearch.evaluators.cost_model import CostModel, predicted_protocol
    from varsearch.evaluators.workload import zoo_skeleton
    from varsearch.explain.compare import chosen_policies, filed_policies
    from varsearch.explain.compare import compare as evaluate
    from varsearch.measurement import Origin
    from varsearch.models import registry, zoo
    from varsearch.search.setup.prepare import Request, prepare
    from varsearch.target import default_target, find_device

    model = registry.join(model, weights, prompts)
    request = Request(
        model=model,
        target=target,
        batch_size=batch_size,
        dtype=dtype,
        attention=attention,
        images=images,
        objectives=o.parts(objectives),
        seed=seed,
        reference=reference,
        inception=inception,
    )
    spec = zoo.manifest(model).spec()
    second = default_target(find_device(predict), spec=spec)
    filed = filed_policies(policies or (), spec, library_folder)
    plan = prepare(request, storage, announce_calibration if not json else lambda: None)
    chosen = chosen_policies(policies, filed, plan.starts)
    twice = second == plan.settings.target and plan.settings.origin is Origin.PREDICTED
    cost_model = None if twice else CostModel(zoo_skeleton(model), predicted_protocol(second))
    with Store(storage) as store:
        rows = evaluate(
            chosen,
            plan.settings,
            plan.worker.make(),
            store,
            cost_model,
            lambda name, reused: _progress(name, reused, json),
        )
    if json:
        print_json(_json(plan.settings, rows, second))
        return
    _print(plan.settings, rows, second)
    if not policies:
        announce_missing("not shown", plan.starts.missing)


def _progress(name: str, reused: bool, quiet: bool) -> None:
    if not quiet:
        console.print(f"{name}: {'known already' if reused else 'evaluated'}")


def _json(settings: RunSettings, rows: dict[str, Row], second: Target) -> dict[str, object]:
    def policy(row: Row) -> dict[str, object]:
        predicted = {name: row.predicted[name] for name in ("latency_ms", "speedup") if row.predicted}
        return measurements_json(row.metrics) | ({"predicted": measurements_json(predicted)} if predicted else {})

    return {
        "model": settings.model,
        "target": settings.target.model_dump(mode="json"),
        "origin": settings.origin.value,
        "images": settings.quality.n_images if settings.quality else 0,
        "predicted_target": second.model_dump(mode="json"),
        "policies": {name: policy(row) for name, row in rows.items()},
    }


def _print(settings: RunSettings, rows: dict[str, Row], second: Target) -> None:
    dense, quality = rows["dense"], settings.quality
    judged = f"quality of {quality.n_images} images" if quality else BLIND
    title = f"{settings.model} on {settings.target}; latency and memory are {settings.origin.value.upper()}; {judged}"
    speeds = ["latency", "speed-up"]
    if dense.predicted:
        title += f"; {second.device}: PREDICTED for {second}"
        speeds += [second.device, "speed-up"]
    judgements = ("ΔFID [95 %]", "distance", "NLL") if quality else ()
    columns = ("<policy", *judgements, *RATIOS.values(), *speeds)
    table(title, columns, ((name, *_cells(row, dense, quality is not None)) for name, row in rows.items()))


def _cells(row: Row, dense: Row, judged: bool) -> list[str]:
    m = row.metrics
    speeds = [(known(s, "latency_ms").value, known(s, "speedup").value) for s in (m, row.predicted) if s]
    return [
        *(_judgements(m) if judged else ()),
        *(ratio(m, dense.metrics, metric) for metric in RATIOS),
        *(cell for latency, speedup in speeds for cell in (quantity("latency_ms", latency), f"{speedup:.2f}x")),
    ]


def _judgements(m: Mapping[str, Measurement]) -> list[str]:
    return [
        interval(known(m, "delta_fid")),
        f"{known(m, 'feature_distance').value:.3f}",
        f"{m['nll'].value:.3f}" if "nll" in m else "",
    ]
