"""A report as a real browser shows it: nothing is asked of a network, hidden, or wider than the screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import browser, needs_browser

pytestmark = [pytest.mark.service, needs_browser]

UNSEEN = """
return [...document.querySelectorAll("h1, h2, h3, figure svg, figure img, table")].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width < 20 || box.height < 8 || !e.checkVisibility({visibilityProperty: true, opacityProperty: true})
    || (e.tagName == "IMG" && !e.naturalWidth);
}).map(e => e.outerHTML.slice(0, 80));
"""
OUTSIDE = """
return [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, thead")
  && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80));
"""
PALE = """
const light = c => { const [r, g, b] = c.match(/[0-9.]+/g).map(Number).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const paper = light(getComputedStyle(document.body).backgroundColor);
const contrast = c => (Math.max(light(c), paper) + 0.05) / (Math.min(light(c), paper) + 0.05);
return [...document.querySelectorAll("p, h1, h2, h3, td, th, dt, dd, figcaption, a, svg text")]
  .filter(e => contrast(e.namespaceURI.endsWith("svg") && e.tagName == "text" ? getComputedStyle(e).fill
    : getComputedStyle(e).color) < 4.5).map(e => e.outerHTML.slice(0, 80));
"""


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_a_browser_shows_all_of_it(width: int, scheme: str, written: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as page:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        page.get(written.as_uri())
        assert page.execute_script("return innerWidth") == width
        assert page.execute_script("return document.querySelectorAll('h2').length") == 7
        assert page.execute_script(UNSEEN) == []
        assert page.execute_script(OUTSIDE) == []
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        assert page.execute_script(PALE) == []
        asked = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert [name for name in asked if not name.startswith("data:")] == []
        dark = page.execute_script("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
        assert page.get_log("browser") == []


def test_tables_sort_and_points_tell(written: Path, tmp_path: Path) -> None:
    column = "[...document.querySelectorAll('#policies ~ table tbody tr')].map(r => +r.children[3].dataset.value)"
    with browser(tmp_path) as page:
        page.get(written.as_uri())
        before = page.execute_script(f"return {column}")
        for order in (sorted(before), sorted(before, reverse=True)):
            page.execute_script(
                "[...document.querySelectorAll('#policies ~ table th button')]"
                ".find(b => b.textContent == 'speed-up').click()"
            )
            assert page.execute_script(f"return {column}") == order
        page.execute_script("document.querySelector('figure.chart a').focus()")
        told = page.execute_script("return document.querySelector('figure.chart .tip').textContent")
        assert told.startswith("trial ") and "ΔFID" in told
        assert page.get_log("browser") == []
