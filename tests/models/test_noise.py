"""Noise that every device computes alike."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from varsearch.models import noise
from varsearch.models.noise import MASK, gumbel, philox, taken, uniform

KNOWN = {
    ((0, 0, 0, 0), (0, 0)): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ((MASK,) * 4, (MASK,) * 2): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)): (
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1,
    ),
}  # fmt: skip
"""Random123's known answers of Philox4x32-10 (kat_vectors), which published the generator."""


def counters(*words: int) -> tuple[Tensor, Tensor]:
    even, odd = (torch.tensor([[words[i]], [words[i + 2]]]) for i in (0, 1))
    return even, odd


@pytest.mark.parametrize("case", KNOWN)
def test_philox_gives_the_known_answers(case: tuple[tuple[int, ...], tuple[int, int]]) -> None:
    words, key = case
    assert tuple(int(word) for word in philox(counters(*words), key)) == KNOWN[case]


def test_uniform_is_the_counter_as_documented() -> None:
    seed, image, scale = 5 + (7 << 32), 3 + (2 << 32), 4
    found = uniform(seed, torch.tensor([0, image]), scale, 11)[1]
    for position in range(11):
        words = philox(counters(position // 4, scale, 3, 2), (5, 7))
        assert found[position].item() == pytest.approx((int(words[position % 4]) + 0.5) / 2**32, rel=1e-7)


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = uniform(1, torch.arange(5), 2, 403)
    for at_once in (1, 64, 150, 303):
        monkeypatch.setitem(noise.AT_ONCE, "cpu", at_once)
        assert torch.equal(uniform(1, torch.arange(5), 2, 403), whole)


def test_extreme_words_give_finite_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.tensor([[0, 1, MASK, MASK - 1]])
    monkeypatch.setattr(noise, "philox", lambda *_: tuple(words[:, i : i + 1] for i in range(4)))
    found = gumbel("philox", 0, range(1), 0, torch.zeros(1, 1, 4))
    assert found.isfinite().all() and found[0, 0, 0] == pytest.approx(33 * math.log(2), rel=1e-6)


def test_it_is_standard_gumbel_noise() -> None:
    found = gumbel("philox", 0, range(100), 1, torch.zeros(100, 40, 64, dtype=torch.float64)).flatten().sort().values
    assert found.dtype == torch.float64
    expected = torch.exp(-torch.exp(-found))
    distance = (expected - torch.linspace(0, 1, len(found), dtype=torch.float64)).abs().max()
    assert distance < 1.95 / math.sqrt(len(found))  # Kolmogorov-Smirnov at 0.1 %


def test_some_images_keep_their_noise() -> None:
    like, some = torch.zeros(5, 3, 7), torch.tensor([4, 0])
    for kind in ("mt19937", "philox"):
        whole = gumbel(kind, 1, range(10, 15), 2, like)
        assert torch.equal(gumbel(kind, 1, taken(kind, range(10, 15), some), 2, like[:2]), whole[some])
        twice = taken(kind, taken(kind, range(10, 15), some), torch.tensor([1]))
        assert torch.equal(gumbel(kind, 1, twice, 2, like[:1]), whole[:1])
