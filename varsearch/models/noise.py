"""Noise that belongs to (seed, image, scale, position), so that policies are compared on the same noise.

`mt19937` is what the first releases drew with: one stream of PyTorch's CPU generator per image and scale. It costs CPU
time and a copy wherever the images are drawn elsewhere. `philox` is Philox4x32-10 (Salmon et al. 2011, doi
10.1145/2063384.2063405), a function of a counter in integer arithmetic: every device computes the same words where the
images are, and nothing is copied. What follows from the words differs between devices by the rounding of two
logarithms.

Shape suffixes: N images, R some of them, P positions of one scale (tokens by codes), Q quadruples of positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from varsearch.target import Noise

MASK = 2**32 - 1
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
"""What the two words of the key grow by from round to round."""

ROUNDS = 10
AT_ONCE = {"cpu": 2**14}
"""Counters at once, by type of device: so many stay in a core's cache."""

AT_ONCE_ELSEWHERE = 2**20
"""Some 70 MB of words, which are enough to keep a device busy."""


def usual_noise(device: torch.device | str) -> Noise:
    """What images are drawn with on `device` unless somebody says otherwise.

    CPUs keep what they have always drawn with, so that runs and files of old give the images that they gave.
    """
    return "mt19937" if torch.device(device).type == "cpu" else "philox"


def gumbel(noise: Noise, seed: int, images: Sequence[int] | Tensor, scale: int, like_NLV: Tensor) -> Tensor:
    """Standard Gumbel noise, one number per logit, of the shape, the dtype and on the device of `like_NLV`.

    Args:
        noise: which function.
        seed: of all images.
        images: index of each of the N images.
        scale: index of the scale.
        like_NLV: the logits.
    """
    if noise == "mt19937":
        return _of_streams(seed, _listed(images), scale, like_NLV.shape).to(like_NLV)
    v_NP = uniform(seed, _index(images, like_NLV.device), scale, like_NLV[0].numel())
    # -log(-log(1 - v)): the small v, which win, keep all of their 32 bits.
    gumbel_NP = v_NP.neg_().log1p_().neg_().log_().neg_()
    return gumbel_NP.view(like_NLV.shape).to(like_NLV.dtype)


def _of_streams(seed: int, images: Sequence[int], scale: int, shape: torch.Size) -> Tensor:
    noise_NLV = torch.empty(shape)
    generator = torch.Generator()
    for row_LV, image in zip(noise_NLV, images, strict=True):
        # One 63-bit seed per (seed, image, scale); the odd factors keep the three from colliding.
        mixed = (seed * 0x9E3779B97F4A7C15 + image * 0xBF58476D1CE4E5B9 + scale * 0x94D049BB133111EB) & (2**63 - 1)
        row_LV.exponential_(generator=generator.manual_seed(mixed))
    return -noise_NLV.log()


def taken(noise: Noise, images: Sequence[int] | Tensor, images_M: Tensor) -> Sequence[int] | Tensor:
    """The indices of some images, (M), by their places in the batch."""
    if noise == "mt19937":
        listed = _listed(images)
        return [listed[i] for i in images_M.tolist()]
    return _index(images, images_M.device).index_select(0, images_M)


def _listed(images: Sequence[int] | Tensor) -> Sequence[int]:
    return images.tolist() if isinstance(images, Tensor) else images


def _index(images: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """The images' indices on the device; of a range they are computed there, and nothing is copied."""
    if isinstance(images, range):
        return torch.arange(images.start, images.stop, images.step, device=device)
    return images.to(device) if isinstance(images, Tensor) else torch.tensor(list(images), device=device)


def uniform(seed: int, image_N: Tensor, scale: int, positions: int) -> Tensor:
    """Numbers v in (0, 1), (N, P) float32, on the device of `image_N` (N,) int64.

    Word `p % 4` of Philox at counter (p // 4, scale, image) with the key `seed` gives v = (word + 1/2) / 2^32, rounded
    to float32 and at most 1 - 2^-24.
    """
    quads = -(-positions // 4)
    v_NQ4 = torch.empty(len(image_N), quads, 4, device=image_N.device)
    for rows, part in _pieces(len(image_N), quads, AT_ONCE.get(image_N.device.type, AT_ONCE_ELSEWHERE)):
        words = philox(_counters(image_N[rows], scale, part), (seed & MASK, seed >> 32 & MASK))
        piece_RQ4 = v_NQ4[rows, part.start : part.stop]
        for i, word_RQ in enumerate(words):
            piece_RQ4[..., i] = word_RQ
        piece_RQ4.add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    return v_NQ4.flatten(1)[:, :positions]


def _pieces(n: int, quads: int, at_once: int) -> Iterator[tuple[slice, range]]:
    """Slices of images and ranges of quadruples with at most `at_once` counters each."""
    rows = max(1, at_once // quads)
    for first in range(0, n, rows):
        for start in range(0, quads, at_once):
            yield slice(first, first + rows), range(start, min(start + at_once, quads))


def _counters(image_R: Tensor, scale: int, part: range) -> tuple[Tensor, Tensor]:
    """The words 0 and 2, and 1 and 3, of the counters, each (2, R, Q) int64."""
    even = image_R.new_empty(2, len(image_R), len(part))
    odd = torch.empty_like(even)
    even[0] = torch.arange(part.start, part.stop, device=image_R.device)
    odd[0] = scale
    even[1] = (image_R & MASK)[:, None]
    odd[1] = (image_R >> 32 & MASK)[:, None]
    return even, odd


def philox(counters: tuple[Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four random words of each counter, int64 below 2^32.

    Args:
        counters: the words 0 and 2, and the words 1 and 3, each (2, ...) int64 below 2^32; the memory is used.
        key: two words.
    """
    even, odd = counters
    for i in range(ROUNDS):
        low = torch.empty_like(even)
        # The sign that the highest bit of a product takes is no matter: both halves are masked.
        torch.mul(even[0], MULTIPLIERS[0], out=low[1])
        torch.mul(even[1], MULTIPLIERS[1], out=low[0])
        odd ^= (low >> 32).bitwise_and_(MASK)
        low &= MASK
        for half in (0, 1):
            odd[half] ^= (key[half] + i * WEYL[half]) & MASK
        even, odd = odd, low
    return even[0], odd[0], even[1], odd[1]
