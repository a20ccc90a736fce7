"""Token pruning: a branch runs on a scale's most distinctive tokens, the rest reuse an earlier scale's output.

After FastVAR (arXiv 2503.23367): a token's score is its squared distance from the mean token of its row, taken anew
before each branch; pruned places take the branch output cached at an earlier scale, resized by area interpolation.
Rows select separately, so conditional and unconditional halves, and every image, keep their own tokens.

ToProVAR (arXiv 2602.22948) keeps the tokens of lowest attention entropy instead, and a share of its own in each layer.
A scale's entropies are known only after the attention that pruning is to save, so they are taken from the scale that
pruned places are restored from: the last one that ran this layer in full, so all its tokens have one; it is smaller
than the pruned scale and cheaper to observe; and what is kept and what is restored come from the same map. The paper
draws tokens at random with probabilities that hardly differ; here the rank decides, and the policy says how many stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from varsearch.models.seams import Branch, BranchMemory, Sublayer, run_dense
from varsearch.policy import Policy, share_of
from varsearch.target import ModelSpec


def branch(paths: Sequence[Policy], spec: ModelSpec, scale: int, layer: int) -> Branch:
    """The branch of `layer` at `scale`: pruned, remembered for a later pruned scale, or plain.

    `paths` are what the images at this scale can go through; they differ in later scales only.
    """
    policy, size = paths[0], spec.scales[scale]
    tokens = policy.scales[scale].tokens
    if tokens is not None and policy.prunes(scale, layer):
        return Pruned(kept(policy, spec, scale, layer), size, SELECT[tokens.score])
    later = range(scale + 1, len(policy.scales))
    if any(p.prunes(k, layer) and p.restore_scale(k, layer) == scale for p in paths for k in later):
        return Remembered(size)
    return run_dense


def kept(policy: Policy, spec: ModelSpec, scale: int, layer: int) -> int:
    """Number of tokens that `layer` runs on at `scale`."""
    tokens = policy.scales[scale].tokens
    share = tokens.keep_in(layer) if tokens is not None and policy.prunes(scale, layer) else 1
    return share_of(share, spec.tokens[scale])


class Remembered:
    """Runs the branch in full and keeps its output for the pruned scales that follow."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, fn: Sublayer, x_BLD: Tensor, pos_BL: Tensor, memory: BranchMemory, n_images: int) -> Tensor:
        memory.y_BLD, memory.size = fn(x_BLD, pos_BL), self.size
        return memory.y_BLD


class Pruned:
    """Runs the branch on `count` tokens of each row and restores the others from memory."""

    def __init__(self, count: int, size: tuple[int, int], select: Select) -> None:
        self.count, self.size, self.select = count, size, select

    def __call__(self, fn: Sublayer, x_BLD: Tensor, pos_BL: Tensor, memory: BranchMemory, n_images: int) -> Tensor:
        index_BL = self.select(x_BLD, memory, self.size, self.count)
        index_BLD = index_BL[..., None].expand(-1, -1, x_BLD.shape[-1])
        kept_BLD = fn(x_BLD.gather(1, index_BLD), pos_BL.expand(len(x_BLD), -1).gather(1, index_BL))
        y_BLD = restore(memory, len(x_BLD), self.size)
        return y_BLD.scatter_(1, index_BLD, kept_BLD)


Select = Callable[[Tensor, BranchMemory, tuple[int, int], int], Tensor]
"""(x_BLD, memory, size, count) -> indices of each row's tokens that stay, ascending, (B, count)."""


def farthest(x_BLD: Tensor, memory: BranchMemory, size: tuple[int, int], count: int) -> Tensor:
    """The tokens farthest from their row's mean token."""
    distance_BL = (x_BLD - x_BLD.mean(dim=1, keepdim=True)).square().sum(dim=-1)
    return distance_BL.topk(count, dim=1).indices.sort(dim=1).values


def most_concentrated(x_BLD: Tensor, memory: BranchMemory, size: tuple[int, int], count: int) -> Tensor:
    """The tokens whose places had the lowest attention entropy, bilinearly resized; of equal ones the first."""
    assert memory.entropy_BL is not None, "the lowered plan observes the scale that is restored from"
    entropy_BL = _rows(memory.entropy_BL, len(x_BLD))
    entropy_B1hw = F.interpolate(entropy_BL.unflatten(1, (1, *memory.size)), size=size, mode="bilinear")
    return entropy_B1hw.flatten(1).argsort(dim=1, stable=True)[:, :count].sort(dim=1).values


SELECT: dict[str, Select] = {"distance": farthest, "entropy": most_concentrated}


def restore(memory: BranchMemory, rows: int, size: tuple[int, int]) -> Tensor:
    """The remembered output resized to `size`, a new (rows, h * w, D) tensor."""
    assert memory.y_BLD is not None, "the policy validator guarantees an earlier dense scale"
    source_BLD = _rows(memory.y_BLD, rows)
    y_BDhw = F.interpolate(source_BLD.mT.unflatten(2, memory.size), size=size, mode="area")
    return y_BDhw.flatten(2).mT.contiguous()


def _rows(t: Tensor, rows: int) -> Tensor:
    """The first `rows` rows of what was remembered.

    When guidance was shared or full then and is not now, or the reverse, conditional rows stand for the missing ones.
    """
    t = t[:rows]
    return t.repeat(rows // len(t), *(1,) * (t.ndim - 1))
