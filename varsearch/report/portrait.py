"""A policy as pictures: work left by layer and scale, bits by layer and linear, cache by layer and head."""

from __future__ import annotations

from collections.abc import Sequence

from varsearch.policy import LINEARS, Policy
from varsearch.report.svg import Picture, text_width
from varsearch.report.work import Shares
from varsearch.target import ModelSpec

TOP, SIDE, ROW, GAP = 46.0, 34.0, 26.0, 12.0
SHADE = 0.5
"""Opacity of a cell where nothing is left; the text on it must stay legible."""

LETTERS = {
    "S": "scale skipped",
    "R": "run by the refiner",
    "g": "guidance off",
    "G": "guidance shared",
    "T": "tokens pruned",
    "W": "attention windows",
    "B": "attention bands",
    "K": "keys chosen at an earlier scale",
}


def portrait(policy: Policy, spec: ModelSpec, work: Shares) -> list[Picture]:
    """Three pictures with a row per layer: heat-map of work over scales, bits of linears, cache kept by heads."""
    return [heat_map(policy, work), bits(policy, spec), heads(policy, spec)]


def techniques(policy: Policy, layer: int, scale: int) -> str:
    """Letters of what acts on a layer at a scale, see `LETTERS`."""
    s, attention = policy.scales[scale], policy.layers[layer].attention
    if not s.run:
        return "S"
    if policy.refined(scale):
        return "R" + ("g" if s.guidance == "off" else "")
    chosen = attention.cross_scale
    acts = {
        "g": s.guidance == "off",
        "G": layer in s.shared_attention or layer in s.shared_ffn,
        "T": policy.prunes(scale, layer),
        "W": bool(attention.window) and any(r is not None for r in attention.window[scale]),
        "B": bool(attention.band) and any(r is not None for r in attention.band[scale]),
        "K": chosen is not None and scale > chosen.decision_scale,
    }
    return "".join(letter for letter, active in acts.items() if active)


def caption(policy: Policy) -> str:
    """What the letters and marks in the pictures of this policy mean."""
    shown = {x for i in range(len(policy.layers)) for k in range(len(policy.scales)) for x in techniques(policy, i, k)}
    parts = [f"{letter}: {meaning}" for letter, meaning in LETTERS.items() if letter in shown]
    caches = [layer.kv for layer in policy.layers]
    parts += [f"q{bits}: cache in {bits} bits" for bits in sorted({kv.bits for kv in caches if kv.bits})]
    if any(kv.attention_budget for kv in caches):
        parts.append("upright mark: share of the entries that the last scale attends to")
    return "; ".join(["Rows are layers. The stronger a cell's colour, the more was saved", *parts]) + "."


def heat_map(policy: Policy, work: Shares) -> Picture:
    """Layer by scale, the share of dense's arithmetic that is left, in per cent, and letters of what acts there."""
    wide = 52.0
    picture = _sheet(
        "arithmetic left by layer and scale, % of dense", [f"scale {k}" for k in range(len(work[0]))], len(work), wide
    )
    for i, row in enumerate(work):
        for k, share in enumerate(row):
            letters, x, y = techniques(policy, i, k), SIDE + k * wide, TOP + i * ROW
            known = share is not None and letters[:1] not in ("R", "S")
            told = f"layer {i}, scale {k}: " + (
                f"{share:.0%} of dense's arithmetic" if known else "not run by this layer"
            )
            told += "".join(f"; {LETTERS[letter]}" for letter in letters)
            _cell(picture, x, y, wide, 1.0 - (share or 0.0) if known or letters[:1] == "S" else 0.0, told)
            if known:
                picture.text(x + 6, y + 17.5, f"{100 * (share or 0.0):.0f}")
            picture.text(x + wide - 6, y + 17.5, letters, "small strong", "end")
    return picture


def _cell(picture: Picture, x: float, y: float, wide: float, less: float, tip: str) -> None:
    """A cell that is the darker the more was saved (1 is everything), in another colour where work was added."""
    style = "cell less" if less > 0.005 else "cell more" if less < -0.005 else "cell none"
    opacity = min(1.0, abs(less)) * SHADE
    picture.add("rect", style, tip, x=x, y=y, width=wide - 2, height=ROW - 2, rx=3, fill_opacity=f"{opacity:.2f}")


def bits(policy: Policy, spec: ModelSpec) -> Picture:
    """Layer by linear, the bits of its weights, and of its inputs after a slash; a dash where nothing is quantized."""
    linears = [name for name in LINEARS if not (name == "ada" and spec.shared_adaln)]
    wide = 44.0
    picture = _sheet("bits of each linear", linears, len(policy.layers), wide)
    for i, layer in enumerate(policy.layers):
        for j, name in enumerate(linears):
            x, y, q = SIDE + j * wide, TOP + i * ROW, getattr(layer.weights, name)
            told = f"layer {i}, {name}: " + (f"{q.bits}-bit weights" if q else "as in dense")
            told += f", {q.activation_bits}-bit inputs" if q and q.activation_bits else ""
            _cell(picture, x, y, wide, 1 - (q.bits if q else 16) / 16, told)
            shown = f"{q.bits}/{q.activation_bits}" if q and q.activation_bits else str(q.bits) if q else "–"
            picture.text(x + wide / 2 - 1, y + 17.5, shown, "" if q else "soft", "middle")
    return picture


def heads(policy: Policy, spec: ModelSpec) -> Picture:
    """Layer by head, the share of keys and values that the last scale finds in the cache, as bars.

    A vertical mark is the share of them that it attends to, where that is bounded; a number after "q" the cache's bits.
    """
    n, last = spec.n_heads, len(policy.scales) - 1
    wide = max(20.0, min(52.0, 240.0 / n))
    picture = _sheet(
        "KV kept by each head, % before the last scale", [f"h{h}" for h in range(n)], len(policy.layers), wide
    )
    for i, layer in enumerate(policy.layers):
        kept, seen = layer.kv.cached(max(0, last - 1), n), layer.kv.attended(last, n)
        stored = f"; {layer.kv.bits}-bit entries" if layer.kv.bits else ""
        for h in range(n):
            x, y, room = SIDE + h * wide, TOP + i * ROW, wide - 5
            told = f"layer {i}, head {h}: keeps {kept[h]:.0%}, attends to {seen[h]:.0%}{stored}"
            picture.add("rect", "track", told, x=x, y=y + 2, width=room, height=ROW - 7, rx=2)
            picture.add("rect", "bar", told, x=x, y=y + 2, width=room * kept[h], height=ROW - 7, rx=2)
            if seen[h] < 1:
                picture.add("line", "mark", told, x1=x + room * seen[h], x2=x + room * seen[h], y1=y, y2=y + ROW - 3)
            if wide >= 30:
                number = f"{100 * kept[h]:.0f}" + (f" q{layer.kv.bits}" if layer.kv.bits else "")
                picture.text(x + room / 2, y + 16.5, number, "small halo", "middle")
    return picture


def _sheet(title: str, columns: Sequence[str], rows: int, wide: float) -> Picture:
    """An empty picture with a title, names of columns and numbers of layers."""
    width = max(SIDE + wide * len(columns), text_width(title, 13)) + GAP
    picture = Picture(width, TOP + ROW * rows + GAP, title)
    picture.text(0, 14, title, "strong")
    for j, name in enumerate(columns):
        picture.text(SIDE + wide * (j + 0.5) - 1, TOP - 7, name, "soft small", "middle")
    for i in range(rows):
        picture.text(SIDE - 8, TOP + ROW * i + 17.5, f"L{i}", "soft small", "end")
    return picture
