"""The stages of a recipe in their order, each from where an earlier process left it, and the folder that they make."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from recipes.common.budget import Task, Training
from recipes.common.classifier import normalise
from recipes.common.data import Split
from recipes.common.package import About, Files, finish, networks, save_reference, save_weights, write_manifest
from recipes.common.plan import Plan
from recipes.common.tasks import ClassifierTask, Feed, TokenizerTask, TransformerTask
from recipes.common.transformer import initialise
from recipes.common.work import Module, Work
from varsearch.errors import Interrupted, VarsearchError
from varsearch.models import zoo
from varsearch.models.classifier import Classifier, build_classifier
from varsearch.models.storage import packed, unpacked
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE

STAGES = ("classifier", "tokenizer", "transformer")


class Recipe:
    """The trainings of a plan.

    Args:
        plan: sizes and budgets.
        work: where finished and unfinished trainings are kept.
        feeds: what each stage reads.
    """

    def __init__(self, plan: Plan, work: Work, feeds: Mapping[str, Feed]) -> None:
        self.plan, self.work, self.feeds = plan, work, feeds
        self.device = feeds["transformer"].train.images.device

    def checkpoint(self, name: str) -> Path:
        """Where an unfinished training is saved."""
        return self.work.folder / f"{name}.checkpoint"

    def once(self, name: str, build: Callable[[], Module], task: Callable[[Module], Task[Module]]) -> Module:
        """The network of a stage, trained now or by an earlier process."""
        network = self.work.kept(name, build)
        if network is None:
            torch.manual_seed(0)
            stage, checkpoint = self.plan.stages[name], self.checkpoint(name)
            training = Training(name, task(build().to(self.device)), stage.rate, stage.schedule, checkpoint)
            network = training.run()
            self.work.keep(name, network, training.seconds)
            checkpoint.unlink(missing_ok=True)
        return network.to(self.device).requires_grad_(False)

    def classifier(self) -> Classifier:
        """Labels and Fréchet features."""
        return self.once(
            "classifier",
            lambda: build_classifier(self.plan.classifier),
            lambda network: ClassifierTask(network, self.feeds["classifier"]),
        )

    def tokenizer(self) -> VQVAE:
        """Images to tokens and back, with weights as they are stored: the transformer learns the tokens of these."""
        network = self.once(
            "tokenizer",
            lambda: VQVAE(self.plan.tokenizer),
            lambda network: TokenizerTask(network, self.feeds["tokenizer"]),
        )
        network.load_state_dict(unpacked(packed(network.state_dict(), self.plan.stored["tokenizer"])))
        return network

    def transformer(self, tokenizer: VQVAE) -> VAR:
        """Draws the tokens."""

        def task(network: VAR) -> TransformerTask:
            initialise(network)
            if self.device.type == "cuda":
                for block in network.layers:
                    block.compile()
            return TransformerTask(network, tokenizer, self.feeds["transformer"], self.plan.noise)

        return self.once("transformer", lambda: VAR(self.plan.transformer), task)

    def unfinished(self) -> VAR:
        """The averaged transformer of the last save of its training."""
        network = VAR(self.plan.transformer)
        state = torch.load(self.checkpoint("transformer"), map_location="cpu", weights_only=True)
        network.load_state_dict(state["average"])
        return network.to(self.device).requires_grad_(False).eval()

    def train(self, until: str) -> None:
        """Trains the stages up to `until` that are not trained yet."""
        self.classifier()
        if until != "classifier":
            tokenizer = self.tokenizer()
            if until != "tokenizer":
                self.transformer(tokenizer)

    def package(self, folder: Path, about: About, splits: dict[str, Split], preview: bool = False) -> None:
        """Writes the model's folder with what is trained, trained first where it is not.

        Args:
            folder: of the model.
            about: what its manifest says.
            splits: `train`, `held_out`, `test` and, where the reference is of other images than `test`, `reference`.
            preview: takes the transformer as its unfinished training saved it last.
        """
        stored, classifier, tokenizer = self.plan.stored, self.classifier(), self.tokenizer()
        transformer = self.unfinished() if preview else self.transformer(tokenizer)
        normalise(classifier, splits["held_out"])
        files: Files = {
            "transformer": save_weights(folder, "transformer", transformer, stored["transformer"]),
            "tokenizer": save_weights(folder, "tokenizer", tokenizer, stored["tokenizer"]),
            "classifier": save_weights(folder, "classifier", classifier, stored["classifier"]),
        }
        parts = transformer, tokenizer
        write_manifest(folder, about, parts, files, guidance=0.0)
        # Statistics and tokens are those of the rounded weights, which is what every user loads.
        name, device = str(folder.resolve()), str(self.device)
        classifier, tokenizer = zoo.load_classifier(name, device), networks(zoo.load(name, device))[1]
        reference = splits.get("reference", splits["test"])
        files |= save_reference(folder, classifier, tokenizer, reference, self.plan.evaluation.n_held_out)
        write_manifest(folder, about, parts, files, guidance=0.0)
        finish(folder, about, self.plan.evaluation, splits, lambda: self.work.minutes)


def guarded(run: Callable[[], None]) -> int:
    """Runs a recipe; the exit code."""
    try:
        run()
    except VarsearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on from the last save", file=sys.stderr)
        return Interrupted.exit_code
    return 0
