"""Writes a trained model as a folder, loads it back, chooses the guidance and measures what the model card claims.

Everything is measured on what was loaded from the folder, so a card speaks of the stored weights.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from recipes.common import transformer
from recipes.common.classifier import accuracy
from recipes.common.data import Split
from recipes.common.tokenizer import code_use, psnr
from varsearch.accel import labels_for
from varsearch.evaluators.extractors import Extractor, classifier_extractor
from varsearch.evaluators.fid import frechet_distance
from varsearch.evaluators.reference import Reference, build_reference, zoo_reference
from varsearch.files import write_atomically
from varsearch.models import zoo
from varsearch.models.classifier import Classifier, ClassifierConfig
from varsearch.models.image_model import ImageModel, SamplingDefaults
from varsearch.models.manifest import Manifest, Part
from varsearch.models.pictures import grid_png
from varsearch.models.sampling import PairedSampler, PublishedSampler
from varsearch.models.storage import Storage, packed, write_pieces
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE

TUNING_SEED, CARD_SEED = 1, 2
Files = dict[Part, tuple[str, str]]
"""File name and sha256 of each part."""


@dataclass(frozen=True)
class About:
    """What a manifest says of a model beside its sizes."""

    name: str
    description: str
    licence: str
    data: str
    classifier: ClassifierConfig


@dataclass(frozen=True)
class Evaluation:
    """How a model is measured.

    Args:
        guidance: strengths to choose from.
        agreement: share of labels that the classifier must agree with for a strength to be chosen.
        n_images: images behind every figure of the card.
        n_tuning: images per strength of guidance.
        n_held_out: test images whose tokens ship for the likelihood.
        batch: images generated at a time.
        paired: noise per image, as policies are compared on; without, noise per batch, which a GPU draws in no time.
    """

    guidance: tuple[float, ...]
    agreement: float
    n_images: int
    n_tuning: int
    n_held_out: int
    batch: int
    paired: bool


@dataclass(frozen=True)
class Judge:
    """The folder's own classifier and reference, and how many images they judge."""

    how: Evaluation
    classifier: Classifier
    extractor: Extractor
    reference: Reference

    def generate(self, model: ImageModel, guidance: float, seed: int, n: int) -> Tensor:
        """The first `n` images of `seed`, classes in turn, (n, C, H, W) in [0, 1]."""
        device = model.transformer.pos_start.device
        labels = labels_for(n, model.spec.classes, device)
        found = []
        for first in range(0, n, self.how.batch):
            part = labels[first : first + self.how.batch]
            if self.how.paired:
                sampler: PairedSampler | PublishedSampler = PairedSampler(seed, range(first, first + len(part)))
            else:
                generator = torch.Generator(device).manual_seed(seed * 2**32 + first)
                sampler = PublishedSampler(generator, top_k=0, top_p=0.0)
            found.append(model.generate(part, sampler, guidance=guidance))
        return torch.cat(found)

    def agreement(self, images: Tensor) -> float:
        """Share of images, classes in turn, that the classifier gives the label they were made for."""
        with torch.no_grad():
            found = torch.cat([self.classifier(x * 2 - 1).argmax(1) for x in images.split(500)])
        labels = labels_for(len(images), self.classifier.head.out_features, images.device)
        return (found == labels).float().mean().item()

    def fid(self, images: Tensor) -> float:
        """Fréchet distance to the reference."""
        features = torch.cat([self.extractor.features(x) for x in images.split(500)])
        return frechet_distance(features.cpu(), self.reference)

    def tune(self, model: ImageModel) -> tuple[float, list[dict[str, float]]]:
        """The guidance of least Fréchet distance among those of enough agreement, and the whole scan."""
        scan = []
        for guidance in self.how.guidance:
            images = self.generate(model, guidance, TUNING_SEED, self.how.n_tuning)
            row = {"guidance": guidance, "fid": self.fid(images), "label_agreement": self.agreement(images)}
            print(
                f"guidance {guidance}: fid {row['fid']:.3f}, label agreement {row['label_agreement']:.4f}",
                file=sys.stderr,
            )
            scan.append(row)
        good = [row for row in scan if row["label_agreement"] >= self.how.agreement] or scan
        return min(good, key=lambda row: row["fid"])["guidance"], scan


def nearest(images: Tensor, train: Tensor) -> float:
    """Median over images of the L2 pixel distance (values in [0, 1]) to the nearest training image."""
    flat = train.flatten(1)
    return torch.cat([torch.cdist(x.flatten(1), flat).amin(1) for x in images.split(100)]).median().item()


def networks(model: ImageModel) -> tuple[VAR, VQVAE]:
    """Transformer and tokenizer of a model that a recipe made."""
    assert isinstance(model.transformer, VAR) and isinstance(model.tokenizer, VQVAE)
    return model.transformer, model.tokenizer


