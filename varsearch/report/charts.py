"""One engine for all charts: matplotlib draws, and an SVG in a page follows the reader's light or dark colours.

A chart is drawn once, in the light colours of `COLOURS`. In a page each of them becomes a variable of the style sheet,
so that one drawing serves light, dark and paper. Files have the light colours on white.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.etree.ElementTree import Element, fromstring, tostring

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.figure import Figure, FigureBase

COLOURS = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "soft": "#59636e",
    "rule": "#d5dae0",
    "dot": "#9aa4af",
    "front": "#0072b2",
    "more": "#d55e00",
    "baseline": "#b34700",
}
"""Names of the style sheet's variables, and what they are on white paper; no two are equal."""

DPI = 72
"""Dots per inch of a figure: a point is a pixel at the natural size."""

FONT = 11
STYLE = {
    "svg.fonttype": "none",  # words stay words, which readers can select and search
    "svg.hashsalt": "varsearch",  # the same chart gives the same text
    "font.size": FONT,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["rule"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "legend.frameon": False,
}


class Tip(NamedTuple):
    """What a pointer on a part of a chart reads, and where a click leads."""

    text: str
    link: str


@dataclass
class Tips:
    """Tips of the parts of one figure."""

    found: list[Tip] = field(default_factory=list)

    def add(self, artist: Artist, text: str, link: str = "") -> None:
        """Gives `artist` a tip and, if there is one, a link such as "#trial-3"."""
        artist.set_gid(f"tip-{len(self.found)}")
        self.found.append(Tip(text, link))


Draw = Callable[[FigureBase, Tips], None]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart that is drawn when it is asked for.

    Args:
        label: the content in one sentence, for readers who do not see it.
        width: pixels at the natural size.
        height: the same.
        draw: draws on an empty figure of this size.
    """

    label: str
    width: float
    height: float
    draw: Draw

    def figure(self) -> Figure:
        """The chart as matplotlib knows it."""
        return self._drawn()[0]

    def inline(self) -> Markup:
        """An SVG for an HTML page, whose style sheet has the variables of `COLOURS`."""
        root = self._svg()
        del root.attrib["width"], root.attrib["height"]
        root.set("style", f"--natural:{self.width:.0f}px")
        names = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
        pattern = "|".join(names)
        return Markup(re.sub(pattern, lambda match: names[match[0]], tostring(root, "unicode")))

    def svg(self) -> bytes:
        """An SVG file in light colours on white."""
        root = self._svg()
        root.set("xmlns", "http://www.w3.org/2000/svg")
        background = Element("rect", width="100%", height="100%", fill=COLOURS["paper"])
        root.insert(0, background)
        return tostring(root, "utf-8", xml_declaration=True)

    def png(self, zoom: float = 2.0) -> bytes:
        """A PNG file in light colours on white."""
        file = io.BytesIO()
        figure, _ = self._drawn()
        with rc_context(STYLE):
            figure.savefig(file, format="png", dpi=DPI * zoom, facecolor=COLOURS["paper"])
        return file.getvalue()

    def _drawn(self) -> tuple[Figure, Tips]:
        tips = Tips()
        with rc_context(STYLE):
            figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI)
            self.draw(figure, tips)
        return figure, tips

    def _svg(self) -> Element:
        figure, tips = self._drawn()
        file = io.BytesIO()
        with rc_context(STYLE):
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        linked = any(tip.link for tip in tips.found)
        tree = fromstring(file.getvalue())
        shapes = {e.get("id", ""): e for e in tree.iter("{http://www.w3.org/2000/svg}path")}
        root = _plain(tree, tips, shapes)
        size = {"width": f"{self.width:.0f}", "height": f"{self.height:.0f}"}
        # Assistive technology takes a chart as one image, unless parts of it are links.
        root.attrib = {"viewBox": root.attrib["viewBox"], **size, "role": "group" if linked else "img"}
        root.set("aria-label", self.label)
        return root


def beside(charts: Sequence[Chart], label: str, caption: str = "") -> Chart:
    """Several charts of one height as one, from left to right, above a caption."""
    widths, height = [chart.width for chart in charts], charts[0].height
    foot = 1.6 * FONT * (caption.count("\n") + 1.5)

    def draw(figure: FigureBase, tips: Tips) -> None:
        rows = figure.subfigures(2, 1, height_ratios=(height, foot), hspace=0, squeeze=False)
        parts = rows[0, 0].subfigures(1, len(charts), width_ratios=widths, wspace=0, squeeze=False)
        for chart, part in zip(charts, parts[0], strict=True):
            chart.draw(part, tips)
        rows[1, 0].text(FONT / sum(widths), 0.5, caption, color=COLOURS["soft"], va="center")

    return Chart(label, sum(widths), height + foot, draw)


def _plain(element: Element, tips: Tips, shapes: dict[str, Element]) -> Element:
    """Matplotlib's tree without namespaces, identifiers and clip paths, and with tips and links.

    A page may hold many charts, whose identifiers would meet. So each use of a marker becomes a copy of its shape.
    """
    made = Element(_local(element.tag))
    made.text = element.text
    for name, value in element.attrib.items():
        if name not in ("id", "clip-path") and not name.startswith("{"):
            made.set(name, value)
    for child in element:
        tag = _local(child.tag)
        if tag in ("defs", "metadata", "style"):
            continue
        if tag == "use":
            made.append(_copied(child, shapes))
            continue
        part = _plain(child, tips, shapes)
        found = re.fullmatch(r"tip-(\d+)", child.get("id", ""))
        made.append(_told(part, tips.found[int(found[1])]) if found else part)
    return made


def _copied(use: Element, shapes: dict[str, Element]) -> Element:
    name = next(value for key, value in use.attrib.items() if _local(key) == "href")
    style = f"{shapes[name[1:]].get('style', '')};{use.get('style', '')}"
    place = f"translate({use.get('x', '0')} {use.get('y', '0')})"
    return Element("path", d=shapes[name[1:]].get("d", ""), style=style, transform=place)


def _told(part: Element, tip: Tip) -> Element:
    """A part with its tip, inside its link if it has one."""
    part.set("data-tip", tip.text)
    title = Element("title")
    title.text = tip.text
    part.insert(0, title)
    if not tip.link:
        return part
    link = Element("a", {"href": tip.link, "aria-label": tip.text})
    link.append(part)
    return link


def _local(name: str) -> str:
    return name.rpartition("}")[2]
