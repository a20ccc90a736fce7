"""Bitwise multi-scale tokenizer of Infinity (Han et al. 2024, arXiv 2412.04431): each latent channel is one bit.

A token is `bits` decisions between -1/sqrt(d) and +1/sqrt(d), so the loop sees each bit as a token of two codes. With
`patch` 2 a token stands for 2x2 latent cells and has four times as many bits as the latent has channels.

State-dict keys are those of the published checkpoints. Shape suffixes: N images, C latent channels, H W latent map,
M bits of all tokens of one scale, D bits of one token.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from varsearch.models.infinity.autoencoder import Decoder, Encoder
from varsearch.target import Count, Scales, Size


@dataclass(frozen=True, slots=True)
class BitTokenizerConfig:
    """Hyper-parameters of a `BitTokenizer`; the defaults are those of the published 32-bit one.

    `scales` are the token maps, of which a latent map has `patch` times the height and width.
    """

    scales: Scales
    channels: Annotated[int, Field(ge=1, le=62)] = 32
    patch: Literal[1, 2] = 1
    ch: Size = 128
    ch_mult: Annotated[tuple[Count, ...], Field(min_length=1, max_length=16)] = (1, 2, 4, 4, 4)
    res_blocks: Count = 2
    norm_groups: Size = 32

    @property
    def bits(self) -> int:
        """Bits of one token."""
        return self.channels * self.patch**2

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the decoded images: every level but the deepest doubles the last latent map."""
        height, width = self.scales[-1]
        factor = self.patch << (len(self.ch_mult) - 1)
        return height * factor, width * factor


class Signs(nn.Module):
    """Carries the bits' weights in an integer index, which nothing here needs but published checkpoints have."""

    mask: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mask", 2 ** torch.arange(channels - 1, -1, -1))


class BitQuantizer(nn.Module):
    """Turns a latent map into the bits of every scale, coarse to fine, and back.

    Estimates stay in fp32 whatever the dtype of the networks: they are sums of few equal numbers.
    """

    def __init__(self, config: BitTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.maps = tuple((h * config.patch, w * config.patch) for h, w in config.scales)
        self.lfq = Signs(config.channels)

    @property
    def codebook(self) -> Tensor:
        """The values of a bit that is 0 and of one that is 1, (2, 1)."""
        sign_21 = 2 * torch.arange(2, device=self.lfq.mask.device)[:, None] - 1
        return sign_21 / math.sqrt(self.config.channels)

    def empty(self, n_images: int) -> Tensor:
        """The latent estimate before any scale, zeros (N, C, H, W)."""
        return torch.zeros(n_images, self.config.channels, *self.maps[-1], device=self.lfq.mask.device)

    def accumulate(self, f_hat_NCHW: Tensor, codes_NM1: Tensor, scale: int) -> Tensor:
        """Adds the codes of one scale, upsampled, to the latent estimate; returns the new estimate."""
        tokens_NLD = codes_NM1.flatten(1).unflatten(1, (-1, self.config.bits))
        return f_hat_NCHW + self._enlarge(self._unpatched(tokens_NLD, scale))

    def pool(self, f_NCHW: Tensor, scale: int) -> Tensor:
        """The latent estimate as the tokens of `scale` see it, (N, D, h, w).

        As published: bilinear, although the residuals of `encode` are averaged.
        """
        return F.pixel_unshuffle(F.interpolate(f_NCHW, size=self.maps[scale], mode="bilinear"), self.config.patch)

    def encode(self, f_NCHW: Tensor) -> list[Tensor]:
        """Greedy residual bits of every scale, each (N, M) int64."""
        bits: list[Tensor] = []
        f_hat_NCHW = torch.zeros_like(f_NCHW)
        for k, size in enumerate(self.maps):
            rest_NCHW = f_NCHW - f_hat_NCHW
            z_NChw = rest_NCHW if size == self.maps[-1] else F.interpolate(rest_NCHW, size=size, mode="area")
            tokens_NDhw = F.pixel_unshuffle((z_NChw > 0).long(), self.config.patch)
            bits.append(tokens_NDhw.flatten(2).mT.flatten(1))
            f_hat_NCHW = self.accumulate(f_hat_NCHW, self.codebook[bits[-1]], k)
        return bits

    def partial_sums(self, bits: list[Tensor]) -> list[Tensor]:
        """Latent estimate after each scale, one (N, C, H, W) per scale."""
        steps = itertools.accumulate(
            range(len(bits)),
            lambda f_hat_NCHW, k: self.accumulate(f_hat_NCHW, self.codebook[bits[k]], k),
            initial=self.empty(len(bits[0])),
        )
        return list(steps)[1:]

    def decode(self, bits: list[Tensor]) -> Tensor:
        """Latent estimate after all scales, (N, C, H, W)."""
        return self.partial_sums(bits)[-1]

    def teacher_input(self, bits: list[Tensor]) -> Tensor:
        """What the transformer reads at scales 1..K-1 when all earlier bits are given, (N, L_total - 1, D)."""
        sums = self.partial_sums(bits[:-1])
        return torch.cat([self.pool(f_hat, k + 1).flatten(2).mT for k, f_hat in enumerate(sums)], dim=1)

    def _unpatched(self, tokens_NLD: Tensor, scale: int) -> Tensor:
        return F.pixel_shuffle(tokens_NLD.mT.unflatten(2, self.config.scales[scale]), self.config.patch)

    def _enlarge(self, codes_NChw: Tensor) -> Tensor:
        if codes_NChw.shape[2:] == self.maps[-1]:
            return codes_NChw
        return F.interpolate(codes_NChw, size=self.maps[-1], mode="bilinear")


class BitTokenizer(nn.Module):
    """The tokenizer: images to bits of every scale, and latent estimates to images."""

    def __init__(self, config: BitTokenizerConfig) -> None:
        super().__init__()
        c = self.config = config
        self.encoder = Encoder(c.channels, c.ch, c.ch_mult, c.res_blocks, c.norm_groups)
        self.decoder = Decoder(c.channels, c.ch, c.ch_mult, c.res_blocks, c.norm_groups)
        self.quantize = BitQuantizer(c)
        # Published checkpoints name it twice.
        self.quantizer = self.quantize

    def latent(self, image_NCHW: Tensor) -> Tensor:
        """Continuous latent map before quantization."""
        f_NCHW: Tensor = self.encoder(image_NCHW)
        return f_NCHW

    def encode(self, image_NCHW: Tensor) -> list[Tensor]:
        """Bits of every scale for images in [-1, 1]."""
        return self.quantize.encode(self.latent(image_NCHW).float())

    def decode(self, f_hat_NCHW: Tensor) -> Tensor:
        """Images in [-1, 1] from a latent estimate."""
        image_NCHW: Tensor = self.decoder(f_hat_NCHW.to(self.decoder.conv_in.conv.weight.dtype))
        return image_NCHW.clamp(-1, 1)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Reconstruction of images in [-1, 1]."""
        with torch.no_grad():
            return self.decode(self.quantize.decode(self.encode(image_NCHW)))
