"""`varsearch profile`: what each setting of a model costs in quality and saves on a target."""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from varsearch.cli import options as o
from varsearch.cli.render import console, duration, print_json, quantity, table
from varsearch.profile import DENSE
from varsearch.space.probes import Chosen, cost_parts
from varsearch.space.units import Setting

if TYPE_CHECKING:
    from varsearch.profile import Profile
    from varsearch.search.sensitivity.additive_model import AdditiveModel, LinearFit
    from varsearch.search.sensitivity.profile import Step

LEGEND = """loss: what the images of a batch lose on average, about in units of ΔFID; of each unit's strongest setting
change: of that setting alone against dense; heads that are compressed alike save more together than one by one"""


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(profile)


def profile(
    model: o.Model = "mnist",
    weights: o.Weights = None,
    prompts: o.Prompts = None,
    target: o.TargetName = "cpu",
    batch_size: o.BatchSize = None,
    dtype: o.Precision = None,
    seed: o.Seed = 0,
    storage: o.Storage = o.DEFAULT_STORAGE,
    json: o.Json = False,
) -> None:
    """Measure every setting alone, once per database; another target only costs. Goes on where it was interrupted."""
    from varsearch.models import registry, zoo
    from varsearch.search.sensitivity.additive_model import AdditiveModel
    from varsearch.search.sensitivity.profile import profiled
    from varsearch.target import check_dtype, default_target, find_device

    name = registry.join(model, weights, prompts)
    chosen = default_target(find_device(target), batch_size, check_dtype(dtype), zoo.manifest(name).spec())
    found = profiled(name, chosen, storage, seed=seed, on_step=print_step)
    estimates = AdditiveModel(found)
    if json:
        print_json(_json(found, estimates))
    else:
        _print(found, estimates)


def print_step(step: Step) -> None:
    """How far a profile is."""
    end = "\r" if sys.stderr.isatty() and step.left else "\n"
    if end == "\r" or step.done % 25 == 0 or not step.left:
        total, left = step.done + step.left, duration(step.seconds_left)
        print(f"{step.done}/{total} measured, ETA {left}  ", end=end, file=sys.stderr, flush=True)


def _print(found: Profile, estimates: AdditiveModel) -> None:
    protocol, speed, dense = found.sensitivity.protocol, found.costs.protocol.speed, found.costs.policies[DENSE]
    ends = ("<unit", "loss", "time", "memory")
    table(
        f"{found.spec.name} on {speed.target}: {len(estimates.losses)} settings, {protocol.images} images each; "
        f"a batch of dense takes {quantity('latency_ms', dense.latency_ms)} ({speed.origin.value.upper()}), "
        f"{quantity('peak_bytes', dense.peak_bytes)}; least and most sensitive unit of each kind",
        ("<kind", "settings", *ends, *ends),
        (_row(kind, settings, estimates) for kind, settings in _by_kind(estimates).items()),
    )
    console.print(LEGEND)
    deviations = [100 * abs(found.deviation.value) for found in estimates.interactions]
    console.print(
        f"interaction of {len(deviations)} pairs: {statistics.median(deviations):.0f} % off the sum of their effects, "
        f"the median; {max(deviations):.0f} % at most"
    )
    for what, fit in _fits(estimates).items():
        accuracy = f"R² {fit.r2:.2f}, median error {100 * fit.median_error:.1f} %"
        console.print(f"sum to end-to-end {what} of {len(estimates.probes.policies)} policies: {accuracy}")
    power = f"loss = {math.exp(estimates.quality.intercept):.3g} sum^{estimates.quality.slope:.2g}"
    console.print(f"sum to loss of the same: {power}, R² of logarithms {estimates.quality.r2:.2f}")
    console.print(
        f"measured in {duration(found.sensitivity.seconds)} (quality) and {duration(found.costs.seconds)} (cost)"
    )


def _by_kind(estimates: AdditiveModel) -> dict[str, list[Setting]]:
    """The strongest setting of each unit; where a kind has one unit, all its settings."""
    kinds: dict[str, dict[str, Setting]] = {}
    every = [setting for (setting,) in estimates.probes.singles.values()]
    for setting in every:
        kinds.setdefault(setting.kind, {})[setting.unit] = setting
    units = {kind: list(strongest.values()) for kind, strongest in kinds.items()}
    return {kind: found if len(found) > 1 else [s for s in every if s.kind == kind] for kind, found in units.items()}


def _row(kind: str, settings: list[Setting], estimates: AdditiveModel) -> list[str]:
    ordered = sorted(settings, key=lambda setting: estimates.losses[setting.name].value)
    total = sum(setting.kind == kind for (setting,) in estimates.probes.singles.values())
    return [kind, str(total), *_cells(ordered[0], estimates), *_cells(ordered[-1], estimates)]


def _cells(setting: Setting, estimates: AdditiveModel) -> list[str]:
    change = estimates.change(cost_parts([setting])[0])
    memory = f"{'+' if change.peak_bytes > 0 else ''}{quantity('peak_bytes', change.peak_bytes)}"
    return [setting.name, f"{estimates.losses[setting.name].value:.4f}", f"{change.latency_ms:+.3f} ms", memory]


def _fits(estimates: AdditiveModel) -> dict[str, LinearFit]:
    return {"latency": estimates.latency, "peak memory": estimates.memory}


def _json(found: Profile, estimates: AdditiveModel) -> dict[str, object]:
    def setting(name: str, chosen: Chosen) -> dict[str, object]:
        change = estimates.change(cost_parts(chosen)[0])
        return {
            "loss": estimates.losses[name].model_dump(),
            **found.sensitivity.effects[name].model_dump(),
            "change": change.model_dump(),
        }

    def policy(name: str, chosen: Chosen) -> dict[str, object]:
        return {
            "settings": [s.name for s in chosen],
            "loss": estimates.loss(chosen),
            "predicted_loss": estimates.predicted_loss(chosen),
            **found.sensitivity.effects[name].model_dump(),
            "summed": estimates.summed(chosen).model_dump(),
            "cost": found.costs.policies[name].model_dump(),
        }

    return {
        "model": found.spec.name,
        "fingerprint": found.spec.fingerprint,
        "quality": found.sensitivity.protocol.model_dump(mode="json"),
        "cost": found.costs.protocol.model_dump(mode="json"),
        "dense": found.costs.policies[DENSE].model_dump(),
        "settings": {name: setting(name, chosen) for name, chosen in estimates.probes.singles.items()},
        "heads": {
            name: estimates.change(part).model_dump() for name, part in estimates.probes.parts.items() if len(part) > 1
        },
        "interactions": [
            {"pair": i.pair, "metric": i.metric, "deviation": i.deviation.model_dump()} for i in estimates.interactions
        ],
        "policies": [policy(name, chosen) for name, chosen in estimates.probes.policies.items()],
        "fits": {
            **{what.replace(" ", "_"): asdict(fit) for what, fit in _fits(estimates).items()},
            "log_loss": asdict(estimates.quality),
        },
        "seconds": {"quality": found.sensitivity.seconds, "cost": found.costs.seconds},
    }
