"""The page in a real browser: it loads nothing, complains of nothing, and fits a phone."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Literal

import pytest
from chaos_reports.render import write
from pytest_chaos.model.campaign import summarise

from tests.reports.samples import campaign, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page is not opened")

# Chromium's own traffic is switched off, so that a request seen is one the page made.
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
]

# Contrast as WCAG 2.2 defines it (success criterion 1.4.3), of every element that has text of its
# own.
CONTRAST = """() => {
  const channel = value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => .2126 * channel(r / 255) + .7152 * channel(g / 255) + .0722 * channel(b / 255);
  const ground = element => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parse(getComputedStyle(each).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const own = element => [...element.childNodes].some(each => each.nodeType === 3 && each.textContent.trim());
  const weak = [];
  for (const element of document.querySelectorAll("body *")) {
    if (!own(element)) continue;
    const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(ground(element))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) weak.push(`${element.tagName}.${element.className}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(weak)];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start one browser for all tests of this module."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright comes with the extra 'dev' only")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Render the campaign and return the address of its page."""
    return write(summarise(campaign()), tmp_path, ["html"])["html"].as_uri()


def opened(
    browser: Browser, address: str, width: int, scheme: Literal["light", "dark"]
) -> tuple[Page, list[str], list[str]]:
    """Open the page; return it with the requests it made and the complaints it caused."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address, wait_until="networkidle")
    return page, requests, complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_loads_nothing_and_fits(
    browser: Browser, address: str, width: int, scheme: Literal["light", "dark"]
) -> None:
    """On a desk and on a phone, light and dark: only the file itself is read,
    and nothing is wider than the screen.
    """
    page, requests, complaints = opened(browser, address, width, scheme)
    assert {url for url in requests if not url.startswith("data:")} == {address}
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


@pytest.mark.parametrize("width", [1920, 1200, 1190, 700, 320])
def test_nothing_of_the_table_is_cut_off(browser: Browser, tmp_path: Path, width: int) -> None:
    """With long names and values in it, down to the last column, where the evidence is."""
    word = "unreasonably" * 6
    records = campaign()
    long = [run(kind="duplicate-delivery"), run(kind="recover:after-checkpoint", observed=word)]
    address = write(summarise(records._replace(runs=(*records.runs, *long))), tmp_path, ["html"])["html"].as_uri()
    page, _, _ = opened(browser, address, width, "light")
    table, frame = page.evaluate("(t => [t.scrollWidth, t.parentElement.clientWidth])(document.querySelector('table'))")
    assert table <= frame
    for cell in page.locator("table tbody tr:first-child > *").all():
        assert cell.evaluate("each => each.scrollWidth - each.clientWidth") <= 0
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(browser: Browser, address: str, scheme: Literal["light", "dark"]) -> None:
    """All texts, with all details open, reach the ratio of 4.5 that WCAG asks for."""
    page, _, _ = opened(browser, address, 1280, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate(CONTRAST) == []
    page.close()


def test_the_table_stays_a_table_on_a_phone(browser: Browser, address: str) -> None:
    """Rows become cards on a narrow screen, and still are rows with headers to a screen reader."""
    page, _, _ = opened(browser, address, 390, "light")
    assert page.get_by_role("columnheader", name="Pass rate").count() >= 1
    assert page.get_by_role("rowheader", name="A killed agent resumes").count() >= 1
    page.close()


def test_a_row_leads_to_its_details(browser: Browser, address: str) -> None:
    """The title of a scenario opens its details, although they were closed."""
    page, _, _ = opened(browser, address, 1280, "light")
    steps = page.get_by_text("A new process goes on")
    assert not steps.is_visible()
    page.get_by_role("link", name="A killed agent resumes").click()
    steps.wait_for(state="visible", timeout=5_000)
    page.close()


def test_a_printed_page_shows_the_details_that_are_closed_on_screen(browser: Browser, address: str) -> None:
    """On paper nothing can be unfolded, so it is unfolded already."""
    page, _, _ = opened(browser, address, 1280, "light")
    page.emulate_media(media="print")
    assert page.get_by_text("A new process goes on").is_visible()
    page.close()
