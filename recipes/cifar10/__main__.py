"""Trains the model `cifar10` on one CUDA device and writes its folder: `python -m recipes.cifar10 DATA OUT`.

`--until tokenizer` ends after that stage: two pieces, each of at most 12 minutes, then make the model. What is done is
kept in the work folder, and what is under way is saved there every minute: the same command again goes on from there.
`--smoke` runs everything with tiny sizes in seconds, on a CPU too.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

from recipes.cifar10.data import hidden, load, mirrored
from recipes.cifar10.plan import FULL, PIECE_MINUTES, SHARES, SMOKE
from recipes.common.archive import digest
from recipes.common.data import Passes, Split
from recipes.common.package import About
from recipes.common.plan import Plan
from recipes.common.recipe import STAGES, Recipe, guarded
from recipes.common.tasks import Feed
from recipes.common.work import Work
from varsearch.errors import TargetError, UsageError


def about(plan: Plan) -> About:
    """What the manifest says."""
    c = plan.transformer
    layers = f"{c.depth} layers of {c.heads} heads"
    return About(
        name="cifar10",
        description=f"Class-conditional VAR of 32x32 colour images: 10 scales up to 16x16, {layers}",
        licence="MIT (weights); trained on CIFAR-10, whose author states no licence",
        data="CIFAR-10 as JPEG files, A. Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html",
        classifier=plan.classifier,
    )


def feeds(plan: Plan, splits: dict[str, Split]) -> dict[str, Feed]:
    """What each stage reads."""
    train, judged = splits["train"], splits["held_out"].first(plan.judged)
    return {
        name: Feed(
            train,
            judged,
            Passes(len(train), stage.batch, train.labels.device),
            vary=hidden if name == "classifier" else mirrored,
            half=True,
        )
        for name, stage in plan.stages.items()
    }


def run(arguments: argparse.Namespace) -> None:
    """The whole recipe, or its first piece."""
    if not 0 < arguments.minutes < math.inf:
        raise UsageError(f"--minutes must be more than 0, got {arguments.minutes:g}")
    if not arguments.smoke and not torch.cuda.is_available():
        raise TargetError("cifar10 is trained on a CUDA device and there is none here: --smoke tries tiny sizes")
    # Half precision is asked for where it does no harm; elsewhere fp32 is meant.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    plan = SMOKE if arguments.smoke else FULL.within(arguments.minutes, SHARES)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    belongs = f"{plan.name} sizes, data {digest(arguments.data)[:16]}"
    work = Work(arguments.work or Path("runs") / f"cifar10-{plan.name}", belongs)
    splits = {name: split.to(device) for name, split in load(arguments.data, plan.images, int(plan.held_out)).items()}
    recipe = Recipe(plan, work, feeds(plan, splits))
    recipe.train(arguments.until)
    if arguments.until == STAGES[-1]:
        recipe.package(arguments.out, about(plan), splits)
        print((arguments.out / "card.json").read_text(), end="")


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and runs the recipe; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m recipes.cifar10", description=__doc__)
    parser.add_argument("data", type=Path, help="cifar10_jpeg.npz")
    parser.add_argument("out", type=Path, help="folder of the finished model")
    parser.add_argument("--minutes", type=float, default=2.0 * PIECE_MINUTES, help="time for everything together")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage of this piece")
    parser.add_argument("--work", type=Path, help="folder of intermediate results, default runs/cifar10-full")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and few steps")
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
