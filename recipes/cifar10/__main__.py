"""Trains the model `cifar10` on one CUDA device and writes its folder: `python -m recipes.cifar10 DATA OUT`.

Everything from reading the data to the model card is planned to take `--minutes`. What is done is kept in the work
folder, and what is under way is saved there every minute: the same command again goes on from there. `--smoke` runs
everything with tiny sizes in seconds, on a CPU too.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from recipes.cifar10.data import digest, load
from recipes.cifar10.plan import FULL, SMOKE, STORED, Plan
from recipes.cifar10.tasks import ClassifierTask, TokenizerTask, TransformerTask
from recipes.common.budget import Task, Training
from recipes.common.classifier import normalise
from recipes.common.data import Split
from recipes.common.package import About, Files, finish, networks, save_reference, save_weights, write_manifest
from recipes.common.transformer import initialise
from recipes.common.work import Module, Work
from varsearch.errors import Interrupted, TargetError, UsageError, VarsearchError
from varsearch.models import zoo
from varsearch.models.classifier import Classifier, build_classifier
from varsearch.models.storage import packed, unpacked
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE


class Recipe:
    """The stages of a plan in their order, each from where an earlier process left it."""

    def __init__(self, plan: Plan, work: Work, splits: dict[str, Split]) -> None:
        self.plan, self.work, self.train = plan, work, splits["train"]
        self.judged = splits["held_out"].first(plan.judged)
        self.device = self.train.images.device

    def once(self, name: str, build: Callable[[], Module], task: Callable[[Module, int], Task[Module]]) -> Module:
        """The network of a stage, trained now or by an earlier process."""
        network = self.work.kept(name, build)
        if network is None:
            torch.manual_seed(0)
            stage, checkpoint = self.plan.stages[name], self.work.folder / f"{name}.checkpoint"
            started = task(build().to(self.device), stage.batch)
            training = Training(name, started, stage.rate, stage.schedule, checkpoint)
            network = training.run()
            self.work.keep(name, network, training.seconds)
            checkpoint.unlink(missing_ok=True)
        return network.to(self.device).requires_grad_(False)

    def classifier(self) -> Classifier:
        """Labels and Fréchet features."""
        return self.once(
            "classifier",
            lambda: build_classifier(self.plan.classifier),
            lambda network, batch: ClassifierTask(network, self.train, self.judged, batch),
        )

    def tokenizer(self) -> VQVAE:
        """Images to tokens and back, with weights as they are stored: the transformer learns the tokens of these."""
        network = self.once(
            "tokenizer",
            lambda: VQVAE(self.plan.tokenizer),
            lambda network, batch: TokenizerTask(network, self.train, self.judged, batch),
        )
        network.load_state_dict(unpacked(packed(network.state_dict(), STORED["tokenizer"])))
        return network

    def transformer(self, tokenizer: VQVAE) -> VAR:
        """Draws the tokens."""

        def task(network: VAR, batch: int) -> TransformerTask:
            initialise(network)
            if self.device.type == "cuda":
                for block in network.layers:
                    block.compile()
            return TransformerTask(network, tokenizer, self.train, self.judged, batch)

        return self.once("transformer", lambda: VAR(self.plan.transformer), task)


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


def write(folder: Path, plan: Plan, recipe: Recipe, splits: dict[str, Split]) -> None:
    """Trains what is not trained yet and writes the model's folder."""
    classifier, tokenizer = recipe.classifier(), recipe.tokenizer()
    transformer = recipe.transformer(tokenizer)
    normalise(classifier, splits["held_out"])
    files: Files = {
        "transformer": save_weights(folder, "transformer", transformer, STORED["transformer"]),
        "tokenizer": save_weights(folder, "tokenizer", tokenizer, STORED["tokenizer"]),
        "classifier": save_weights(folder, "classifier", classifier, STORED["classifier"]),
    }
    parts = transformer, tokenizer
    write_manifest(folder, about(plan), parts, files, guidance=0.0)
    # Statistics and tokens are those of the rounded weights, which is what every user loads.
    name, device = str(folder.resolve()), str(recipe.device)
    classifier, tokenizer = zoo.load_classifier(name, device), networks(zoo.load(name, device))[1]
    files |= save_reference(folder, classifier, tokenizer, splits["test"], plan.evaluation.n_held_out)
    write_manifest(folder, about(plan), parts, files, guidance=0.0)
    finish(folder, about(plan), plan.evaluation, splits, lambda: recipe.work.minutes)


def run(arguments: argparse.Namespace) -> None:
    """The whole recipe."""
    if not arguments.smoke and not torch.cuda.is_available():
        raise TargetError("cifar10 is trained on a CUDA device and there is none here: --smoke tries tiny sizes")
    # Half precision is asked for where it does no harm; elsewhere fp32 is meant.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    plan = SMOKE if arguments.smoke else FULL.within(arguments.minutes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    belongs = f"{plan.name} sizes, data {digest(arguments.data)[:16]}"
    work = Work(arguments.work or Path("runs") / f"cifar10-{plan.name}", belongs)
    splits = {name: split.to(device) for name, split in load(arguments.data, plan.images, plan.held_out).items()}
    write(arguments.out, plan, Recipe(plan, work, splits), splits)
    print((arguments.out / "card.json").read_text(), end="")


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and runs the recipe; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m recipes.cifar10", description=__doc__)
    parser.add_argument("data", type=Path, help="cifar10_jpeg.npz")
    parser.add_argument("out", type=Path, help="folder of the finished model")
    parser.add_argument("--minutes", type=float, default=25.0, help="time for everything together")
    parser.add_argument("--work", type=Path, help="folder of intermediate results, default runs/cifar10-full")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and few steps")
    arguments = parser.parse_args(argv)
    try:
        if not 0 < arguments.minutes < math.inf:
            raise UsageError(f"--minutes must be more than 0, got {arguments.minutes:g}")
        run(arguments)
    except VarsearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on from the last save", file=sys.stderr)
        return Interrupted.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
