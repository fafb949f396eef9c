"""The page in a real browser: it loads nothing, complains of nothing, and fits a phone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

import pytest
from chaos_reports.beside import LIBRARIES
from chaos_reports.power import with_power
from chaos_reports.render import write
from pytest_chaos.model.campaign import summarise

from tests.reports.browsing import CHROMIUM, CONTRAST, opened
from tests.reports.samples import campaign, run, write_session

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page is not opened")


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Render the campaign and return the address of its page."""
    return write(summarise(campaign()), tmp_path, ["html"])["html"].as_uri()


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


def test_the_libraries_scroll_in_their_frame(browser: Browser, tmp_path: Path) -> None:
    """Many columns of what lies beside the matrix widen no phone's page."""
    cells = {f"a family of faults {number}": "VIOLATED" for number in range(8)}
    libraries = {"rows": [{"library": "a" * 60, "cells": cells, "note": "word " * 30}]}
    (tmp_path / LIBRARIES).write_text(json.dumps(libraries))
    found = with_power(summarise(campaign()), write_session(tmp_path, campaign()))
    page, _, _ = opened(browser, write(found, tmp_path, ["html"])["html"].as_uri(), 390, "light")
    assert page.get_by_role("region", name="Libraries by faults").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


@pytest.mark.parametrize("width", [1920, 1200, 1190, 700, 320])
def test_nothing_of_the_table_is_cut_off(browser: Browser, tmp_path: Path, width: int) -> None:
    """With long names and values in it, down to the last column, where the evidence is."""
    word = "unreasonably" * 6
    records = campaign()
    long = [run(kind="duplicate-delivery"), run(kind="recover:after-checkpoint", observed=word)]
    address = write(summarise(records._replace(runs=(*records.runs, *long))), tmp_path, ["html"])["html"].as_uri()
    page, _, _ = opened(browser, address, width, "light")
    table, frame = page.evaluate(
        "(t => [t.scrollWidth, t.parentElement.clientWidth])(document.querySelector('.matrix table'))"
    )
    assert table <= frame
    for cell in page.locator(".matrix tbody tr:first-child > *").all():
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
    page.locator(".matrix").get_by_role("link", name="A killed agent resumes").click()
    steps.wait_for(state="visible", timeout=5_000)
    page.close()


def test_a_printed_page_shows_the_details_that_are_closed_on_screen(browser: Browser, address: str) -> None:
    """On paper nothing can be unfolded, so it is unfolded already."""
    page, _, _ = opened(browser, address, 1280, "light")
    page.emulate_media(media="print")
    assert page.get_by_text("A new process goes on").is_visible()
    page.close()
