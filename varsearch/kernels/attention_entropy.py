"""Entropy of attention in one pass over the keys, without the matrix of all pairs.

Shape suffixes: B rows, H heads, L queries, S keys, T keys of one block, C head dim. Queries come scaled.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024
"""Keys at a time."""


def attention_entropy(q_BHLC: Tensor, k_BHSC: Tensor, block: int = BLOCK) -> Tensor:
    """Entropy of each query's softmax over the keys in nats, (B, H, L), in float32 or better.

    With s a product, m the largest so far, Z the sum of exp(s - m) and E that of exp(s - m) (s - m), the entropy is
    log Z - E / Z. When m grows by d, Z shrinks by the factor exp(-d) and E becomes exp(-d) (E - d Z). Algorithm 2 of
    ToProVAR (arXiv 2602.22948) leaves d Z out, which is wrong whenever a query's largest product is in a later block.
    """
    q_BHLC = q_BHLC.to(torch.promote_types(q_BHLC.dtype, torch.float32))
    # Any product bounds the largest from below; starting at the first key's keeps everything finite.
    top = (q_BHLC * k_BHSC[:, :, :1]).sum(-1, keepdim=True)
    z = e = torch.zeros_like(top)
    for k_BHTC in k_BHSC.split(block, dim=2):
        product_BHLT = q_BHLC @ k_BHTC.to(q_BHLC).mT
        higher = torch.maximum(top, product_BHLT.amax(-1, keepdim=True))
        shift, top = top - higher, higher
        weight_BHLT = product_BHLT.sub_(top).exp()
        e = shift.exp() * (e + shift * z) + (weight_BHLT * product_BHLT).sum(-1, keepdim=True)
        z = shift.exp() * z + weight_BHLT.sum(-1, keepdim=True)
    return (z.log() - e / z).squeeze(-1)
