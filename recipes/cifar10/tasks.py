"""What is trained: classifier, tokenizer and transformer, each with its loss, its optimizer and what the log says."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.cifar10.data import cropped, flipped, pierced
from recipes.common.budget import Task
from recipes.common.classifier import accuracy
from recipes.common.data import Passes, Split
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
from recipes.common.transformer import drop_labels, encode, groups, held_out_nll
from varsearch.models.classifier import Classifier
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE

CODEBOOK_IMAGES = 512


def half(device: torch.device) -> torch.autocast:
    """Runs matrix products and convolutions in bfloat16, on a CPU as on a GPU."""
    return torch.autocast(device.type, torch.bfloat16)


class ClassifierTask(Task[Classifier]):
    """Labels of moved, mirrored and pierced images."""

    def __init__(self, network: Classifier, train: Split, judged: Split, batch: int) -> None:
        super().__init__(network)
        for parameter in network.parameters():
            if parameter.ndim == 4:
                # The layout of tensor cores, which activations take over from the weights.
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.train_set, self.judged = train, judged
        self.passes = Passes(len(train), batch, train.labels.device)

    def loss(self, step: int, progress: float) -> Tensor:
        """Cross-entropy of smoothed labels."""
        index = self.passes.batch(step)
        images = pierced(cropped(flipped(self.train_set.images[index])))
        with half(images.device):
            logits = self.network(images)
            return F.cross_entropy(logits, self.train_set.labels[index], label_smoothing=0.1)

    def judge(self, network: Classifier) -> str:
        """Accuracy on held-out images."""
        return f"held-out accuracy {accuracy(network, self.judged):.4f}"

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """SGD, which for small convolutional networks ends above Adam."""
        return torch.optim.SGD(self.network.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)


class TokenizerTask(Task[VQVAE]):
    """Reconstruction of mirrored images through the codes of all scales."""

    idle_V: Tensor
    started: Tensor

    def __init__(self, network: VQVAE, train: Split, judged: Split, batch: int) -> None:
        super().__init__(network)
        self.images, self.judged = train.images, judged
        device = train.images.device
        self.passes = Passes(len(train), batch, device)
        self.register_buffer("idle_V", torch.zeros(network.config.vocab, dtype=torch.long, device=device))
        self.register_buffer("started", torch.tensor(False))

    def loss(self, step: int, progress: float) -> Tensor:
        """Reconstruction, and from the end of the warm-up on the terms of the codebook."""
        quantized = progress >= WARM_UP
        if quantized and not self.started:
            initialise_codebook(self.network, self.images[:CODEBOOK_IMAGES])
            self.started.fill_(True)
        images = flipped(self.images[self.passes.batch(step)])
        with half(images.device):
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
        return f"held-out {psnr(network, self.judged.images, len(network.config.scales)):.2f} dB, {idle} codes idle"

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """AdamW with a short memory: the target moves with the codebook."""
        return torch.optim.AdamW(self.network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)


class TransformerTask(Task[VAR]):
    """Tokens of images and of their mirror images."""

    def __init__(self, network: VAR, tokenizer: VQVAE, train: Split, judged: Split, batch: int) -> None:
        super().__init__(network)
        self.labels, self.judged = train.labels.repeat(2), judged
        both = (encode(tokenizer, train), encode(tokenizer, Split(train.images.flip(3), train.labels)))
        self.tokens, self.inputs = (torch.cat(pair) for pair in zip(*both, strict=True))
        self.judged_tokens, self.judged_inputs = encode(tokenizer, judged)
        self.passes = Passes(len(self.labels), batch, self.labels.device)

    def loss(self, step: int, progress: float) -> Tensor:
        """Negative log-likelihood per token, some labels left out."""
        index = self.passes.batch(step)
        labels = drop_labels(self.labels[index], self.network.config.classes)
        with half(labels.device):
            logits = self.network(labels, self.inputs[index].float())
            return F.cross_entropy(logits.flatten(0, 1), self.tokens[index].long().flatten())

    def judge(self, network: VAR) -> str:
        """Negative log-likelihood of held-out tokens."""
        with half(self.labels.device):
            nll = held_out_nll(network, self.judged_tokens, self.judged_inputs, self.judged.labels)
        return f"held-out NLL {nll:.4f}"

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """AdamW as VAR was trained with."""
        return torch.optim.AdamW(groups(self.network), lr=rate, betas=(0.9, 0.95), fused=True)
