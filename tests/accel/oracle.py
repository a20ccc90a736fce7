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
from tests.accel.recomputed import refined_logits
from varsearch.models.image_model import ImageModel
from varsearch.policy import Decision, Policy, Quantization, Selection


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
        self.entropy: dict[tuple[int, int], Tensor] = {}
        self.estimates = [torch.zeros_like(quantizer.empty(self.n))]
        self.mass: dict[int, Tensor] = {}
        self.residual: dict[int, Tensor] = {}
        cond = var.class_emb(torch.cat((labels, torch.full_like(labels, var.config.classes))))
        f_hat = quantizer.empty(self.n)
        self.after: dict[int, int] = {}
        run = [k for k, s in enumerate(self.policy.scales) if s.run]
        inputs: list[tuple[int, Tensor | None]] = []
        for k in run:
            inputs.append((k, quantizer.pool(f_hat, k).flatten(2).mT if k else None))
            if self.policy.refined(k):
                logits = refined_logits(self.model.sibling(self.policy.refiner.model).transformer, labels, inputs)
            else:
                x = var.embed(inputs[-1][1], cond, k)
                for layer in range(depth):
                    x = self._block(x, cond, layer, k, last=k == run[-1])
                logits = var.logits(x, cond)
            strength = 0.0 if self.policy.scales[k].guidance == "off" else guidance * k / (len(self.sizes) - 1)
            self.logits[k] = (1 + strength) * logits[: self.n] - strength * logits[self.n :]
            f_hat = quantizer.accumulate(f_hat, quantizer.embedding(tokens[k]), k)
            self.estimates.append(f_hat)
            self.after[k] = len(self.estimates) - 1

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
            tokens = scale.tokens
            share = tokens.layer_keep[layer - tokens.first_layer] if tokens.layer_keep else tokens.keep
            count = math.ceil(share * x.shape[1] - 1e-9)
            score = self._score(x, layer, k)
            kept = torch.zeros_like(kept).scatter(
                1, score.argsort(dim=1, descending=True, stable=True)[:, :count], True
            )
        y = fn(x, kept)
        if self.policy.prunes(k, layer):
            source = self.policy.restore_scale(k, layer)
            past = self.branch_output[layer, name, source].mT.unflatten(2, self.sizes[source])
            restored = F.adaptive_avg_pool2d(past, self.sizes[k]).flatten(2).mT
            y = torch.where(kept[..., None], y, restored)
        if shared:
            y = torch.cat((y[: self.n], y[: self.n]))
            if name == "attn":
                self.entropy[layer, k] = self.entropy[layer, k][: self.n].repeat(2, 1)
        self.branch_output[layer, name, k] = y
        return y

    def _score(self, x: Tensor, layer: int, k: int) -> Tensor:
        if self.policy.scales[k].tokens.score == "distance":
            return (x - x.mean(1, keepdim=True)).square().sum(-1)
        source = self.policy.restore_scale(k, layer)
        grid = self.entropy[layer, source].unflatten(1, (1, *self.sizes[source]))
        return -F.interpolate(grid, size=self.sizes[k], mode="bilinear", align_corners=False).flatten(1)

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
        attended = self._best(layer, k, ranked, self.policy.layers[layer].kv.attended(k, attn.heads))[:, :, None]
        product = q @ self.k[layer].mT

        def attend(seen: Tensor) -> Tensor:
            return product.masked_fill(~(seen & attended), -torch.inf).softmax(-1).nan_to_num(0.0)

        p = attend(torch.ones_like(attended))
        self.entropy[layer, k] = -(p * p.clamp(min=1e-300).log()).sum(-1).mean(1)
        y = attend(self._local(layer, k, here)) @ self.v[layer]
        how = self.policy.layers[layer].attention.cross_scale
        if how and k == how.decision_scale:
            groups = self._groups(k, how.groups)
            dense = attend(torch.ones_like(attended))
            self.mass[layer] = torch.stack([dense[:, :, group].sum(2) for group in groups], dim=2)
            self.residual[layer] = y - attend(self._chosen(layer, k, here)) @ self.v[layer]
            if layer in self.policy.scales[k].shared_attention:
                for kept in (self.mass, self.residual):
                    kept[layer] = torch.cat((kept[layer][: self.n], kept[layer][: self.n]))
        elif how and k > how.decision_scale:
            y = attend(self._chosen(layer, k, here)) @ self.v[layer]
            if how.residual:
                past = self.residual[layer].mT.flatten(1, 2).unflatten(2, self.sizes[how.decision_scale])
                fine = F.interpolate(past, size=self.sizes[k], mode="bilinear", align_corners=False)
                y = y + fine.flatten(2).unflatten(1, (attn.heads, -1)).mT
        if not last:
            self._evict(layer, k, ranked, here)
        return linear(y.transpose(1, 2).flatten(2), attn.proj.weight, attn.proj.bias, w.proj) * gate

    def _local(self, layer: int, k: int, here: Tensor) -> Tensor:
        heads = self.model.spec.n_heads
        seen = torch.ones(heads, len(here), self.total, dtype=torch.bool)
        sparse = self.policy.layers[layer].attention
        for rows, sees in ((sparse.window, self._in_window), (sparse.band, self._in_band)):
            for head, reach in enumerate(rows[k] if rows else ()):
                for i, query in enumerate(here.tolist()):
                    for j, (scale, _, _) in enumerate(self.cells):
                        limit = reach[scale] if isinstance(reach, tuple) and scale <= k else reach
                        if scale <= k and limit is not None and not sees(query, j, limit):
                            seen[head, i, j] = False
        return seen

    def _counterpart(self, token: int, scale: int) -> tuple[int, int]:
        k, *cell = self.cells[token]
        pairs = zip(cell, self.sizes[k], self.sizes[scale], strict=True)
        y, x = (math.floor((place + 0.5) / old * new + 1e-9) for place, old, new in pairs)
        return y, x

    def _in_window(self, query: int, key: int, radius: int) -> bool:
        scale, *cell = self.cells[key]
        return all(abs(a - b) <= radius for a, b in zip(self._counterpart(query, scale), cell, strict=True))

    def _in_band(self, query: int, key: int, width: int) -> bool:
        (k, *_), (scale, *_) = self.cells[query], self.cells[key]
        i, j = query - self._start(k), key - self._start(scale)
        return abs(i * math.prod(self.sizes[scale]) / math.prod(self.sizes[k]) - j) < width

    def _start(self, k: int) -> int:
        return sum(math.prod(size) for size in self.sizes[:k])

    def _groups(self, k: int, count: int) -> list[range]:
        tokens = math.prod(self.sizes[k])
        return [range(tokens * g // count, tokens * (g + 1) // count) for g in range(count)]

    def _chosen(self, layer: int, k: int, here: Tensor) -> Tensor:
        """What the queries of scale `k` see by the decision taken in this layer."""
        how = self.policy.layers[layer].attention.cross_scale
        decision, start = how.decision_scale, self._start(k)
        run = [j for j, scale in enumerate(self.policy.scales) if scale.run]
        later, radius = run.index(k) - run.index(decision), how.radius[k - decision]
        counterpart = {}
        for source, (j, _, _) in enumerate(self.cells[: self._start(decision + 1)]):
            if j in run:
                scale = run[run.index(j) + later]
                y, x = self._counterpart(source, scale)
                target = self._start(scale) + y * self.sizes[scale][1] + x
                if target not in counterpart.values():
                    counterpart[source] = target
        groups = self._groups(k, how.groups)
        always = [
            {
                j
                for j, (scale, _, _) in enumerate(self.cells)
                if scale in run and scale <= k
                if scale < how.sink_scales or (scale == k and any(self._in_window(start + i, j, radius) for i in group))
            }
            for group in groups
        ]
        seen = torch.zeros(*self.mass[layer].shape[:2], len(here), self.total, dtype=torch.bool)
        wanted = math.ceil(how.keys * sum(math.prod(self.sizes[j]) for j in run if j <= decision) - 1e-9)
        open_to = [{source for source, target in counterpart.items() if target not in known} for known in always]
        wanted = min(wanted, *map(len, open_to))
        for row in range(seen.shape[0]):
            for head in range(seen.shape[1]):
                for g, group in enumerate(groups):
                    mass = self.mass[layer][row, head, g]
                    there = [s for s in open_to[g] if mass[s] > 0]
                    best = sorted(there, key=lambda s: -mass[s].item())[:wanted]
                    visible = torch.tensor(sorted(always[g] | {counterpart[s] for s in best}))
                    for i in group:
                        seen[row, head, i, visible] = True
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

    def features(self, decision: Decision) -> list[float]:
        """What the first image is asked by."""
        if decision.feature == "low_entropy":
            k = decision.after
            full = [layer for layer in range(self.model.spec.n_layers) if not self.policy.prunes(k, layer)]
            entropy = sum(self.entropy[layer, k][0] for layer in full).div(len(full)).tolist()
            return [sum(h < sum(entropy) / len(entropy) for h in entropy) / len(entropy)]
        last = self.after[decision.after]
        before, after = (self._preview(self.estimates[i]) for i in (last - 1, last))
        rows, columns = after.shape
        difference = sum(abs(sobel(after, y, x) - sobel(before, y, x)) for y in range(rows) for x in range(columns)) / (
            rows * columns
        )
        high = total = 0.0
        for y, line in enumerate(torch.fft.fftshift(torch.fft.fft2(after)).abs().tolist()):
            for x, amplitude in enumerate(line):
                total += amplitude
                if math.dist((y, x), (rows // 2, columns // 2)) > int(0.4 * min(rows, columns) / 2):
                    high += amplitude
        return [difference, high / (total + 1e-6)]

    def _preview(self, f_hat: Tensor) -> Tensor:
        size = [min(8, (side + 1) // 2) for side in f_hat.shape[2:]]
        with torch.no_grad():
            return self.model.tokenizer.decode(F.adaptive_avg_pool2d(f_hat[:1], size))[0].mean(0)


def sobel(image: Tensor, y: int, x: int) -> float:
    around = F.pad(image, (1, 1, 1, 1))[y : y + 3, x : x + 3]
    kernel = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=image.dtype)
    return math.hypot(float((around * kernel).sum()), float((around * kernel.T).sum()))


def decided(
    model: ImageModel, policy: Policy, label: Tensor, tokens: list[Tensor], guidance: float
) -> tuple[Oracle, list[int]]:
    """One image: the oracle of the scales that it chooses, and the actions taken."""
    own, actions = policy.model_copy(update={"decisions": ()}), []
    oracle = Oracle(model, own, label, tokens, guidance)
    for decision in policy.decisions:
        features = oracle.features(decision)
        scores = [sum(w * f for w, f in zip(a.weights, features, strict=True)) + a.bias for a in decision.actions]
        actions.append(scores.index(max(scores)))
        if actions[-1]:
            tail = decision.actions[actions[-1]].scales
            scales = policy.scales[: decision.after + 1] + tail
            path = Policy(layers=policy.layers, scales=scales, refiner=policy.refiner)
            return Oracle(model, path, label, tokens, guidance), actions
    return oracle, actions
