"""Trains the model `emoji64` on one core of a CPU and writes its folder: `python -m recipes.emoji64 DATA OUT`.

What is done is kept in the work folder, and what is under way is saved there every two minutes: after a kill the same
command goes on from there and makes the same model. `--preview` writes the folder with the transformer as it was saved
last; `python -m recipes.emoji64.evaluate OUT` judges it. `--smoke` runs everything with tiny sizes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from recipes.common.archive import digest
from recipes.common.data import Draws, Split
from recipes.common.package import About
from recipes.common.plan import Plan
from recipes.common.recipe import STAGES, Recipe, guarded
from recipes.common.tasks import Feed
from recipes.common.work import Work
from recipes.emoji64.data import for_classifier, for_tokenizer, for_transformer, load
from recipes.emoji64.plan import FULL, POWER, SMOKE

VARY = {"classifier": for_classifier, "tokenizer": for_tokenizer, "transformer": for_transformer}


def about(plan: Plan) -> About:
    """What the manifest says."""
    c = plan.transformer
    layers = f"{c.depth} layers of {c.heads} heads"
    return About(
        name="emoji64",
        description=f"Class-conditional VAR of 64x64 emoji: {len(c.scales)} scales up to 16x16, {layers}",
        licence="MIT (weights); trained on Noto Emoji, Apache 2.0, and Twemoji, graphics CC-BY 4.0",
        data="Noto Emoji, Google, and Twemoji, Twitter: npm emoji-datasource-google and -twitter 16.0.0, as JPEG files",
        classifier=plan.classifier,
    )


def feeds(plan: Plan, splits: dict[str, Split]) -> dict[str, Feed]:
    """What each stage reads."""
    train, judged = splits["train"], splits["held_out"].first(plan.judged)
    return {
        name: Feed(train, judged, Draws(train.labels, stage.batch, POWER), VARY[name], half=False)
        for name, stage in plan.stages.items()
    }


def run(arguments: argparse.Namespace) -> None:
    """The recipe as far as it is asked for."""
    torch.set_num_threads(1)
    plan = SMOKE if arguments.smoke else FULL
    belongs = f"{plan.name} sizes, data {digest(arguments.data)[:16]}"
    work = Work(arguments.work or Path("runs") / f"emoji64-{plan.name}", belongs)
    splits = load(arguments.data, plan.images, plan.held_out)
    recipe = Recipe(plan, work, feeds(plan, splits))
    if not arguments.preview:
        recipe.train(arguments.until)
    if arguments.preview or arguments.until == STAGES[-1]:
        recipe.package(arguments.out, about(plan), splits, arguments.preview)
        print((arguments.out / "card.json").read_text(), end="")


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and runs the recipe; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m recipes.emoji64", description=__doc__)
    parser.add_argument("data", type=Path, help="emoji64_jpeg.npz")
    parser.add_argument("out", type=Path, help="folder of the finished model")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to train")
    parser.add_argument("--work", type=Path, help="folder of intermediate results, default runs/emoji64-full")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and few steps")
    parser.add_argument("--preview", action="store_true", help="write the folder before the transformer is trained")
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
