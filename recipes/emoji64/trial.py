"""A short training with other sizes: `python -m recipes.emoji64.trial DATA STAGE --steps 320 --set ch=16`.

Prints the images per second of one core and what the sizes are chosen by. Nothing is kept. A transformer learns the
tokens of the tokenizer in `--work`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.common.budget import Budget
from recipes.common.classifier import accuracy
from recipes.common.data import Split
from recipes.common.plan import Plan, Stage
from recipes.common.recipe import STAGES, Recipe, guarded
from recipes.common.tokenizer import code_use, psnr
from recipes.common.transformer import encode, held_out_nll
from recipes.common.work import Work
from recipes.emoji64.__main__ import feeds
from recipes.emoji64.data import load
from recipes.emoji64.plan import FULL, SMOKE
from varsearch.errors import UsageError
from varsearch.models.classifier import Classifier
from varsearch.models.seams import AttentionMemory, KVView
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE

Trained = Classifier | VQVAE | VAR


class WithoutCache(VAR):
    """A transformer whose scales see themselves only, as with a cache that keeps nothing."""

    def attend_all(self, q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], memory: AttentionMemory) -> Tensor:
        """Attention of every scale to itself."""
        lengths = [h * w for h, w in self.config.scales]
        parts = zip(*(x.split(lengths, dim=2) for x in (q_BHLC, views[0].k_BHSC, views[0].v_BHSC)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(q, k, v, scale=1.0) for q, k, v in parts], dim=2)


def changed(plan: Plan, stage: str, settings: Sequence[str], steps: int) -> Plan:
    """The plan with other fields of the network of `stage`, or of its `rate`, `batch` or `noise`.

    Raises:
        UsageError: a setting names no field.
    """
    trained, values = plan.stages[stage], dict(map(parsed, settings))
    own = {name: values.pop(name, getattr(trained, name)) for name in ("batch", "rate")}
    schedule = dataclasses.replace(trained.schedule, budget=Budget(steps=steps), save_seconds=600)
    stages = plan.stages | {stage: Stage(**own, schedule=schedule)}
    noise = values.pop("noise", plan.noise)
    try:
        config = dataclasses.replace(getattr(plan, stage), **values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--set {' '.join(settings)}: {error}") from None
    changes: dict[str, Any] = {stage: config, "stages": stages, "noise": noise}
    return dataclasses.replace(plan, **changes)


def parsed(setting: str) -> tuple[str, Any]:
    """Name and value of FIELD=JSON; `UsageError` if it is none."""
    name, _, text = setting.partition("=")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--set {setting}: {error}") from None
    return name, tuple(value) if isinstance(value, list) else value


def figures(network: Trained, codes: VQVAE | None, held_out: Split) -> dict[str, object]:
    """What the sizes of a network are chosen by, on held-out images."""
    if isinstance(network, Classifier):
        return {"accuracy, classes equal": accuracy(network, held_out)}
    if isinstance(network, VQVAE):
        decibel = [round(psnr(network, held_out.images, k + 1), 2) for k in range(len(network.config.scales))]
        return {"dB from the first scales": decibel, **code_use(network, held_out.images)}
    assert codes is not None
    alone = WithoutCache(network.config)
    alone.load_state_dict(network.state_dict())
    tokens, inputs = encode(codes, held_out)
    both = (held_out_nll(model.eval(), tokens, inputs, held_out.labels) for model in (network, alone))
    return dict(zip(("NLL", "NLL without a cache"), both, strict=True))


def run(arguments: argparse.Namespace) -> None:
    """Trains one stage and prints its figures."""
    torch.set_num_threads(1)
    stage = arguments.stage
    plan = changed(SMOKE if arguments.smoke else FULL, stage, arguments.set, arguments.steps)
    splits = load(arguments.data, plan.images, plan.held_out)
    held_out = splits["held_out"].first(arguments.judged)
    with tempfile.TemporaryDirectory() as folder:
        if stage == "transformer":
            try:
                shutil.copy(arguments.work / "tokenizer.safetensors", folder)
            except OSError as error:
                raise UsageError(f"no trained tokenizer in {arguments.work}: {error.strerror}") from None
        work = Work(Path(folder), "trial")
        recipe = Recipe(plan, work, feeds(plan, splits))
        codes = None if stage == "classifier" else recipe.tokenizer()
        network: Trained = codes or recipe.classifier()
        if stage == "transformer" and codes is not None:
            network = recipe.transformer(codes)
        images, seconds = arguments.steps * plan.stages[stage].batch, 60 * work.minutes[stage]
    found = {
        "set": " ".join(arguments.set),
        "parameters": sum(p.numel() for p in network.parameters()),
        "images": images,
        "images per second of a core": round(images / seconds, 2),
        **figures(network, codes, held_out),
    }
    print(json.dumps({stage: found}))


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and runs the trial; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m recipes.emoji64.trial", description=__doc__)
    parser.add_argument("data", type=Path, help="emoji64_jpeg.npz")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--steps", type=int, required=True, help="of the training")
    parser.add_argument("--set", nargs="*", default=[], help="FIELD=JSON of the network, or rate, batch, noise")
    parser.add_argument("--judged", type=int, default=180, help="held-out images behind the figures")
    parser.add_argument("--work", type=Path, default=Path("runs/emoji64-full"), help="folder with the tokenizer")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
