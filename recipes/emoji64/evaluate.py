"""Whether the model is worth shipping: `python -m recipes.emoji64.evaluate OUT [--images 720]`.

Every criterion with its number and whether it is met; the exit code is 1 if one is not. Qualities of samples are those
of the model card; losses are measured here, on noise of their own, against the folder's own reference.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from recipes.common.recipe import guarded
from varsearch.evaluators.calibrate import calibrate, protocol_of
from varsearch.evaluators.quality import QualityEvaluator, for_zoo
from varsearch.evaluators.trace import trace
from varsearch.evaluators.workload import zoo_skeleton
from varsearch.measurement import Measurement
from varsearch.models import zoo
from varsearch.policy import Policy
from varsearch.space.presets.registry import presets
from varsearch.space.presets.seeds import seeds
from varsearch.target import default_target, find_device

AGREEMENT, ACCURACY, FID_RATIO, LOSS, SHARE_OF_LOSS, ATTENTION, MEGABYTES = 0.60, 0.75, 6.0, 1.0, 0.1, 0.20, 25.0
CACHES = ("hack-50", "scalekv-20")
SEED = 3
"""Of the noise; the card's figures and the choice of the guidance have others."""


@dataclass(frozen=True)
class Criterion:
    """One line of the table.

    Args:
        name: what is asked.
        found: the number, in words.
        met: whether the number is good enough.
    """

    name: str
    found: str
    met: bool


def attention_share(model: str) -> float:
    """Share of attention's products in the FLOPs of the transformer at the last scale."""
    skeleton = zoo_skeleton(model)
    spec = skeleton.spec
    dense = Policy.dense(spec.n_layers, len(spec.scales))
    ops = trace(skeleton, dense, default_target(find_device("cpu"), spec=spec)).ops
    last = [op for op in ops if op.scale == len(spec.scales) - 1 and op.module.startswith("VAR")]
    return sum(op.flops for op in last if op.in_block and op.attention) / sum(op.flops for op in last)


def megabytes(folder: Path) -> float:
    """Size of all files of the package."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def of_card(model: str) -> list[Criterion]:
    """The criteria that the model card has the numbers of."""
    numbers = zoo.card(model)["numbers"]
    ratio = numbers["fid_samples"] / numbers["fid_real_held_out"]
    agreement, accuracy = numbers["label_agreement_samples"], numbers["classifier_accuracy_test"]
    balanced = numbers["classifier_accuracy_reference"]
    return [
        Criterion(
            f"samples have their class, of {numbers['n_images']} at least {AGREEMENT:.0%}",
            f"{agreement:.1%}",
            agreement >= AGREEMENT,
        ),
        Criterion(
            f"test images have their class, at least {ACCURACY:.0%}",
            f"{accuracy:.1%}; classes equally often {balanced:.1%}",
            accuracy >= ACCURACY,
        ),
        Criterion(
            f"FID of samples, at most {FID_RATIO:g} times that of held-out real images",
            f"{numbers['fid_samples']:.2f} / {numbers['fid_real_held_out']:.2f} = {ratio:.2f}",
            ratio <= FID_RATIO,
        ),
    ]


def of_caches(evaluator: QualityEvaluator) -> list[Criterion]:
    """What smaller caches lose."""
    model = evaluator.model
    calibration = calibrate(model, protocol_of(model))
    published, _ = presets(model.spec, calibration)
    empty = loss(evaluator, seeds(model.spec)["kv-none"])
    found = [
        Criterion(
            f"an empty cache loses at least {LOSS:g} ΔFID, clear of 0",
            interval(empty),
            empty.value >= LOSS and (empty.low or 0.0) > 0,
        )
    ]
    losses = {name: loss(evaluator, published[name]) for name in CACHES if name in published}
    found.append(
        Criterion(
            f"{' or '.join(CACHES)} loses less than {SHARE_OF_LOSS:g} of that",
            ", ".join(f"{name} {interval(measured)}" for name, measured in losses.items()),
            any(measured.value < SHARE_OF_LOSS * empty.value for measured in losses.values()),
        )
    )
    return found


def loss(evaluator: QualityEvaluator, policy: Policy) -> Measurement:
    """ΔFID of a policy."""
    return evaluator.evaluate(policy).metrics["delta_fid"]


def interval(found: Measurement) -> str:
    """A difference with its 95 % interval."""
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def criteria(model: str, images: int) -> list[Criterion]:
    """All criteria, in the order of their cost."""
    share, size = attention_share(model), megabytes(Path(model))
    return [
        Criterion(f"attention at the last scale, at least {ATTENTION:.0%}", f"{share:.1%}", share >= ATTENTION),
        Criterion(f"package, under {MEGABYTES:g} MB", f"{size:.1f} MB", size < MEGABYTES),
        *of_card(model),
        *of_caches(for_zoo(model, images, nll_images=0, seed=SEED)),
    ]


def run(arguments: argparse.Namespace) -> bool:
    """Prints the table; whether all criteria are met."""
    model = str(arguments.out.resolve())
    found = criteria(model, arguments.images)
    width = max(len(c.name) for c in found)
    for c in found:
        print(f"{'met ' if c.met else 'FAIL'}  {c.name:{width}}  {c.found}")
    numbers = zoo.card(model)["numbers"]
    print(
        "nearest training image, median distance of pixels in [0, 1]: "
        f"samples {numbers['nearest_train_samples']:.2f}, held-out images "
        f"{numbers['nearest_train_real_held_out']:.2f}, reconstructed {numbers['nearest_train_reconstructions']:.2f}"
    )
    return all(c.met for c in found)


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and judges the model; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m recipes.emoji64.evaluate", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--images", type=int, default=720, help="images per policy")
    arguments = parser.parse_args(argv)
    met = []
    code = guarded(lambda: met.append(run(arguments)))
    return code or int(not met[0])


if __name__ == "__main__":
    sys.exit(main())
