"""Trains a model of MNIST and writes its folder: `python -m recipes.mnist --data FOLDER --out FOLDER`.

`--model mnist-small` trains only a smaller transformer, on the tokens of the shipped `mnist`, whose other files it
shares. Stages whose result is already in the work folder are not repeated, so an interrupted training continues.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from recipes.common.data import Split
from recipes.common.package import finish, networks, save_weights, write_manifest
from recipes.common.work import Module, Work
from recipes.mnist import classifier, package, tokenizer, transformer
from recipes.mnist.data import load
from varsearch.models import zoo
from varsearch.models.classifier import Classifier, build_classifier
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE

EPOCHS = {"classifier": 8.0, "tokenizer": 2.5}


class Stages:
    """Runs the stages in order and keeps what each one made and how long it took."""

    def __init__(self, folder: Path, name: str, splits: dict[str, Split], scale: float) -> None:
        self.work, self.splits, self.scale = Work(folder, name), splits, scale

    def once(self, name: str, make: Callable[[], Module], empty: Callable[[], Module]) -> Module:
        """The result of a stage: trained now, or filled from the file that an earlier call left."""
        found = self.work.kept(name, empty)
        if found is not None:
            return found
        start = time.perf_counter()
        model = make()
        self.work.keep(name, model, time.perf_counter() - start)
        print(f"{name}: {self.work.minutes[name]:.1f} minutes", flush=True)
        return model

    def shared(self) -> tuple[Classifier, VQVAE]:
        """Classifier and tokenizer, trained."""
        train, held_out = self.splits["train"], self.splits["held_out"]

        def make_classifier() -> Classifier:
            return classifier.train(train, held_out, EPOCHS["classifier"] * self.scale)

        def make_tokenizer() -> VQVAE:
            return tokenizer.train(train, EPOCHS["tokenizer"] * self.scale)

        labels = self.once("classifier", make_classifier, lambda: build_classifier(classifier.CONFIG))
        return labels, self.once("tokenizer", make_tokenizer, lambda: VQVAE(tokenizer.CONFIG))

    def own(self, size: transformer.Size, codes: VQVAE) -> VAR:
        """A transformer of this size, trained."""
        train, held_out = self.splits["train"], self.splits["held_out"]

        def make_transformer() -> VAR:
            torch.manual_seed(0)
            model, epochs = transformer.build(codes, size), max(1, round(size.epochs * self.scale))
            return transformer.train(model, codes, train, held_out, epochs, self.work.folder / "transformer.checkpoint")

        return self.once("transformer", make_transformer, lambda: transformer.build(codes, size))


def main() -> None:
    """Parses the command line and runs the recipe."""
    parser = argparse.ArgumentParser(prog="python -m recipes.mnist", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--model", choices=transformer.SIZES, default=package.BASE, help="which model")
    parser.add_argument("--work", type=Path, help="folder of intermediate results, default runs/MODEL")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the epochs to train, for a quick trial")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    splits = load(arguments.data)
    name = arguments.model
    stages = Stages(arguments.work or Path("runs") / name, name, splits, arguments.scale)
    base = name == package.BASE
    labels, codes = (
        stages.shared() if base else (zoo.load_classifier(package.BASE), networks(zoo.load(package.BASE))[1])
    )
    model = stages.own(transformer.SIZES[name], codes)
    folder, about = arguments.out, package.about(name, model.config)
    files = package.write_shared(folder, labels, codes, splits["test"]) if base else package.shipped()
    files["transformer"] = save_weights(folder, "transformer", model, "float32")
    write_manifest(folder, about, (model, codes), files, guidance=0.0)
    finish(folder, about, package.EVALUATION, splits, lambda: stages.work.minutes)
    print((arguments.out / "card.json").read_text())


if __name__ == "__main__":
    main()
