"""Charts of a policy: work left by layer and scale, bits by layer and linear, cache by layer and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.patches import Rectangle

from varsearch.policy import Policy
from varsearch.report.charts import COLOURS, Chart, Tips
from varsearch.report.work import Shares
from varsearch.space.settings import KINDS, settings_of
from varsearch.target import ModelSpec

TOP, SIDE, ROW, GAP = 46.0, 34.0, 26.0, 12.0
"""Pixels above the cells, left of them, of a row, and after the last one."""

CHARACTER = 8.0
"""Pixels that a character of a title takes at most."""

SHADE = 0.5
"""Opacity of a cell where nothing is left; the words on it must stay legible."""


def policy_charts(policy: Policy, spec: ModelSpec, work: Shares) -> list[Chart]:
    """Three charts with a row per layer: work over scales, bits of linears, cache kept by heads."""
    return [heat_map(policy, work), bits(policy, spec), heads(policy, spec)]


def techniques(policy: Policy, layer: int, scale: int) -> str:
    """Letters of the techniques that act on a layer at a scale, see `SettingKind.letter`."""
    letters = _letters(policy)[layer][scale]
    # A skipped scale has nothing else, and one of the refiner nothing of the model's own layers.
    return "S" if "S" in letters else "".join(x for x in letters if x in "Rg" or "R" not in letters)


@lru_cache(64)
def _letters(policy: Policy) -> list[list[str]]:
    """The letters of all settings, by layer and scale, in alphabetical order."""
    n_layers, n_scales = len(policy.layers), len(policy.scales)
    found: list[list[set[str]]] = [[set() for _ in range(n_scales)] for _ in range(n_layers)]
    for s in settings_of(policy):
        kind = KINDS[s.kind]
        for i in range(n_layers) if s.layer is None else (s.layer,):
            for k in range(n_scales) if s.scale is None else (s.scale,):
                if kind.letter and kind.acts(s, i, k):
                    found[i][k].add(kind.letter[0])
    return [["".join(sorted(letters)) for letters in row] for row in found]


def _meanings() -> dict[str, str]:
    letters = dict(kind.letter for kind in KINDS.values() if kind.letter)
    return {letter: letters[letter] for letter in sorted(letters, key=lambda x: (x.lower(), x.isupper()))}


def caption(policy: Policy) -> str:
    """What the letters and marks in the charts of this policy mean."""
    shown = {x for i in range(len(policy.layers)) for k in range(len(policy.scales)) for x in techniques(policy, i, k)}
    parts = [f"{letter}: {meaning}" for letter, meaning in _meanings().items() if letter in shown]
    caches = [layer.kv for layer in policy.layers]
    parts += [f"q{bits}: cache in {bits} bits" for bits in sorted({kv.bits for kv in caches if kv.bits})]
    if any(kv.attention_budget for kv in caches):
        parts.append("upright mark: share of the entries that the last scale attends to")
    return (
        "; ".join(
            [
                "Rows are layers. The stronger a cell's colour, the more was saved; orange cells cost more than dense",
                *parts,
            ]
        )
        + "."
    )


def heat_map(policy: Policy, work: Shares) -> Chart:
    """Layer by scale: the share of dense's arithmetic that is left, in per cent, and letters of techniques."""
    meanings = _meanings()

    def cell(axes: Axes, tips: Tips, layer: int, scale: int) -> None:
        share, letters = work[layer][scale], techniques(policy, layer, scale)
        runs = share is not None and letters[:1] not in ("R", "S")
        words = f"{share:.0%} of dense's arithmetic" if runs else "not run by this layer"
        words += "".join(f"; {meanings[letter]}" for letter in letters)
        saved = 1.0 - (share or 0.0) if runs or letters[:1] == "S" else 0.0
        _shade(axes, tips, (layer, scale), saved, f"layer {layer}, scale {scale}: {words}")
        if runs:
            axes.text(scale + 0.1, layer + 0.5, f"{100 * (share or 0.0):.0f}", va="center")
        if letters:
            axes.text(scale + 0.9, layer + 0.5, letters, va="center", ha="right", weight="bold", size=9)

    columns = [f"scale {k}" for k in range(len(work[0]))]
    title = "arithmetic left by layer and scale, % of dense"
    return _sheet(title, columns, len(work), 52.0, cell)


