"""The oracle's refiner: it keeps nothing, and reads all scales again for each one that it runs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from varsearch.models.var import VAR


def refined_logits(var: VAR, labels: Tensor, inputs: list[tuple[int, Tensor | None]]) -> Tensor:
    """Logits of the last of the scales whose pooled estimates are `inputs`, conditional rows first."""
    cond = var.class_emb(torch.cat((labels, torch.full_like(labels, var.config.classes))))
    x = torch.cat([var.embed(pooled, cond, k) for k, pooled in inputs], dim=1)
    scale = torch.tensor([k for k, _ in inputs for _ in range(math.prod(var.config.scales[k]))])
    later = scale[:, None] < scale
    for block in var.layers:
        g1, g2, s1, s2, b1, b2 = block.ada_lin(cond).unflatten(-1, (1, 6, -1)).unbind(2)
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + s1) + b1
        attn = block.attn
        bias = torch.cat((attn.q_bias, attn.zero_k_bias, attn.v_bias))
        q, k, v = (attn.mat_qkv(h) + bias).unflatten(-1, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4)
        q = F.normalize(q, dim=-1) * attn.scale_mul_1H11.clamp(max=math.log(100)).exp()
        p = (q @ F.normalize(k, dim=-1).mT).masked_fill(later, -torch.inf).softmax(-1)
        x = x + attn.proj((p @ v).transpose(1, 2).flatten(2)) * g1
        x = x + block.ffn(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + s2) + b2) * g2
    return var.logits(x, cond)[:, scale == inputs[-1][0]]
