"""The page as Chromium shows it: silent, alone, as narrow as a phone, legible in both colour schemes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser
from pages import MARKUP, every_kind, page

pytestmark = pytest.mark.browser
TITLE = "11 of 12 checks did not pass · lmccheck"
OVERFLOWING = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('.skip') &&
  e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 200))"""
OPEN = "document.querySelectorAll('details').forEach(e => e.open = true)"
OVERLAPS = """(() => { const found = [];
  for (const plot of document.querySelectorAll('.plot')) {
    const marks = [...plot.querySelectorAll('.mid, .tick')].map(e => [e.textContent, e.getBoundingClientRect()]);
    for (const [a, one] of marks) for (const [b, two] of marks)
      if (a < b && one.left < two.right && two.left < one.right && one.top < two.bottom && two.top < one.bottom)
        found.push([plot.id, a, b]);
  } return found; })()"""
UNLIKE = """(() => { const found = [];
  for (const figure of document.querySelectorAll('figure')) for (const key of figure.querySelectorAll('.legend line')) {
    const drawn = figure.querySelector('.plot .' + key.classList[0]);
    const [one, two] = [key, drawn].map(e => e && getComputedStyle(e)).map(s => s && [s.stroke, s.strokeDasharray]);
    if (JSON.stringify(one) !== JSON.stringify(two)) found.push([key.classList[0], one, two]);
  } return found; })()"""
FAINT = "getComputedStyle(document.querySelector('.plot .grid')).stroke"
CONTRAST = """(() => {
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = rgb => { const [r, g, b] = rgb.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll('h1, .tag, .soft, dt, figcaption, .plot text, p, li')].map(e => {
    const style = getComputedStyle(e), ink = light(e.closest('.plot') ? style.fill : style.color);
    return [(Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05), e.outerHTML.slice(0, 120)];
  }).sort((a, b) => a[0] - b[0])[0]; })()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    file: Path = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page(every_kind()), encoding="utf-8")
    return file.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_silent_alone_and_fits(browser: Browser, address: str, width: int, scheme: str) -> None:
    """No message of the console, no request but for itself, nothing wider than the window, everything opened or not."""
    browser.seen.clear()
    browser.show(address, width, scheme)
    assert browser.value("document.title") == TITLE
    for opened in (False, True):
        if opened:
            browser.value(OPEN)
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value(OVERFLOWING) == []
        assert browser.value(OVERLAPS) == []
    requests = {request["request"]["url"] for request in browser.events("Network.requestWillBeSent")}
    assert {url for url in requests if not url.startswith("data:")} == {address}
    for kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
        assert browser.events(kind) == []
    assert browser.value(UNLIKE) == []  # a line is drawn as the legend has it
    assert browser.value(FAINT) == {"light": "rgb(226, 226, 222)", "dark": "rgb(48, 52, 58)"}[scheme]
    contrast, where = browser.value(CONTRAST)
    assert contrast >= 4.5, where


def test_names_that_are_markup_stay_text(browser: Browser, address: str) -> None:
    """Nothing of them became an element; the first heading shows them letter by letter."""
    browser.show(address, 1280)
    assert browser.value("document.querySelectorAll('script, img, [onerror]').length") == 0
    assert browser.value("document.querySelector('article h3[id]').firstChild.textContent.trim()") == MARKUP


def test_the_keyboard_reaches_what_can_be_opened(browser: Browser, address: str) -> None:
    """The first stop leads past the list; each summary is a stop, and one that has the focus shows it."""
    browser.show(address, 1280)
    press = {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
    browser.call("Input.dispatchKeyEvent", type="keyDown", **press)
    assert browser.value("document.activeElement.className") == "skip"
    assert browser.value("document.activeElement.getBoundingClientRect().left") >= 0
    browser.value("document.querySelector('details.check > summary').focus({focusVisible: true})")
    assert browser.value("document.activeElement.tagName") == "SUMMARY"
    assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_print_shows_what_is_folded(browser: Browser, address: str) -> None:
    """What passed is on paper with its drawing, and nothing is wider than the sheet."""
    browser.show(address, 700)
    plot = "document.querySelector('details.check .plot')"
    assert browser.value(f"{plot}.getClientRects().length") == 0 or browser.value(f"{plot}.checkVisibility()") is False
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.value(f"{plot}.getBoundingClientRect().height") > 0
        assert browser.value("document.documentElement.scrollWidth") <= 700
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
