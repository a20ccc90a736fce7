"""What attention to fewer keys costs on this CPU, next to all keys: `python -m benchmarks.sparse_attention [threads]`.

One layer's attention at the last scale of a published schedule, over all earlier scales. Each technique runs as a
policy would run it, its choice of keys included, in turn with `F.scaled_dot_product_attention` in the same process. The
share of query-key pairs that a technique computes is one minus its block sparsity. A CUDA kernel is not measured: there
is none, on a GPU the same calls run one after another.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.model import SIDES
from varsearch.accel.banded_attention import Band
from varsearch.accel.cross_scale_attention import ChosenKeys
from varsearch.accel.sparse_attention import LocalAttention, Window, tiles, visible
from varsearch.accel.token_maps import Maps
from varsearch.evaluators.speed import machine
from varsearch.kernels.attention_backends import sdpa
from varsearch.models.seams import AttentionMemory, KVView, dense_attention
from varsearch.policy import CrossScale

SINKS, HEADS, HEAD_DIM, ROUNDS = 5, 4, 64, 7
Technique = tuple[str, float, Callable[[], Tensor], Callable[[], Tensor]]
"""Name, share of pairs computed, the technique, and its definition by a mask."""


class Layer:
    """Queries of the last of `SIDES[:n_scales]`, and complete keys and values."""

    def __init__(self, n_scales: int) -> None:
        self.maps = Maps(tuple((side, side) for side in SIDES[:n_scales]), tuple(range(n_scales)), n_scales - 1)
        generator = torch.Generator().manual_seed(0)
        length, n_keys = SIDES[n_scales - 1] ** 2, self.maps.n_keys
        self.q, k, v = (
            torch.randn(1, HEADS, n, HEAD_DIM, generator=generator) * factor
            for n, factor in ((length, 0.3), (n_keys, 1.0), (n_keys, 1.0))
        )
        keys = torch.arange(n_keys)[None, None]
        self.view, self.pos = KVView(k, v, (keys,)), keys[0, :, n_keys - length :]

    def dense(self) -> Tensor:
        """All keys."""
        return dense_attention(self.q, self.pos, (self.view,), AttentionMemory())

    def masked(self, seen: Tensor) -> Tensor:
        """The keys of a mask (L, S)."""
        return sdpa(self.q, self.view.k_BHSC, self.view.v_BHSC, seen)

    def local(self, name: str, rule: Window | Band) -> Technique:
        """One window or band for all heads."""
        attend = LocalAttention((rule,), self.maps)
        work = sum(len(query) * len(key) for query, key, _ in tiles(self.maps, (rule,)))
        seen = torch.from_numpy(visible(self.maps, (rule,), self.maps.query_positions(), self.maps.key_positions()))
        return (
            name,
            work / (self.q.shape[2] * self.maps.n_keys),
            lambda: attend(self.q, self.pos, self.view, AttentionMemory()),
            lambda: self.masked(seen),
        )

    def cross_scale(self, share: float, groups: int = 16) -> Technique:
        """Keys chosen per head and group, by random masses: which they are does not change the work."""
        decision = self.maps.scale - 2
        how = CrossScale(decision_scale=decision, keys=share, sink_scales=SINKS, radius=(1, 2, 3), groups=groups)
        attend = ChosenKeys(how, self.maps)
        n_seen = self.maps._replace(scale=decision).n_keys
        mass = torch.rand(1, HEADS, groups, n_seen, generator=torch.Generator().manual_seed(1))
        pairs = sum(
            (end - first) * (len(always) + attend.template.n_chosen)
            for (first, end), always in zip(attend.template.bounds, attend.template.always, strict=True)
        )
        return (
            f"cross-scale, {share:g} of the keys",
            pairs / (self.q.shape[2] * self.maps.n_keys),
            lambda: attend(self.q, self.pos, self.view, mass),
            lambda: attend.masked(self.q, self.pos, self.view, attend.choose(mass)),
        )

    def techniques(self) -> Iterator[Technique]:
        """What is measured; windows see the maps between the sinks and the last three within their own cell."""
        full = (None,) * SINKS
        local = (0,) * (self.maps.scale - SINKS - 2)
        yield self.local("windows 3, 5, 7", Window((*full, *local, 1, 2, 3)))
        yield self.local("windows 7, 9, 11", Window((*full, *local, 3, 4, 5)))
        yield self.local("windows 11, 13, 17", Window((*full, *local, 5, 6, 8)))
        for part in (32, 16, 8):
            band = tuple(max(1, side * side // part) for side in SIDES[SINKS : self.maps.scale + 1])
            yield self.local(f"bands of 1/{part}", Band((*full, *band)))
        for share in (0.1, 0.2, 0.4):
            yield self.cross_scale(share)


def seconds(fn: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    print(f"{machine(torch.device('cpu'))}; {HEADS} heads of {HEAD_DIM}, float32, median of {ROUNDS} rounds")
    print("last map  technique                     sparsity  dense ms  sparse ms  ratio")
    for n_scales in (SIDES.index(32) + 1, len(SIDES)):
        layer = Layer(n_scales)
        for name, share, fn, definition in layer.techniques():
            error = (fn() - definition()).abs().max().item()
            if not error < 1e-4:
                raise RuntimeError(f"{name} is wrong by {error:.1e}")
            rounds = [(seconds(layer.dense), seconds(fn)) for _ in range(ROUNDS)]
            dense, sparse = (statistics.median(times) for times in zip(*rounds, strict=True))
            ratio = statistics.median(a / b for a, b in rounds)
            side = f"{SIDES[n_scales - 1]}x{SIDES[n_scales - 1]}"
            print(
                f"{side:9s} {name:28s} {1 - share:8.1%} {1e3 * dense:9.1f} {1e3 * sparse:10.1f} {ratio:5.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
