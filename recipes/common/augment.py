"""What is done to a batch of images (N, C, H, W) in [-1, 1] before a training step, each image in its own way."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WHITE = 1.0
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""RGB to luma and two chromas (NTSC, 1953): a turn of the chromas is a change of hue, and grey stays grey."""


def flipped(images_NCHW: Tensor, may_N: Tensor | None = None) -> Tensor:
    """A random half of the images mirrored, of those that may be."""
    mirror_N = (torch.rand(len(images_NCHW)) < 0.5).to(images_NCHW.device)
    if may_N is not None:
        mirror_N &= may_N
    return torch.where(mirror_N[:, None, None, None], images_NCHW.flip(3), images_NCHW)


def cropped(images_NCHW: Tensor, pad: int, fill: float | None = None) -> Tensor:
    """Each image moved by up to `pad` pixels in both directions; around it is `fill`, or its mirrored border."""
    n, _, height, width = images_NCHW.shape
    device, around = images_NCHW.device, (pad,) * 4
    padded = F.pad(images_NCHW, around, "reflect" if fill is None else "constant", fill)
    top_N1, left_N1 = torch.randint(2 * pad + 1, (2, n, 1)).to(device)
    rows_NH, columns_NW = top_N1 + torch.arange(height, device=device), left_N1 + torch.arange(width, device=device)
    image_N11 = torch.arange(n, device=device)[:, None, None]
    return padded[image_N11, :, rows_NH[:, :, None], columns_NW[:, None]].permute(0, 3, 1, 2)


def pierced(images_NCHW: Tensor, hole: int) -> Tensor:
    """Each image with a random square of `hole` pixels a side, cut off at the border, set to grey."""
    n, _, height, width = images_NCHW.shape
    device = images_NCHW.device
    y_N1, x_N1 = (torch.rand(2, n, 1) * torch.tensor([height, width])[:, None, None]).to(device)
    inside_NH = (torch.arange(height, device=device) - y_N1).abs() <= hole / 2
    inside_NW = (torch.arange(width, device=device) - x_N1).abs() <= hole / 2
    return images_NCHW.masked_fill((inside_NH[:, :, None] & inside_NW[:, None])[:, None], 0.0)


def turned(images_NCHW: Tensor, degrees: float, zoom: float) -> Tensor:
    """Each image turned by up to `degrees` and scaled by up to a share of `zoom`, on white."""
    angle_N, share_N = (torch.rand(2, len(images_NCHW)) * 2 - 1) * torch.tensor([[math.radians(degrees)], [zoom]])
    factor_N = 1 / (1 + share_N)
    cosine_N, sine_N, zero_N = angle_N.cos() * factor_N, angle_N.sin() * factor_N, torch.zeros_like(angle_N)
    rows = torch.stack((cosine_N, -sine_N, zero_N)), torch.stack((sine_N, cosine_N, zero_N))
    matrix_N23 = torch.stack(rows).permute(2, 0, 1).to(images_NCHW)
    grid = F.affine_grid(matrix_N23, list(images_NCHW.shape), align_corners=False)
    return F.grid_sample(images_NCHW - WHITE, grid, align_corners=False) + WHITE


def recoloured(images_NCHW: Tensor, hue: float, saturation: float) -> Tensor:
    """Each image with its hue turned by up to `hue` of a circle and its saturation changed by up to that share."""
    turn_N, share_N = (torch.rand(2, len(images_NCHW)) * 2 - 1) * torch.tensor([[2 * math.pi * hue], [saturation]])
    cosine_N, sine_N = turn_N.cos() * (1 + share_N), turn_N.sin() * (1 + share_N)
    change_N33 = torch.zeros(len(images_NCHW), 3, 3)
    change_N33[:, 0, 0] = 1
    change_N33[:, 1, 1], change_N33[:, 1, 2] = cosine_N, -sine_N
    change_N33[:, 2, 1], change_N33[:, 2, 2] = sine_N, cosine_N
    matrix_N33 = (torch.linalg.inv(YIQ) @ change_N33 @ YIQ).to(images_NCHW)
    return torch.einsum("nij,njhw->nihw", matrix_N33, images_NCHW).clamp(-1, 1)
