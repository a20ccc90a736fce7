"""A slow, obvious implementation of what a policy means.

It computes every token of every row, keeps every key and value for ever, and expresses each technique by masks and
by overwriting. Nothing is skipped, so nothing can be skipped wrongly; the fast path has to give the same logits.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.accel.ranking import ranked
from varsearch.models.image_model import ImageModel
from varsearch.policy import Policy, Quantization, Selection


def fake_quantize(x: Tensor, bits: int, group: int | None = None) -> Tensor:
    limit = 2 ** (bits - 1) - 1
    groups = x.unflatten(-1, (-1, group or x.shape[-1]))
    step = groups.abs().amax(-1, keepdim=True) / limit
    step = torch.where(step == 0, 1.0, step)
    return (torch.clamp(torch.round(groups / step), -limit, limit) * step).flatten(-2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, how: Quantization | None) -> Tensor:
    if how is not None:
        weight = fake_quantize(weight, how.bits, how.group)
        if how.activation_bits:
            x = fake_quantize(x, how.activation_bits)
    return F.linear(x, weight, bias)


class Oracle:
    """Runs `policy` on `model` for `labels`, choosing `tokens` at every scale; `logits[k]` are the guided logits."""

    def __init__(
        self, model: ImageModel, policy: Policy, labels: Tensor, tokens: list[Tensor], guidance: float
    ) -> None:
        self.model, self.policy = model, policy
        self.sizes = model.spec.scales
        self.cells = [(k, y, x) for k, (h, w) in enumerate(self.sizes) for y in range(h) for x in range(w)]
        self.n, self.total = len(labels), len(self.cells)
        self.logits: dict[int, Tensor] = {}
        with torch.no_grad():
            self._run(labels, tokens, guidance)

    def _run(self, labels: Tensor, tokens: list[Tensor], guidance: float) -> None:
        var, quantizer, spec = self.model.transformer, self.model.tokenizer.quantize, self.model.spec
        rows, heads, depth = 2 * self.n, spec.n_heads, spec.n_layers
        self.k = torch.zeros(depth, rows, heads, self.total, spec.head_dim, dtype=var.head.weight.dtype)
        self.v = torch.zeros_like(self.k)
        self.alive = torch.zeros(depth, rows, heads, self.total, dtype=torch.bool)
        self.branch_output: dict[tuple[int, str, int], Tensor] = {}
        cond = var.class_emb(torch.cat((labels, torch.full_like(labels, var.config.classes))))
        f_hat = quantizer.empty(self.n)
        run = [k for k, s in enumerate(self.policy.scales) if s.run]
        for k in run:
            pooled = quantizer.pool(f_hat, k).flatten(2).mT if k else None
            x = var.embed(pooled, cond, k)
            for layer in range(depth):
                x = self._block(x, cond, layer, k, last=k == run[-1])
            logits = var.logits(x, cond)
            strength = 0.0 if self.policy.scales[k].guidance == "off" else guidance * k / (len(self.sizes) - 1)
            self.logits[k] = (1 + strength) * logits[: self.n] - strength * logits[self.n :]
            f_hat = quantizer.accumulate(f_hat, quantizer.embedding(tokens[k]), k)
        self.f_hat = f_hat

    def _block(self, x: Tensor, cond: Tensor, layer: int, k: int, last: bool) -> Tensor:
        var, block = self.model.transformer, self.model.transformer.blocks[layer]
        if var.config.shared_adaln:
            m = (block.ada_gss + var.shared_ada_lin(cond).unflatten(-1, (1, 6, -1))).unbind(2)
        else:
            ada = block.ada_lin[1]
            how = self.policy.layers[layer].weights.ada
            m = linear(F.silu(cond), ada.weight, ada.bias, how).unflatten(-1, (1, 6, -1)).unbind(2)
        g1, g2, s1, s2, b1, b2 = m
        if layer in self.policy.scales[k].shared_attention:
            g1, s1, b1 = (torch.cat((t[: self.n], t[: self.n])) for t in (g1, s1, b1))
        x = x + self._branch("attn", x, layer, k, lambda x, kept: self._attention(x, kept, layer, k, last, g1, s1, b1))
        return x + self._branch("ffn", x, layer, k, lambda x, kept: self._ffn(x, layer, g2, s2, b2))

    def _branch(self, name: str, x: Tensor, layer: int, k: int, fn) -> Tensor:  # noqa: ANN001
        scale = self.policy.scales[k]
        shared = layer in (scale.shared_attention if name == "attn" else scale.shared_ffn)
        if shared:
            x = torch.cat((x[: self.n], x[: self.n]))
        kept = torch.ones(x.shape[:2], dtype=torch.bool)
        if self.policy.prunes(k, layer):
            score = (x - x.mean(1, keepdim=True)).square().sum(-1)
            count = math.ceil(scale.tokens.keep * x.shape[1] - 1e-9)
            kept = torch.zeros_like(kept).scatter(1, score.argsort(1, descending=True)[:, :count], True)
        y = fn(x, kept)
        if self.policy.prunes(k, layer):
            source = self.policy.restore_scale(k, layer)
            past = self.branch_output[layer, name, source].mT.unflatten(2, self.sizes[source])
            restored = F.adaptive_avg_pool2d(past, self.sizes[k]).flatten(2).mT
            y = torch.where(kept[..., None], y, restored)
        if shared:
            y = torch.cat((y[: self.n], y[: self.n]))
        self.branch_output[layer, name, k] = y
        return y

    def _ffn(self, x: Tensor, layer: int, gate: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ffn, w = self.model.transformer.blocks[layer].ffn, self.policy.layers[layer].weights
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        h = F.gelu(linear(h, ffn.fc1.weight, ffn.fc1.bias, w.fc1), approximate="tanh")
        return linear(h, ffn.fc2.weight, ffn.fc2.bias, w.fc2) * gate

    def _attention(
        self, x: Tensor, kept: Tensor, layer: int, k: int, last: bool, gate: Tensor, scale: Tensor, shift: Tensor
    ) -> Tensor:
        attn, w = self.model.transformer.blocks[layer].attn, self.policy.layers[layer].weights
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        bias = torch.cat((attn.q_bias, attn.zero_k_bias, attn.v_bias))
        q, key, v = (
            (linear(h, attn.mat_qkv.weight, None, w.qkv) + bias)
            .unflatten(-1, (3, attn.heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        if attn.cosine:
            q = F.normalize(q, dim=-1) * attn.scale_mul_1H11.clamp(max=math.log(100)).exp()
            key = F.normalize(key, dim=-1)
        else:
            q = q * 0.25 / math.sqrt(q.shape[-1])
        here = torch.tensor([i for i, cell in enumerate(self.cells) if cell[0] == k])
        self.k[layer, :, :, here], self.v[layer, :, :, here] = key, v
        self.alive[layer, :, :, here] = kept[:, None].expand(-1, attn.heads, -1)
        ranked = self._ranked(layer, k, q, kept, here)
        attended = self._best(layer, k, ranked, self.policy.layers[layer].kv.attended(k, attn.heads))
        seen = self._window(layer, k, here) & attended[:, :, None]
        product = (q @ self.k[layer].mT).masked_fill(~seen, -torch.inf)
        y = product.softmax(-1).nan_to_num(0.0) @ self.v[layer]
        if not last:
            self._evict(layer, k, ranked, here)
        return linear(y.transpose(1, 2).flatten(2), attn.proj.weight, attn.proj.bias, w.proj) * gate

    def _window(self, layer: int, k: int, here: Tensor) -> Tensor:
        heads = self.model.spec.n_heads
        seen = torch.ones(heads, len(here), self.total, dtype=torch.bool)
        window = self.policy.layers[layer].attention.window
        for head, radius in enumerate(window[k] if window else ()):
            if radius is None:
                continue
            for i, query in enumerate(here.tolist()):
                for j, (scale, y, x) in enumerate(self.cells):
                    place = [
                        math.floor(
                            (self.cells[query][1 + axis] + 0.5) / self.sizes[k][axis] * self.sizes[scale][axis] + 1e-9
                        )
                        for axis in (0, 1)
                    ]
                    seen[head, i, j] = max(abs(place[0] - y), abs(place[1] - x)) <= radius
        return seen

    def _ranked(self, layer: int, k: int, q: Tensor, kept: Tensor, here: Tensor) -> list[list[list[int]]]:
        """Per row and head, the positions of all entries that exist, best first."""
        heads = q.shape[1]
        rules = self.policy.layers[layer].kv.selection or (Selection(),) * heads
        return [
            [
                ranked(
                    rules[h], self.sizes, k,
                    dict(zip(here[kept[row]].tolist(), q[row, h, kept[row]], strict=True)),
                    {t: self.k[layer, row, h, t] for t in self.alive[layer, row, h].nonzero().flatten().tolist()},
                    self.v[layer, row, h],
                )
                for h in range(heads)
            ]
            for row in range(len(q))
        ]  # fmt: skip

    def _best(self, layer: int, k: int, ranked: list[list[list[int]]], shares: tuple[float, ...]) -> Tensor:
        """Per row, head and position, whether it is among the best, of which it may have a share of all tokens."""
        seen = sum(math.prod(self.sizes[j]) for j in range(k + 1) if self.policy.scales[j].run)
        best = torch.zeros_like(self.alive[layer])
        for row, heads in enumerate(ranked):
            for head, (order, share) in enumerate(zip(heads, shares, strict=True)):
                best[row, head, order[: math.ceil(share * seen - 1e-9)]] = True
        return best

    def _evict(self, layer: int, k: int, ranked: list[list[list[int]]], here: Tensor) -> None:
        kv = self.policy.layers[layer].kv
        if kv.bits:
            stored = self.k[layer, :, :, here], self.v[layer, :, :, here]
            self.k[layer, :, :, here], self.v[layer, :, :, here] = (fake_quantize(t, kv.bits) for t in stored)
        self.alive[layer] = self._best(layer, k, ranked, kv.cached(k, self.model.spec.n_heads))
