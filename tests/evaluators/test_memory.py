from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from varsearch.evaluators.memory import StorageTracker

KB = 1024


def zeros(kilobytes: int) -> Tensor:
    return torch.zeros(kilobytes * KB // 4)


def test_the_peak_is_the_most_that_lived_at_once() -> None:
    tracker = StorageTracker([])
    with tracker:
        a = zeros(8)
        b = a + 1
        del a
        c = b * 2
        del b, c
        zeros(4)
    assert tracker.peak_bytes == 16 * KB


def test_views_and_work_in_place_are_free() -> None:
    tracker = StorageTracker([])
    with tracker:
        a = zeros(8)
        a.view(2, -1)[0].add_(1).mul_(2)
        a.copy_(a.expand_as(a))
    assert tracker.peak_bytes == 8 * KB


def test_a_view_keeps_the_whole_storage() -> None:
    tracker = StorageTracker([])
    with tracker:
        part = zeros(8)[:1]
        zeros(4)
        assert part.shape == (1,)
    assert tracker.peak_bytes == 12 * KB


def test_only_weights_that_are_read_count() -> None:
    used, unused = nn.Linear(16, 16), nn.Linear(16, 16)
    x = torch.ones(1, 16)
    tracker = StorageTracker([*used.parameters(), *unused.parameters()])
    with torch.inference_mode(), tracker:
        used(x)
    assert tracker.weight_bytes == 4 * (16 * 16 + 16)
    assert tracker.peak_bytes == tracker.weight_bytes + x.nbytes + 4 * 16


def test_a_weight_that_is_read_through_a_view_is_still_one_weight() -> None:
    weight = torch.ones(4, KB)
    tracker = StorageTracker([weight])
    with tracker:
        weight.t()[:2].sum()
    assert tracker.weight_bytes == weight.nbytes
    assert tracker.peak_bytes == weight.nbytes + 4


def test_a_reused_address_is_a_new_storage() -> None:
    tracker = StorageTracker([])
    with tracker:
        for _ in range(50):
            # The index is made outside the tracker's sight, so it is first seen as an argument.
            zeros(1)[[0, 1, 2]]
        a, b = zeros(8), zeros(8)
        assert len(a) == len(b)
    assert tracker.peak_bytes == 16 * KB


def test_composites_are_split_as_eager_execution_does() -> None:
    """Bicubic resizing is one kernel; its decomposition for compilers has dozens of temporaries."""
    x = torch.ones(1, 4, 8, 8)
    tracker = StorageTracker([x])
    with torch.inference_mode(), tracker:
        F.interpolate(x, size=(16, 16), mode="bicubic")
    assert tracker.peak_bytes == x.nbytes + 4 * x.nbytes


def test_temporaries_inside_composites_are_seen() -> None:
    """Keys that are not contiguous are for no fused kernel, and the scores of 64 x 64 pairs exist."""
    x = torch.ones(1, 1, 4, 64).mT
    tracker = StorageTracker([x])
    with torch.inference_mode(), tracker:
        F.scaled_dot_product_attention(x, x, x)
    assert tracker.peak_bytes >= x.nbytes + 2 * 64 * 64 * 4


def test_fake_tensors_are_counted_like_real_ones() -> None:
    def work() -> Tensor:
        x = torch.ones(64, 64)
        return F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]).softmax(-1)

    real, fake = StorageTracker([]), StorageTracker([])
    with torch.inference_mode(), real:
        work()
    with FakeTensorMode(), torch.inference_mode(), fake:
        work()
    assert fake.peak_bytes == real.peak_bytes >= 3 * 64 * 64 * 4
