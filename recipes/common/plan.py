"""The sizes of everything in a recipe, and how each network is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

from recipes.common.budget import Budget, Schedule
from recipes.common.package import Evaluation
from varsearch.models.classifier import ClassifierConfig
from varsearch.models.storage import Storage
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig


@dataclass(frozen=True)
class Stage:
    """How one network is trained.

    Args:
        batch: images per step.
        rate: largest learning rate.
        schedule: how the training goes.
    """

    batch: int
    rate: float
    schedule: Schedule


@dataclass(frozen=True)
class Plan:
    """What the recipe trains and measures.

    Args:
        name: of the plan.
        images: at most so many training and so many test images are read; None reads all.
        held_out: training images, or drawings, that nothing trains on.
        judged: held-out images that the log's figures are of.
        stages: by network.
        stored: how the weights of each network are stored.
        noise: largest share of tokens that the transformer's inputs show wrong; see `transformer.lesson`.
    """

    name: str
    images: int | None
    held_out: float
    judged: int
    classifier: ClassifierConfig
    tokenizer: TokenizerConfig
    transformer: VARConfig
    stages: dict[str, Stage]
    stored: dict[str, Storage]
    evaluation: Evaluation
    noise: float = 0.0

    def within(self, minutes: float, shares: dict[str, float]) -> Plan:
        """The same plan with every stage ended after its share of the minutes."""
        return replace(
            self,
            stages={
                name: replace(
                    stage,
                    schedule=replace(
                        stage.schedule, budget=replace(stage.schedule.budget, seconds=60 * minutes * shares[name])
                    ),
                )
                for name, stage in self.stages.items()
            },
        )


def timed(batch: int, rate: float, warm_up: int, clip: float, decay: float) -> Stage:
    """A stage that ends when `Plan.within` says."""
    return Stage(batch, rate, Schedule(Budget(), warm_up, clip, decay, save_seconds=60))


def tiny(rate: float, steps: int) -> Stage:
    """A stage for a test: few steps, saved after each."""
    return Stage(8, rate, Schedule(Budget(steps=steps), warm_up=2, clip=1.0, decay=0.9, save_seconds=0))
