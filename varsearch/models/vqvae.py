"""Multi-scale VQ-VAE of VAR: convolutional encoder and decoder around `MultiScaleQuantizer`.

State-dict keys are those of the published checkpoints. Images are (N, channels, height, width) in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from varsearch.models.quantizer import MultiScaleQuantizer
from varsearch.target import Count, Scales, Size


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """Hyper-parameters of a `VQVAE`; the defaults are those of the published `vae_ch160v4096z32`."""

    scales: Scales
    vocab: Size = 4096
    z_channels: Size = 32
    ch: Size = 160
    ch_mult: Annotated[tuple[Count, ...], Field(min_length=1, max_length=16)] = (1, 1, 2, 2, 4)
    res_blocks: Count = 2
    image_channels: Literal[1, 3] = 3
    norm_groups: Size = 32
    shared_phi: Count = 4
    quant_resi: Annotated[float, Field(ge=0, le=1)] = 0.5

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the decoded images: every level but the deepest doubles the last token map."""
        height, width = self.scales[-1]
        return height << (len(self.ch_mult) - 1), width << (len(self.ch_mult) - 1)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions with a residual connection."""

    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=1e-6)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.nin_shortcut(x)


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(h.mT.unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Stride-2 convolution padded at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling followed by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention at the deepest level."""

    def __init__(self, widths: list[int], groups: int, attend: bool, resample: tuple[str, nn.Module] | None) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList(ResBlock(a, b, groups) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b, groups) for _, b in pairs if attend)
        self.resample = resample[0] if resample else None
        if resample:
            self.add_module(*resample)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.get_submodule(self.resample)(x) if self.resample else x


class Mid(nn.Module):
    """Residual block, attention, residual block at the deepest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Encoder(nn.Module):
    """Image to latent map; every level but the deepest halves the resolution."""

    def __init__(self, c: TokenizerConfig) -> None:
        super().__init__()
        widths, last = [c.ch * m for m in c.ch_mult], len(c.ch_mult) - 1
        self.conv_in = nn.Conv2d(c.image_channels, c.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            resample = None if i == last else ("downsample", Downsample(width))
            before = widths[i - 1] if i else c.ch
            self.down.append(Level([before] + [width] * c.res_blocks, c.norm_groups, i == last, resample))
        self.mid = Mid(widths[-1], c.norm_groups)
        self.norm_out = nn.GroupNorm(c.norm_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], c.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latent map to image; `up` is indexed by resolution as in the encoder and run from the deepest level."""

    def __init__(self, c: TokenizerConfig) -> None:
        super().__init__()
        widths, last = [c.ch * m for m in c.ch_mult], len(c.ch_mult) - 1
        self.conv_in = nn.Conv2d(c.z_channels, widths[-1], 3, padding=1)
        self.mid = Mid(widths[-1], c.norm_groups)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            resample = None if i == 0 else ("upsample", Upsample(width))
            before = widths[min(i + 1, last)]
            self.up.append(Level([before] + [width] * (c.res_blocks + 1), c.norm_groups, i == last, resample))
        self.norm_out = nn.GroupNorm(c.norm_groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], c.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VQVAE(nn.Module):
    """The tokenizer: images to token maps of every scale, and latent estimates to images."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        c = self.config = config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quantize = MultiScaleQuantizer(c.vocab, c.z_channels, c.scales, c.shared_phi, c.quant_resi)
        self.quant_conv = nn.Conv2d(c.z_channels, c.z_channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(c.z_channels, c.z_channels, 3, padding=1)

    def latent(self, image_NCHW: Tensor) -> Tensor:
        """Continuous latent map before quantization."""
        f_NCHW: Tensor = self.quant_conv(self.encoder(image_NCHW))
        return f_NCHW

    def encode(self, image_NCHW: Tensor) -> list[Tensor]:
        """Tokens of every scale for images in [-1, 1]."""
        return self.quantize.encode(self.latent(image_NCHW))

    def decode(self, f_hat_NCHW: Tensor) -> Tensor:
        """Images in [-1, 1] from a latent estimate."""
        image_NCHW: Tensor = self.decoder(self.post_quant_conv(f_hat_NCHW))
        return image_NCHW.clamp(-1, 1)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Reconstruction of images in [-1, 1]."""
        with torch.no_grad():
            return self.decode(self.quantize.decode(self.encode(image_NCHW)))
