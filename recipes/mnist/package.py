"""Chooses the guidance, measures what the model card claims, and writes the model's folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from recipes.mnist import transformer
from recipes.mnist.data import Split
from recipes.mnist.tokenizer import psnr
from varsearch.accel import Accelerated, labels_for
from varsearch.evaluators.extractors import Extractor, classifier_extractor
from varsearch.evaluators.fid import frechet_distance
from varsearch.evaluators.reference import Reference, build_reference, load_reference
from varsearch.files import write_atomically
from varsearch.models import zoo
from varsearch.models.classifier import Classifier
from varsearch.models.image_model import ImageModel, SamplingDefaults
from varsearch.models.manifest import Manifest, Part
from varsearch.models.pictures import grid_png
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE

GUIDANCE = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
BASE = "mnist"
"""The model whose tokenizer, classifier, reference and held-out tokens the others share."""
N = 2000
TUNING_SEED, CARD_SEED = 1, 2
AGREEMENT = 0.99
"""The card must show 98 % on another seed."""
Files = dict[Part, tuple[str, str]]
"""File name and sha256 of each part."""
UNWRITTEN: Files = {"transformer": ("none.safetensors", ""), "tokenizer": ("none.safetensors", "")}
"""Stands for the files while there are none."""


@dataclass(frozen=True)
class Parts:
    """Everything that the recipe trained."""

    classifier: Classifier
    classifier_accuracy: float
    tokenizer: VQVAE
    transformer: VAR
    transformer_nll: float


def generate(parts: Parts, guidance: float, seed: int, n: int = N) -> Tensor:
    """The first `n` images of `seed`, classes in turn, (n, 1, 32, 32) in [0, 1]."""
    spec = manifest(BASE, parts, guidance, UNWRITTEN).spec()
    model = ImageModel(spec, parts.transformer, parts.tokenizer, SamplingDefaults(guidance))
    dense = Accelerated(model, model.dense_plan())
    labels = labels_for(n, 10)
    return torch.cat([dense.images(labels[i : i + 100], seed, i) for i in range(0, n, 100)])


def agreement(parts: Parts, images: Tensor) -> float:
    """Share of images that the classifier gives the label they were made for."""
    with torch.no_grad():
        found = torch.cat([parts.classifier(x * 2 - 1).argmax(1) for x in images.split(500)])
    return (found == labels_for(len(images), 10)).float().mean().item()


def tune(parts: Parts, extractor: Extractor, reference: Reference) -> tuple[float, list[dict[str, float]]]:
    """The guidance of least Fréchet distance among those with `AGREEMENT` of labels, and the whole scan."""
    scan = []
    for guidance in GUIDANCE:
        images = generate(parts, guidance, TUNING_SEED)
        fid = frechet_distance(extractor.features(images), reference)
        scan.append({"guidance": guidance, "fid": fid, "label_agreement": agreement(parts, images)})
        print(f"guidance {guidance}: fid {fid:.3f}, label agreement {scan[-1]['label_agreement']:.4f}", flush=True)
    good = [row for row in scan if row["label_agreement"] >= AGREEMENT] or scan
    return min(good, key=lambda row: row["fid"])["guidance"], scan


def nearest(images: Tensor, train: Tensor) -> float:
    """Median over images of the L2 pixel distance (values in [0, 1]) to the nearest training image."""
    flat = train.flatten(1)
    return torch.cat([torch.cdist(x.flatten(1), flat).amin(1) for x in images.split(100)]).median().item()


def card_numbers(
    parts: Parts, splits: dict[str, Split], extractor: Extractor, reference: Reference, guidance: float
) -> dict[str, float]:
    """Every figure of the model card."""
    samples = generate(parts, guidance, CARD_SEED)
    real = (splits["held_out"].images[:N] + 1) / 2
    recon = torch.cat([(parts.tokenizer(x) + 1) / 2 for x in splits["held_out"].images[:N].split(250)])
    train = (splits["train"].images + 1) / 2
    tokens, inputs = transformer.encode(parts.tokenizer, splits["test"])

    def fid(images: Tensor) -> float:
        return frechet_distance(extractor.features(images), reference)

    return {
        "parameters_transformer": sum(p.numel() for p in parts.transformer.parameters()),
        "parameters_tokenizer": sum(p.numel() for p in parts.tokenizer.parameters()),
        "nll_held_out": parts.transformer_nll,
        "nll_test": transformer.held_out_nll(parts.transformer, tokens, inputs, splits["test"].labels),
        "psnr_db_held_out": psnr(parts.tokenizer, splits["held_out"].images, 6),
        "classifier_accuracy_test": parts.classifier_accuracy,
        "guidance": guidance,
        "n_images": N,
        "label_agreement_samples": agreement(parts, samples),
        "fid_samples": fid(samples),
        "fid_reconstructions_held_out": fid(recon),
        "fid_real_held_out": fid(real),
        "nearest_train_samples": nearest(samples, train),
        "nearest_train_real_held_out": nearest(real, train),
        "nearest_train_reconstructions": nearest(recon, train),
    }


def manifest(name: str, parts: Parts, guidance: float, files: Files) -> Manifest:
    """The manifest of the trained model."""
    c = parts.transformer.config
    layers = f"{c.depth} layers of {c.heads} heads"
    return Manifest(
        name=name,
        description=f"Class-conditional VAR of 32x32 grey digits: 6 scales up to 8x8, {layers}",
        licence="MIT (weights); trained on MNIST, CC BY-SA 3.0",
        data="MNIST, Y. LeCun, C. Cortes, C. Burges, http://yann.lecun.com/exdb/mnist/",
        image_size=(32, 32),
        transformer=c,
        tokenizer=parts.tokenizer.config,
        sampling=SamplingDefaults(guidance),
        classifier={"channels": 1, "width": 32, "num_features": 64, "classes": 10},
        files=files,
    )


def write_shared(folder: Path, parts: Parts, splits: dict[str, Split]) -> Files:
    """Writes what does not depend on the transformer; the files for the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    test = (splits["test"].images + 1) / 2
    reference = build_reference(test.split(500), classifier_extractor(parts.classifier), keep_features=2000)
    tokens, _ = transformer.encode(parts.tokenizer, Split(splits["test"].images[:1000], splits["test"].labels[:1000]))
    save_file(parts.tokenizer.state_dict(), folder / "tokenizer.safetensors")
    save_file(parts.classifier.state_dict(), folder / "classifier.safetensors")
    save_file({"tokens": tokens, "labels": splits["test"].labels[:1000].short()}, folder / "held_out.safetensors")
    reference.save(folder / "reference.safetensors")
    names: tuple[Part, ...] = ("tokenizer", "classifier", "reference", "held_out")
    return {name: (f"{name}.safetensors", sha256(folder / f"{name}.safetensors")) for name in names}


