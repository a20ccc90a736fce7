"""What is trained: classifier, tokenizer and transformer, each with its loss, its optimizer and what the log says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.common.budget import Task
from recipes.common.classifier import accuracy
from recipes.common.data import Batches, Split
from recipes.common.tokenizer import (
    IDLE_STEPS,
    LAST_REVIVAL,
    REVIVE_EVERY,
    WARM_UP,
    initialise_codebook,
    loss_of,
    psnr,
    revive,
)
from recipes.common.transformer import drop_labels, encode, groups, held_out_nll, lesson
from varsearch.models.classifier import Classifier
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE

CODEBOOK_IMAGES = 512


@dataclass(frozen=True)
class Feed:
    """What a training reads.

    Args:
        train: images that it learns from.
        judged: images that the log's figures are of.
        batches: which images a step sees.
        vary: changes a batch of images, given their labels, at random.
        half: matrix products and convolutions run in bfloat16.
    """

    train: Split
    judged: Split
    batches: Batches
    vary: Callable[[Tensor, Tensor], Tensor]
    half: bool

    def batch(self, step: int) -> Split:
        """The images of a step."""
        index = self.batches.batch(step)
        labels = self.train.labels[index]
        return Split(self.vary(self.train.images[index], labels), labels)

    def precision(self) -> torch.autocast:
        """The context that networks run in."""
        return torch.autocast(self.train.images.device.type, torch.bfloat16, enabled=self.half)


class ClassifierTask(Task[Classifier]):
    """Labels of images."""

    def __init__(self, network: Classifier, feed: Feed) -> None:
        super().__init__(network)
        for parameter in network.parameters():
            if parameter.ndim == 4:
                # The layout of tensor cores, which activations take over from the weights.
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.feed = feed

    def loss(self, step: int, progress: float) -> Tensor:
        """Cross-entropy of smoothed labels."""
        batch = self.feed.batch(step)
        with self.feed.precision():
            return F.cross_entropy(self.network(batch.images), batch.labels, label_smoothing=0.1)

    def judge(self, network: Classifier) -> str:
        """Accuracy on held-out images."""
        return f"held-out accuracy {accuracy(network, self.feed.judged):.4f}"

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """SGD, which for small convolutional networks ends above Adam."""
        return torch.optim.SGD(self.network.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)


class TokenizerTask(Task[VQVAE]):
    """Reconstruction of images through the codes of all scales."""

    idle_V: Tensor
    started: Tensor

    def __init__(self, network: VQVAE, feed: Feed) -> None:
        super().__init__(network)
        self.feed = feed
        device = feed.train.images.device
        self.register_buffer("idle_V", torch.zeros(network.config.vocab, dtype=torch.long, device=device))
        self.register_buffer("started", torch.tensor(False))

    def loss(self, step: int, progress: float) -> Tensor:
        """Reconstruction, and from the end of the warm-up on the terms of the codebook."""
        quantized = progress >= WARM_UP
        if quantized and not self.started:
            initialise_codebook(self.network, self.feed.train.images[:CODEBOOK_IMAGES])
            self.started.fill_(True)
        images = self.feed.batch(step).images
        with self.feed.precision():
            loss, tokens, latent = loss_of(self.network, images, quantized)
        self.idle_V += quantized
        for t in tokens:
            self.idle_V[t.flatten()] = 0
        if quantized and progress < LAST_REVIVAL and step % REVIVE_EVERY == 0:
            revive(self.network.quantize, self.idle_V, latent)
        return loss

    def judge(self, network: VQVAE) -> str:
        """Reconstruction of held-out images, and how many codes nothing chose lately."""
        idle = int((self.idle_V > IDLE_STEPS).sum())
        decibel = psnr(network, self.feed.judged.images, len(network.config.scales))
        return f"held-out {decibel:.2f} dB, {idle} codes idle"

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """AdamW with a short memory: the target moves with the codebook."""
        return torch.optim.AdamW(self.network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)


class TransformerTask(Task[VAR]):
    """Tokens of images."""

    def __init__(self, network: VAR, tokenizer: VQVAE, feed: Feed, noise: float) -> None:
        super().__init__(network)
        self.feed = feed
        # A tokenizer that is an attribute would be trained and saved with the network.
        self.lesson = partial(lesson, tokenizer, noise=noise)
        self.judged_tokens, self.judged_inputs = encode(tokenizer, feed.judged)

    def loss(self, step: int, progress: float) -> Tensor:
        """Negative log-likelihood per token, some labels left out."""
        batch = self.feed.batch(step)
        tokens, inputs = self.lesson(batch.images)
        labels = drop_labels(batch.labels, self.network.config.classes)
        with self.feed.precision():
            return F.cross_entropy(self.network(labels, inputs).flatten(0, 1), tokens.flatten())

    def judge(self, network: VAR) -> str:
        """Negative log-likelihood of held-out tokens."""
        with self.feed.precision():
            nll = held_out_nll(network, self.judged_tokens, self.judged_inputs, self.feed.judged.labels)
        return f"held-out NLL {nll:.4f}"

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """AdamW as VAR was trained with."""
        return torch.optim.AdamW(groups(self.network), lr=rate, betas=(0.9, 0.95), fused=True)