def bits(policy: Policy, spec: ModelSpec) -> Chart:
    """Layer by linear: bits of weights, and of inputs after a slash; a dash where nothing is quantized."""
    linears = list(spec.linears)

    def cell(axes: Axes, tips: Tips, layer: int, column: int) -> None:
        name = linears[column]
        q = getattr(policy.layers[layer].weights, name)
        words, shown = "as in dense", "–"
        if q:
            words, shown = f"{q.bits}-bit weights", str(q.bits)
        if q and q.activation_bits:
            words, shown = f"{words}, {q.activation_bits}-bit inputs", f"{shown}/{q.activation_bits}"
        saved = 1 - q.bits / 16 if q else 0.0
        _shade(axes, tips, (layer, column), saved, f"layer {layer}, {name}: {words}")
        colour = COLOURS["ink" if q else "soft"]
        axes.text(column + 0.5, layer + 0.5, shown, ha="center", va="center", color=colour)

    return _sheet("bits of each linear", linears, len(policy.layers), 50.0, cell)


def heads(policy: Policy, spec: ModelSpec) -> Chart:
    """Layer by head: the share of keys and values that the last scale finds in the cache, in per cent.

    An upright mark is the share of them that the head attends to, where a budget bounds it. A number after "q" is the
    bits of the cache.
    """
    n, last = spec.n_heads, len(policy.scales) - 1
    wide = max(20.0, min(52.0, 320.0 / n))

    def cell(axes: Axes, tips: Tips, layer: int, head: int) -> None:
        kv = policy.layers[layer].kv
        kept, seen = kv.cached(max(0, last - 1), n)[head], kv.attended(last, n)[head]
        stored = f"; {kv.bits}-bit entries" if kv.bits else ""
        words = f"layer {layer}, head {head}: keeps {kept:.0%}, attends to {seen:.0%}{stored}"
        _shade(axes, tips, (layer, head), 1 - kept * (kv.bits or 16) / 16, words)
        if seen < 1:
            mark = head + 0.05 + 0.9 * seen
            axes.plot([mark, mark], [layer + 0.1, layer + 0.9], color=COLOURS["more"], linewidth=3)
        if wide >= 30:
            number = f"{100 * kept:.0f}" + (f" q{kv.bits}" if kv.bits else "")
            axes.text(head + 0.5, layer + 0.5, number, ha="center", va="center", size=9)

    title = "KV kept by each head, % before the last scale"
    return _sheet(title, [f"h{h}" for h in range(n)], len(policy.layers), wide, cell)


def _shade(axes: Axes, tips: Tips, place: tuple[int, int], saved: float, words: str) -> None:
    """A cell that is the darker the more was saved (1 is everything), in another colour where work was added."""
    colour = COLOURS["front" if saved >= 0 else "more"]
    opacity = min(1.0, abs(saved)) * SHADE
    box = Rectangle(
        (place[1] + 0.02, place[0] + 0.04),
        0.96,
        0.92,
        facecolor=(colour, opacity) if abs(saved) > 0.005 else "none",
        edgecolor=COLOURS["rule"],
    )
    axes.add_patch(box)
    tips.add(box, words)


def _sheet(
    title: str,
    columns: Sequence[str],
    rows: int,
    wide: float,
    cell: Callable[[Axes, Tips, int, int], None],
) -> Chart:
    """A chart of cells with a title, names of columns and numbers of layers."""
    width = max(SIDE + wide * len(columns), CHARACTER * len(title)) + GAP
    height = TOP + ROW * rows + GAP

    def draw(figure: FigureBase, tips: Tips) -> None:
        area = (SIDE / width, GAP / height, wide * len(columns) / width, ROW * rows / height)
        axes = figure.add_axes(area)
        axes.set_xlim(0, len(columns))
        axes.set_ylim(rows, 0)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=9, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.set_xticks([i + 0.5 for i in range(len(columns))], columns)
        axes.set_yticks([i + 0.5 for i in range(rows)], [f"L{i}" for i in range(rows)])
        figure.text(0.01, 1 - 16 / height, title, weight="bold")
        for row in range(rows):
            for column in range(len(columns)):
                cell(axes, tips, row, column)

    return Chart(title, width, height, draw)
