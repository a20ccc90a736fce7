"""Multi-scale residual vector quantizer of VAR (Tian et al. 2024, arXiv 2404.02905, section 3.2).

Shape suffixes: N images, L tokens of one scale, C latent channels, V codebook entries, H W latent map.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Phi(nn.Conv2d):
    """Refines an upsampled code map: `(1 - resi) * u + resi * conv3x3(u)`."""

    def __init__(self, channels: int, resi: float) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)
        self.resi = resi

    def forward(self, u_NCHW: Tensor) -> Tensor:
        return u_NCHW * (1 - self.resi) + super().forward(u_NCHW) * self.resi


class PhiBank(nn.Module):
    """`count` convolutions shared by the scales; scale k uses the one whose tick is nearest to k / (K - 1).

    The ticks of four convolutions are closer to the ends than those of other counts. Two scales of the
    published ten lie exactly between two ticks, so the choice rests on numpy's rounding and is kept in numpy.
    """

    def __init__(self, channels: int, count: int, resi: float, n_scales: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(channels, resi) for _ in range(count))
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        ticks = np.linspace(margin, 1 - margin, count)
        places = [k / (n_scales - 1) if n_scales > 1 else 0.0 for k in range(n_scales)]
        self.index = [int(np.argmin(np.abs(ticks - place))) for place in places]

    def forward(self, u_NCHW: Tensor, scale: int) -> Tensor:
        refined: Tensor = self.qresi_ls[self.index[scale]](u_NCHW)
        return refined


class MultiScaleQuantizer(nn.Module):
    """Turns a latent map into one token map per scale, coarse to fine, and back.

    Args:
        vocab: number of codebook entries V.
        channels: latent channels C.
        scales: (height, width) of the token map of every scale; the last one is the latent map's size.
        shared_phi: number of `Phi` convolutions that the scales share.
        resi: share of the convolution in `Phi`.
    """

    ema_vocab_hit_SV: Tensor

    def __init__(
        self, vocab: int, channels: int, scales: tuple[tuple[int, int], ...], shared_phi: int = 4, resi: float = 0.5
    ) -> None:
        super().__init__()
        self.scales = scales
        self.embedding = nn.Embedding(vocab, channels)
        self.quant_resi = PhiBank(channels, shared_phi, resi, len(scales))
        # Usage statistics of the published training; carried so that the state dict has the published layout.
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(scales), vocab))

    @property
    def codebook(self) -> Tensor:
        """The codes that tokens stand for, (V, C)."""
        return self.embedding.weight

    def accumulate(self, f_hat_NCHW: Tensor, h_NLC: Tensor, scale: int) -> Tensor:
        """Adds the codes of one scale, upsampled and refined, to the latent estimate; returns the new estimate."""
        h_NChw = h_NLC.mT.unflatten(2, self.scales[scale])
        if scale != len(self.scales) - 1:
            h_NChw = F.interpolate(h_NChw, size=self.scales[-1], mode="bicubic")
        return f_hat_NCHW + self.quant_resi(h_NChw, scale)

    def pool(self, f_NCHW: Tensor, scale: int) -> Tensor:
        """The latent map seen at the resolution of `scale`, (N, C, h, w)."""
        return F.interpolate(f_NCHW, size=self.scales[scale], mode="area")

    def empty(self, n_images: int) -> Tensor:
        """The latent estimate before any scale, zeros (N, C, H, W) of the codebook's dtype and device."""
        weight = self.embedding.weight
        return weight.new_zeros(n_images, weight.shape[1], *self.scales[-1])

    def nearest(self, z_MC: Tensor) -> Tensor:
        """Index of the nearest codebook entry by Euclidean distance, (M,) int64."""
        book_VC = self.embedding.weight
        distance_MV = z_MC.square().sum(1, keepdim=True) + book_VC.square().sum(1) - 2 * z_MC @ book_VC.mT
        return distance_MV.argmin(1)

    def encode(self, f_NCHW: Tensor) -> list[Tensor]:
        """Greedy residual tokens of every scale, each (N, h*w) int64."""
        tokens: list[Tensor] = []
        f_hat_NCHW = torch.zeros_like(f_NCHW)
        for k in range(len(self.scales)):
            rest_NCHW = f_NCHW - f_hat_NCHW
            z_NChw = rest_NCHW if k == len(self.scales) - 1 else self.pool(rest_NCHW, k)
            tokens.append(self.nearest(z_NChw.flatten(2).mT.flatten(0, 1)).unflatten(0, (len(f_NCHW), -1)))
            f_hat_NCHW = self.accumulate(f_hat_NCHW, self.embedding(tokens[-1]), k)
        return tokens

    def partial_sums(self, tokens: list[Tensor]) -> list[Tensor]:
        """Latent estimate after each scale, one (N, C, H, W) per scale."""
        start = self.empty(len(tokens[0]))
        steps = itertools.accumulate(
            range(len(tokens)),
            lambda f_hat_NCHW, k: self.accumulate(f_hat_NCHW, self.embedding(tokens[k]), k),
            initial=start,
        )
        return list(steps)[1:]

    def decode(self, tokens: list[Tensor]) -> Tensor:
        """Latent estimate after all scales, (N, C, H, W)."""
        return self.partial_sums(tokens)[-1]

    def teacher_input(self, tokens: list[Tensor]) -> Tensor:
        """What the transformer reads at scales 1..K-1 when all earlier tokens are given, (N, L_total - 1, C)."""
        sums = self.partial_sums(tokens[:-1])
        return torch.cat([self.pool(f_hat, k + 1).flatten(2).mT for k, f_hat in enumerate(sums)], dim=1)