def card_numbers(model: ImageModel, judge: Judge, splits: dict[str, Split]) -> dict[str, float]:
    """Every figure of the model card."""
    n, guidance, (var, tokenizer) = judge.how.n_images, model.sampling.guidance, networks(model)
    samples = judge.generate(model, guidance, CARD_SEED, n)
    held_out = splits["held_out"].images
    real = (held_out[:n] + 1) / 2
    with torch.no_grad():
        recon = torch.cat([(tokenizer(x) + 1) / 2 for x in held_out[:n].split(250)])
    train = (splits["train"].images + 1) / 2
    nll = {}
    for name in ("held_out", "test"):
        tokens, inputs = transformer.encode(tokenizer, splits[name])
        nll[name] = transformer.held_out_nll(var, tokens, inputs, splits[name].labels)
    return {
        "parameters_transformer": sum(p.numel() for p in model.transformer.parameters()),
        "parameters_tokenizer": sum(p.numel() for p in tokenizer.parameters()),
        "nll_held_out": nll["held_out"],
        "nll_test": nll["test"],
        "psnr_db_held_out": psnr(tokenizer, held_out, len(model.spec.scales)),
        **code_use(tokenizer, held_out),
        "classifier_accuracy_test": accuracy(judge.classifier, splits["test"]),
        "classifier_accuracy_reference": accuracy(judge.classifier, splits.get("reference", splits["test"])),
        "guidance": guidance,
        "n_images": n,
        "label_agreement_samples": judge.agreement(samples),
        "fid_samples": judge.fid(samples),
        "fid_reconstructions_held_out": judge.fid(recon),
        "fid_real_held_out": judge.fid(real),
        "nearest_train_samples": nearest(samples, train),
        "nearest_train_real_held_out": nearest(real, train),
        "nearest_train_reconstructions": nearest(recon, train),
    }


def save_part(folder: Path, part: Part, content: bytes) -> tuple[str, str]:
    """Writes the file of a part; its entry in the manifest."""
    write_pieces(folder / f"{part}.safetensors", content)
    return f"{part}.safetensors", hashlib.sha256(content).hexdigest()


def save_weights(folder: Path, part: Part, module: nn.Module, storage: Storage) -> tuple[str, str]:
    """Writes the weights of a part; its entry in the manifest."""
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    return save_part(folder, part, save(packed(state, storage)))


def write_manifest(folder: Path, about: About, model: tuple[VAR, VQVAE], files: Files, guidance: float) -> None:
    """Writes the manifest; the next load reads it."""
    found = Manifest(
        name=about.name,
        description=about.description,
        licence=about.licence,
        data=about.data,
        image_size=model[1].config.image_size,
        transformer=model[0].config,
        tokenizer=model[1].config,
        sampling=SamplingDefaults(guidance),
        classifier=about.classifier,
        files=files,
    )
    write_atomically(folder / "manifest.json", json.dumps(json.loads(found.model_dump_json()), indent=1) + "\n")
    zoo.manifest.cache_clear()


def save_reference(folder: Path, classifier: Classifier, tokenizer: VQVAE, test: Split, n_held_out: int) -> Files:
    """Writes reference statistics and held-out tokens, both of test images; their entries in the manifest."""
    reference = build_reference(
        ((x + 1) / 2 for x in test.images.split(500)), classifier_extractor(classifier), keep_features=2000
    )
    reference.save(folder / "reference.safetensors")
    few = test.first(n_held_out)
    tokens, _ = transformer.encode(tokenizer, few)
    state = {"tokens": tokens.cpu(), "labels": few.labels.short().cpu()}
    written = (folder / "reference.safetensors").read_bytes()
    return {
        "reference": ("reference.safetensors", hashlib.sha256(written).hexdigest()),
        "held_out": save_part(folder, "held_out", save(state)),
    }


def finish(
    folder: Path, about: About, how: Evaluation, splits: dict[str, Split], minutes: Callable[[], dict[str, float]]
) -> None:
    """Tunes and measures the model in `folder`, whose manifest names all files; writes card and samples.

    Args:
        folder: of the model.
        about: what its manifest says.
        how: what is measured.
        splits: on the device that measures.
        minutes: wall-clock minutes of every finished stage.
    """
    name, device = str(folder.resolve()), str(splits["test"].images.device)
    model, classifier = zoo.load(name, device), zoo.load_classifier(name, device)
    judge = Judge(how, classifier, classifier_extractor(classifier), zoo_reference(name))
    guidance, scan = judge.tune(model)
    write_manifest(folder, about, networks(model), dict(zoo.manifest(name).files), guidance)
    model = replace(model, sampling=SamplingDefaults(guidance))
    numbers, classes = card_numbers(model, judge, splits), model.spec.classes
    card = {"numbers": numbers, "scan": scan, "minutes": minutes()}
    write_atomically(
        folder / "samples.png",
        grid_png(judge.generate(model, guidance, CARD_SEED, 10 * classes), columns=classes, zoom=2),
    )
    write_atomically(folder / "card.json", json.dumps(card, indent=1) + "\n")
