"""Token pruning: a branch runs on a scale's most distinctive tokens, the rest reuse an earlier scale's output.

After FastVAR (arXiv 2503.23367): a token's score is its squared distance from the mean token of its row, taken anew
before each branch; pruned places take the branch output cached at an earlier scale, resized by area interpolation.
Rows select separately, so conditional and unconditional halves, and every image, keep their own tokens.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from varsearch.models.seams import Branch, BranchMemory, Sublayer, run_dense
from varsearch.policy import Policy, share_of
from varsearch.target import ModelSpec


def branch(policy: Policy, spec: ModelSpec, scale: int, layer: int) -> Branch:
    """The branch of `layer` at `scale`: pruned, remembered for a later pruned scale, or plain."""
    tokens, size = policy.scales[scale].tokens, spec.scales[scale]
    if tokens is not None and policy.prunes(scale, layer):
        return Pruned(share_of(tokens.keep, math.prod(size)), size)
    later = range(scale + 1, len(policy.scales))
    if any(policy.prunes(k, layer) and policy.restore_scale(k, layer) == scale for k in later):
        return Remembered(size)
    return run_dense


class Remembered:
    """Runs the branch in full and keeps its output for the pruned scales that follow."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, fn: Sublayer, x_BLD: Tensor, pos_BL: Tensor, memory: BranchMemory, n_images: int) -> Tensor:
        memory.y_BLD, memory.size = fn(x_BLD, pos_BL), self.size
        return memory.y_BLD


class Pruned:
    """Runs the branch on `count` tokens of each row and restores the others from memory."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self.count, self.size = count, size

    def __call__(self, fn: Sublayer, x_BLD: Tensor, pos_BL: Tensor, memory: BranchMemory, n_images: int) -> Tensor:
        index_BL = select(x_BLD, self.count)
        index_BLD = index_BL[..., None].expand(-1, -1, x_BLD.shape[-1])
        kept_BLD = fn(x_BLD.gather(1, index_BLD), pos_BL.expand(len(x_BLD), -1).gather(1, index_BL))
        y_BLD = restore(memory, len(x_BLD), self.size)
        return y_BLD.scatter_(1, index_BLD, kept_BLD)


def select(x_BLD: Tensor, count: int) -> Tensor:
    """Indices of each row's `count` tokens farthest from its mean token, ascending, (B, count)."""
    distance_BL = (x_BLD - x_BLD.mean(dim=1, keepdim=True)).square().sum(dim=-1)
    return distance_BL.topk(count, dim=1).indices.sort(dim=1).values


def restore(memory: BranchMemory, rows: int, size: tuple[int, int]) -> Tensor:
    """The remembered output resized to `size`, a new (rows, h * w, D) tensor.

    When guidance was shared or full then and is not now, or the reverse, conditional rows stand for the missing ones.
    """
    assert memory.y_BLD is not None, "the policy validator guarantees an earlier dense scale"
    source_BLD = memory.y_BLD[:rows]
    source_BLD = source_BLD.repeat(rows // len(source_BLD), 1, 1)
    y_BDhw = F.interpolate(source_BLD.mT.unflatten(2, memory.size), size=size, mode="area")
    return y_BDhw.flatten(2).mT.contiguous()
