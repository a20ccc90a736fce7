"""Trains a model of MNIST and writes its folder: `python -m recipes.mnist --data FOLDER --out FOLDER`.

`--model mnist-small` trains only a smaller transformer, on the tokens of the shipped `mnist`, whose other files it
shares. Stages whose result is already in the work folder are not repeated, so an interrupted training continues.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from recipes.mnist import classifier, package, tokenizer, transformer
from recipes.mnist.data import Split, load
from varsearch.models import zoo
from varsearch.models.classifier import Classifier
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE

EPOCHS = {"classifier": 8.0, "tokenizer": 2.5}


class Stages:
    """Runs the stages in order and keeps what each one made and how long it took."""

    def __init__(self, work: Path, splits: dict[str, Split], scale: float) -> None:
        self.work, self.splits, self.scale = work, splits, scale
        self.clock = work / "minutes.json"
        work.mkdir(parents=True, exist_ok=True)

    @property
    def minutes(self) -> dict[str, float]:
        """Wall-clock minutes of every finished stage."""
        return json.loads(self.clock.read_text()) if self.clock.exists() else {}

    def once(
        self, name: str, make: Callable[[], torch.nn.Module], empty: Callable[[], torch.nn.Module]
    ) -> torch.nn.Module:
        """The result of a stage: trained now, or filled from the file that an earlier call left."""
        path = self.work / f"{name}.safetensors"
        if path.exists():
            model = empty()
            model.load_state_dict(load_file(path))
            return model.eval()
        start = time.perf_counter()
        model = make()
        spent = self.minutes | {name: self.minutes.get(name, 0.0) + (time.perf_counter() - start) / 60}
        self.clock.write_text(json.dumps(spent))
        save_file(model.state_dict(), path)
        print(f"{name}: {spent[name]:.1f} minutes", flush=True)
        return model

    def shared(self) -> tuple[Classifier, VQVAE]:
        """Classifier and tokenizer, trained."""
        train, held_out = self.splits["train"], self.splits["held_out"]

        def make_classifier() -> torch.nn.Module:
            return classifier.train(train, held_out, EPOCHS["classifier"] * self.scale)

        def make_tokenizer() -> torch.nn.Module:
            return tokenizer.train(train, EPOCHS["tokenizer"] * self.scale)

        labels = self.once("classifier", make_classifier, Classifier)
        codes = self.once("tokenizer", make_tokenizer, lambda: VQVAE(tokenizer.CONFIG))
        assert isinstance(labels, Classifier) and isinstance(codes, VQVAE)
        return labels, codes

    def parts(self, size: transformer.Size, labels: Classifier, codes: VQVAE) -> package.Parts:
        """All parts of a model with a transformer of this size."""
        train, held_out = self.splits["train"], self.splits["held_out"]

        def make_transformer() -> torch.nn.Module:
            torch.manual_seed(0)
            model, epochs = transformer.build(codes, size), max(1, round(size.epochs * self.scale))
            return transformer.train(model, codes, train, held_out, epochs, self.work / "transformer.checkpoint")

        model = self.once("transformer", make_transformer, lambda: transformer.build(codes, size))
        assert isinstance(model, VAR)
        tokens, inputs = transformer.encode(codes, held_out)
        return package.Parts(
            classifier=labels,
            classifier_accuracy=classifier.accuracy(labels, self.splits["test"]),
            tokenizer=codes,
            transformer=model,
            transformer_nll=transformer.held_out_nll(model, tokens, inputs, held_out.labels),
        )


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
    stages = Stages(arguments.work or Path("runs") / name, splits, arguments.scale)
    base = name == package.BASE
    shared = stages.shared() if base else (zoo.load_classifier(package.BASE), package.tokenizer())
    parts = stages.parts(transformer.SIZES[name], *shared)
    files = package.write_shared(arguments.out, parts, splits) if base else package.shipped()
    package.write(arguments.out, name, parts, files, splits, stages.minutes)
    print((arguments.out / "card.json").read_text())


if __name__ == "__main__":
    main()
