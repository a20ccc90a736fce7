"""Pictures of rectangles, lines and words as PNG, drawn by matplotlib in the light colours of the style sheet."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from xml.etree.ElementTree import Element

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from varsearch.report.svg import CSS, FONT, Picture

ALIGNMENT = {"start": "left", "middle": "center", "end": "right"}
Style = Mapping[str, str]


def png(picture: Picture, zoom: float = 2) -> bytes:
    """A PNG of `zoom` pixels per unit; what is neither rectangle nor line nor text is left out."""
    figure = Figure(figsize=(picture.width / 72, picture.height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, picture.width), ylim=(picture.height, 0))
    axes.set_axis_off()
    _draw(axes, picture.root, _rules(), 0.0, 0.0)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=72 * zoom)
    return file.getvalue()


def _rules() -> dict[str, Style]:
    """Class to its properties, with variables replaced."""
    text = CSS.read_text()
    values = dict(re.findall(r"(--[\w-]+): (#\w+);", text))
    text = re.sub(r"var\((--[\w-]+)\)", lambda found: values[found[1]], text)
    return {
        name: dict(re.findall(r"([\w-]+): ([^;]+);", body))
        for name, body in re.findall(r"svg \.([\w-]+) {(.*?)}", text)
    }


def _draw(axes: Axes, parent: Element, rules: Mapping[str, Style], left: float, top: float) -> None:
    for e in parent:
        style: dict[str, str] = {"fill": "#1b1f24"} if e.tag == "text" else {}
        for name in e.get("class", "").split():
            style |= rules.get(name, {})
        if e.tag == "svg":
            _draw(axes, e, rules, left + _number(e, "x"), top + _number(e, "y"))
        elif e.tag == "rect":
            _rectangle(axes, e, style, left, top)
        elif e.tag == "line":
            xs, ys = ([start + _number(e, f"{c}{i}") for i in (1, 2)] for c, start in (("x", left), ("y", top)))
            axes.plot(xs, ys, color=style["stroke"], lw=float(style.get("stroke-width", 1)), solid_capstyle="butt")
        elif e.tag == "text":
            _words(axes, e, style, left, top)


def _rectangle(axes: Axes, e: Element, style: Style, left: float, top: float) -> None:
    fill, opacity = style.get("fill", "none"), float(e.get("fill-opacity", style.get("fill-opacity", "1")))
    corner, size = (left + _number(e, "x"), top + _number(e, "y")), (_number(e, "width"), _number(e, "height"))
    face = "none" if fill == "none" else (fill, opacity)
    axes.add_patch(Rectangle(corner, *size, facecolor=face, edgecolor=style.get("stroke", "none"), lw=1))


def _words(axes: Axes, e: Element, style: Style, left: float, top: float) -> None:
    size = float(style.get("font-size", f"{FONT}px").removesuffix("px"))
    halo = [withStroke(linewidth=float(style["stroke-width"]), foreground=style["stroke"])] if "stroke" in style else []
    axes.text(
        left + _number(e, "x"), top + _number(e, "y"), e.text or "", size=size, color=style["fill"],
        ha=ALIGNMENT[e.get("text-anchor", "start")], va="baseline", path_effects=halo,
        weight="bold" if "font-weight" in style else "normal",
    )  # fmt: skip


def _number(e: Element, name: str) -> float:
    return float(e.get(name, "0"))
