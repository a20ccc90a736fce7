"""`varsearch calibrate`: what one pass over a model learns."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from varsearch.cli import options as o
from varsearch.cli.render import announce_calibration, console, print_calibration_step, print_json, table
from varsearch.errors import ModelError

if TYPE_CHECKING:
    from varsearch.calibration import Calibration
    from varsearch.target import ModelSpec

BITS = 4
"""Precision that the table shows sensitivities for."""

LEGEND = f"""heads: c contextual, s structural (HACK)
own scale: attention of each head to its own scale; history top: to the tenth of earlier keys it likes best (ScaleKV)
entropy ratio: first over second singular value of the map of attention entropies (ToProVAR)
halves: distance of the unconditional rows' attention output from the conditional rows' (LiteVAR)
dB: signal to noise of {BITS}-bit weights"""


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(calibrate)


def calibrate(
    model: o.Model = "mnist",
    weights: o.Weights = None,
    prompts: o.Prompts = None,
    images: Annotated[int, o.option(metavar="N", min=1, help="Images to watch; published systems use 50.")] = 50,
    seed: o.Seed = 0,
    device: o.DeviceName = None,
    dtype: o.Precision = None,
    storage: o.Storage = o.DEFAULT_STORAGE,
    json: o.Json = False,
) -> None:
    """Learn what published systems set their constants by, once per database; 'run' and 'compare' do it too."""
    from varsearch.evaluators.devices import place_of
    from varsearch.evaluators.workload import zoo_skeleton
    from varsearch.models import registry, zoo
    from varsearch.search.setup.calibration import calibrated

    model = registry.join(model, weights, prompts)
    if refusal := zoo.calibration_refusal(model):
        raise ModelError(f"{model} cannot be calibrated: {refusal}")
    skeleton, place = zoo_skeleton(model), place_of(device, dtype, zoo.manifest(model).spec())
    found = calibrated(
        skeleton,
        partial(zoo.load, model),
        storage,
        images=images,
        seed=seed,
        on_start=announce_calibration if not json else lambda: None,
        on_step=print_calibration_step if not json else lambda step: None,
        place=place,
    )
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        _print(skeleton.spec, found)


def _print(spec: ModelSpec, found: Calibration) -> None:
    from varsearch.space.presets.budgets import CONTEXTUAL, contextual_heads

    classes, last = contextual_heads(found, CONTEXTUAL), len(spec.scales) - 1
    linears = sorted(found.sqnr[0])
    rows = (
        (
            str(i),
            "".join("c" if contextual else "s" for contextual in classes[i]),
            " ".join(f"{head[last]:.2f}" for head in found.scale_mass[last][i]),
            f"{found.history_top[last][i]:.2f}",
            f"{found.entropy_ratio[last][i]:.1f}",
            f"{found.half_distance[last][i]:.2f}",
            *(f"{found.sqnr[i][name][BITS]:.1f}" for name in linears),
        )
        for i in range(spec.n_layers)
    )
    columns = (
        "layer",
        "<heads",
        "<own scale",
        "history top",
        "entropy ratio",
        "halves",
        *(f"{name} dB" for name in linears),
    )
    protocol = found.protocol
    table(
        f"{spec.name}, last scale, {protocol.images} images of seed {protocol.seed}; {found.seconds:.0f} s",
        columns,
        rows,
    )
    console.print(LEGEND)
    for threshold, decision in found.skipvar.items():
        shares = ", ".join(f"{action.share:.0%}" for action in decision.actions)
        console.print(
            f"SkipVAR at similarity {threshold}: images per action (full; 1, 2, 3 unguided; 1, 2, 3 skipped): {shares}"
        )
