"""What the models of MNIST say of themselves, how they are measured, and which files they share."""

from __future__ import annotations

from pathlib import Path

from recipes.common.data import Split
from recipes.common.package import About, Evaluation, Files, save_reference, save_weights
from recipes.mnist import classifier
from varsearch.models import zoo
from varsearch.models.classifier import Classifier
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import VQVAE

BASE = "mnist"
"""The model whose tokenizer, classifier, reference and held-out tokens the others share."""
EVALUATION = Evaluation(
    guidance=(0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
    agreement=0.99,
    n_images=2000,
    n_tuning=2000,
    n_held_out=1000,
    batch=100,
    paired=True,
)
"""The card must show 98 % agreement on another seed."""


def about(name: str, c: VARConfig) -> About:
    """What the manifest of `name` says."""
    layers = f"{c.depth} layers of {c.heads} heads"
    return About(
        name=name,
        description=f"Class-conditional VAR of 32x32 grey digits: 6 scales up to 8x8, {layers}",
        licence="MIT (weights); trained on MNIST, CC BY-SA 3.0",
        data="MNIST, Y. LeCun, C. Cortes, C. Burges, http://yann.lecun.com/exdb/mnist/",
        classifier=classifier.CONFIG,
    )


def write_shared(folder: Path, labels: Classifier, codes: VQVAE, test: Split) -> Files:
    """Writes what does not depend on the transformer; the files for the manifest."""
    return {
        "tokenizer": save_weights(folder, "tokenizer", codes, "float32"),
        "classifier": save_weights(folder, "classifier", labels, "float32"),
        **save_reference(folder, labels, codes, test, EVALUATION.n_held_out),
    }


def shipped() -> Files:
    """The files that a sibling of `BASE` shares with it, as its manifest names them."""
    files = zoo.manifest(BASE).files
    return {part: (f"../{BASE}/{name}", digest) for part, (name, digest) in files.items() if part != "transformer"}
