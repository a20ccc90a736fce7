"""Pictures as SVG trees. Colours are CSS classes (`picture.css`), so that one picture serves light, dark and paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

CSS = Path(__file__).with_name("picture.css")
FONT = 13
"""Height of the font where no class says otherwise."""

GLYPH = 0.56
"""Mean width of a character in heights of the font."""


class Picture:
    """A picture of `width` x `height` units, 1 px each at its natural size.

    Args:
        label: what it shows, in one sentence, for those who do not see it.
        linked: whether parts of it are links; without, assistive technology takes it as one image.
    """

    def __init__(self, width: float, height: float, label: str, *, linked: bool = False) -> None:
        self.width, self.height, self.label = width, height, label
        self.root = Element("svg", viewBox=f"0 0 {_number(width)} {_number(height)}", role="group" if linked else "img")
        self.root.set("aria-label", label)

    def add(
        self, tag: str, style: str = "", tip: str = "", text: str = "", within: Element | None = None, **at: float | str
    ) -> Element:
        """Adds an element; `tip` is what a pointer on it tells. Underscores in names of attributes mean hyphens."""
        made = SubElement(self.root if within is None else within, tag, {"class": style} if style else {})
        for name, value in at.items():
            made.set(name.replace("_", "-"), value if isinstance(value, str) else _number(value))
        if tip:
            SubElement(made, "title").text = tip
        if text:
            made.text = text
        return made

    def text(
        self, x: float, y: float, words: str, style: str = "", anchor: str = "start", within: Element | None = None
    ) -> None:
        """Words whose baseline starts, ends or is centred at (x, y)."""
        self.add("text", style, text=words, x=x, y=y, text_anchor=anchor, within=within)

    def inline(self) -> Markup:
        """For an HTML page, which has the style sheet and sets the size."""
        self.root.set("style", f"--natural:{_number(self.width)}px")
        return Markup(tostring(self.root, "unicode"))

    def file(self) -> bytes:
        """A file of its own, in light colours on white."""
        root = Element("svg", dict(self.root.attrib), xmlns="http://www.w3.org/2000/svg")
        root.attrib |= {"width": _number(self.width), "height": _number(self.height)}
        SubElement(root, "style").text = CSS.read_text() + f"svg{{background:#fff;font:{FONT}px sans-serif}}"
        root.extend(self.root)
        return tostring(root, "utf-8", xml_declaration=True)


def beside(pictures: Iterable[Picture], label: str, caption: str = "", gap: float = 24) -> Picture:
    """Several pictures as one, from left to right, above a caption."""
    parts = list(pictures)
    width = sum(part.width for part in parts) + gap * (len(parts) + 1)
    whole = Picture(width, max(part.height for part in parts) + 2 * gap, label)
    whole.text(gap, whole.height - gap / 2, caption, "small soft")
    left = gap
    for part in parts:
        part.root.attrib |= {"x": _number(left), "y": _number(gap)}
        part.root.attrib |= {"width": _number(part.width), "height": _number(part.height)}
        whole.root.append(part.root)
        left += part.width + gap
    return whole


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from `low` to `high` on pixels from `start` to `end`; `bend` makes the scale logarithmic, say."""

    low: float
    high: float
    start: float
    end: float
    bend: Callable[[float], float] = float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.bend(self.low), self.bend(self.high)
        return self.start + (self.bend(value) - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self, candidates: Iterable[float], gap: float) -> list[float]:
        """Those of the candidates that are on the axis and `gap` pixels apart, earlier ones first."""
        kept: list[float] = []
        for value in candidates:
            if self.low <= value <= self.high and all(abs(self(value) - self(other)) >= gap for other in kept):
                kept.append(value)
        return sorted(kept)


def steps_of(high: float) -> list[float]:
    """Round numbers from 0 to `high`, at most six of them."""
    unit = 10.0 ** math.floor(math.log10(high)) if high > 0 else 1.0
    step = next(unit * part for part in (0.1, 0.2, 0.5, 1, 2) if high / (unit * part) <= 6)
    return [i * step for i in range(int(high / step + 1e-9) + 1)]


def text_width(words: str, size: float) -> float:
    """About how wide words are in a font of this size."""
    return GLYPH * size * len(words)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
