"""Decisions per image: what an image looks like after some scale says how its remaining scales run.

SkipVAR (arXiv 2506.08908) asks small decoded previews for high frequencies, ToProVAR (arXiv 2602.22948) the attention
for low entropies; a linear classifier chooses. Images are asked one by one and go on in groups of equal answers, so an
image does not depend on its neighbours.

Shape suffixes: N images, A actions, F features, C channels, H W rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from varsearch.contentless import Contentless
from varsearch.models.seams import LayerState
from varsearch.policy import Decision, largest_remainder

PREVIEW = 8
"""Side of the latent maps that previews are decoded from, as published; half the map's side where that is less."""

RADIUS = 0.4
"""Part of the highest frequency beyond which the spectrum counts as high."""

Decode = Callable[[Tensor], Tensor]


class Asked:
    """Asks each image and groups the answers; see `seams.Decide`.

    Where tensors have no content the groups have the sizes that the decision expects.

    Args:
        decision: what is asked, and what follows.
        layers: those that run the decision's scale in full.
    """

    def __init__(self, decision: Decision, layers: list[int]) -> None:
        self.decision, self.layers = decision, layers
        self.weights_FA = np.array([action.weights for action in decision.actions]).T
        self.bias_A = np.array([action.bias for action in decision.actions])

    def __call__(
        self, before_NCHW: Tensor, after_NCHW: Tensor, states: list[LayerState], decode: Decode
    ) -> tuple[Tensor, ...]:
        features_NF = self.features(before_NCHW, after_NCHW, states, decode)
        weights_FA, bias_A = (torch.from_numpy(t).to(features_NF) for t in (self.weights_FA, self.bias_A))
        action_N = (features_NF @ weights_FA + bias_A).argmax(1)
        return action_N.argsort(stable=True).split(self._sizes(action_N))

    def features(self, before_NCHW: Tensor, after_NCHW: Tensor, states: list[LayerState], decode: Decode) -> Tensor:
        """What the images are asked by, (N, F) float32 or better."""
        if self.decision.feature == "high_frequency":
            return high_frequency(*(preview(t, decode) for t in (before_NCHW, after_NCHW)))
        noted = [states[layer].attn.entropy_BL for layer in self.layers]
        return low_entropy(torch.stack([t[: len(after_NCHW)] for t in noted if t is not None]).mean(0))

    def _sizes(self, action_N: Tensor) -> list[int]:
        actions = self.decision.actions
        if isinstance(action_N, Contentless):
            return list(largest_remainder([action.share for action in actions], len(action_N)))
        return np.bincount(action_N.cpu().numpy(), minlength=len(actions)).tolist()


def low_entropy(entropy_NL: Tensor) -> Tensor:
    """ToProVAR's feature: the share of an image's tokens whose entropy lies below their mean, (N, 1)."""
    return (entropy_NL < entropy_NL.mean(1, keepdim=True)).to(entropy_NL).mean(1, keepdim=True)


def preview(f_hat_NCHW: Tensor, decode: Decode) -> Tensor:
    """Small grey images in [-1, 1] of latent estimates, (N, H, W) in float32 or better.

    The published code resizes to an 8 x 8 map with trilinear interpolation, which skips cells; areas count all.
    """
    size = [min(PREVIEW, math.ceil(side / 2)) for side in f_hat_NCHW.shape[2:]]
    image_NCHW = decode(F.interpolate(f_hat_NCHW, size=size, mode="area"))
    return image_NCHW.to(torch.promote_types(image_NCHW.dtype, torch.float32)).mean(1)


def high_frequency(before_NHW: Tensor, after_NHW: Tensor) -> Tensor:
    """SkipVAR's features of the previews before and after the decision's scale, (N, 2).

    First the mean difference of edge strengths, then the share of the second image's amplitudes at frequencies beyond
    `RADIUS` of the highest along an axis.
    """
    difference_N = (edges(after_NHW) - edges(before_NHW)).abs().mean((1, 2))
    amplitude_NHW = torch.fft.fft2(after_NHW).abs()
    outside_HW = torch.from_numpy(outside(*after_NHW.shape[1:])).to(amplitude_NHW)
    ratio_N = (amplitude_NHW * outside_HW).sum((1, 2)) / (amplitude_NHW.sum((1, 2)) + 1e-6)
    return torch.stack((difference_N, ratio_N), dim=1)


def edges(grey_NHW: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient, with zeros around the image, (N, H, W)."""
    padded = F.pad(grey_NHW, (1, 1, 1, 1))
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return torch.hypot(down[:, :, 2:] - down[:, :, :-2], across[:, 2:] - across[:, :-2])


def outside(height: int, width: int) -> np.typing.NDArray[np.bool_]:
    """Whether each bin of a Fourier transform lies beyond the radius, (height, width)."""
    row_H, column_W = (np.fft.fftfreq(n, 1 / n) for n in (height, width))
    radius = int(RADIUS * min(height, width) / 2)
    found: np.typing.NDArray[np.bool_] = np.hypot(row_H[:, None], column_W) > radius
    return found
