"""Convolutional encoder and decoder of Infinity's tokenizer: those of VAR without attention.

State-dict keys are those of the published checkpoints, which wrap every convolution and every norm once more.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    """A convolution with 3x3 weights that keeps the size, unless told otherwise."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2 if stride == 1 else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Norm(nn.Module):
    """Normalisation over groups of channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions with a residual connection."""

    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(c_in, groups), Conv(c_in, c_out)
        self.norm2, self.conv2 = Norm(c_out, groups), Conv(c_out, c_out)
        self.nin_shortcut = Conv(c_in, c_out, kernel=1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.nin_shortcut(x)


class Downsample(nn.Module):
    """Stride-2 convolution padded at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling followed by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, then the change to the next."""

    def __init__(self, widths: list[int], groups: int, resample: tuple[str, nn.Module] | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(a, b, groups) for a, b in pairwise(widths))
        self.resample = resample[0] if resample else None
        if resample:
            self.add_module(*resample)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.get_submodule(self.resample)(x) if self.resample else x


class Mid(nn.Module):
    """Two residual blocks at the deepest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = ResBlock(channels, channels, groups), ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class Encoder(nn.Module):
    """Image to latent map; every level but the deepest halves the resolution."""

    def __init__(self, channels: int, ch: int, ch_mult: tuple[int, ...], res_blocks: int, groups: int) -> None:
        super().__init__()
        widths, last = [ch * m for m in ch_mult], len(ch_mult) - 1
        self.conv_in = Conv(3, ch)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(pairwise([ch, *widths])):
            resample = None if i == last else ("downsample", Downsample(width))
            self.down.append(Level([before] + [width] * res_blocks, groups, resample))
        self.mid = Mid(widths[-1], groups)
        self.norm_out, self.conv_out = Norm(widths[-1], groups), Conv(widths[-1], channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latent map to image; `up` is indexed by resolution as in the encoder and run from the deepest level."""

    def __init__(self, channels: int, ch: int, ch_mult: tuple[int, ...], res_blocks: int, groups: int) -> None:
        super().__init__()
        widths = [ch * m for m in ch_mult]
        self.conv_in = Conv(channels, widths[-1])
        self.mid = Mid(widths[-1], groups)
        self.up = nn.ModuleList()
        for i, (width, before) in enumerate(pairwise([*widths, widths[-1]])):
            resample = None if i == 0 else ("upsample", Upsample(width))
            self.up.append(Level([before] + [width] * (res_blocks + 1), groups, resample))
        self.norm_out, self.conv_out = Norm(widths[0], groups), Conv(widths[0], 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))