def tokenizer() -> VQVAE:
    """The shipped tokenizer."""
    found = zoo.load(BASE).tokenizer
    assert isinstance(found, VQVAE)
    return found


def shipped() -> Files:
    """The files that a sibling of `BASE` shares with it, as its manifest names them."""
    files = zoo.manifest(BASE).files
    return {part: (f"../{BASE}/{name}", digest) for part, (name, digest) in files.items() if part != "transformer"}


def sha256(path: Path) -> str:
    """Digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(
    folder: Path, name: str, parts: Parts, files: Files, splits: dict[str, Split], minutes: dict[str, float]
) -> None:
    """Tunes, measures and writes the model `name`, whose shared `files` are written."""
    folder.mkdir(parents=True, exist_ok=True)
    extractor, reference = classifier_extractor(parts.classifier), load_reference(folder / files["reference"][0])
    guidance, scan = tune(parts, extractor, reference)
    save_file(parts.transformer.state_dict(), folder / "transformer.safetensors")
    own: Files = {"transformer": ("transformer.safetensors", sha256(folder / "transformer.safetensors"))}
    found = manifest(name, parts, guidance, own | files)
    write_atomically(folder / "manifest.json", json.dumps(json.loads(found.model_dump_json()), indent=1) + "\n")
    numbers = card_numbers(parts, splits, extractor, reference, guidance)
    write_atomically(
        folder / "card.json", json.dumps({"numbers": numbers, "scan": scan, "minutes": minutes}, indent=1) + "\n"
    )
    write_atomically(folder / "samples.png", grid_png(generate(parts, guidance, CARD_SEED, 100), columns=10, zoom=2))
