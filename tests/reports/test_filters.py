"""The filters of the matrix in a real browser: search, verdicts, faults, order, keys and links."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from chaos_reports.render import write
from pytest_chaos.model.campaign import summarise
from pytest_chaos.model.values import PlannedRuns, Scenario

from tests.reports.browsing import CHROMIUM, opened
from tests.reports.samples import CACHE, KILL, LEASES, SWEEP, campaign

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page is not opened")

SHOWN = "[...document.querySelectorAll('.grid tbody tr')].filter(each => !each.hidden).map(each => each.dataset.row)"
OTHER = Scenario(id="09-executor", title="A dead executor's job is ended once")


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """A campaign of all verdicts, in which one scenario was deselected; nothing may complain."""
    records = campaign()
    planned = (PlannedRuns(scenario=OTHER, runs=0, deselected=50),)
    header = msgspec.structs.replace(records.header, planned=planned)
    address = write(summarise(records._replace(header=header)), tmp_path, ["html"])["html"].as_uri()
    shown, _, complaints = opened(browser, address, 1280, "light")
    yield shown
    shown.close()
    assert complaints == []


def test_failures_come_first_and_what_was_not_run_last(page: Page) -> None:
    """A scenario that was collected and not run has a row, and is not green."""
    assert page.evaluate(SHOWN) == [SWEEP.id, CACHE.id, LEASES.id, KILL.id, ""]
    row = page.locator(".grid tbody tr").last
    assert "not run: 50 runs deselected" in row.inner_text()
    assert row.locator(".held").count() == 0
    assert page.locator(f".grid tr[data-row='{CACHE.id}'] .cell.held").count() == 0  # its fault did not always fire


def test_search_verdicts_and_faults_filter_all_parts(page: Page) -> None:
    """A row that is filtered out leaves tables and details; words may be of a finding."""
    page.get_by_role("searchbox").fill("acknowledged-lost")
    assert page.evaluate(SHOWN) == [SWEEP.id]
    assert page.locator("details.card:visible").count() == 1
    assert page.get_by_role("status").inner_text() == "1 of 5 shown"
    page.keyboard.press("Escape")
    assert len(page.evaluate(SHOWN)) == 5
    page.get_by_role("button", name="VIOLATED").click()
    page.get_by_role("button", name="TOLERATED").click()
    assert page.evaluate(SHOWN) == [SWEEP.id, LEASES.id]
    page.locator("#fault").select_option("pause")
    assert page.evaluate(SHOWN) == [LEASES.id]


def test_a_filtered_view_and_a_scenario_can_be_linked_to(page: Page) -> None:
    """The address carries filter and order; a scenario's anchor opens its details."""
    page.get_by_role("button", name="HELD").click()
    page.get_by_label("Order").select_option("id")
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    assert page.evaluate(SHOWN) == [KILL.id]
    page.goto("about:blank")
    page.goto(f"{address.partition('#')[0]}#{KILL.id}")
    page.get_by_text("A new process goes on").wait_for(state="visible", timeout=5_000)


def test_the_order_can_be_chosen(page: Page) -> None:
    """By id and by pass rate, in the table of faults and in the table of scenarios."""
    page.get_by_label("Order").select_option("id")
    assert page.evaluate(SHOWN) == [KILL.id, LEASES.id, SWEEP.id, CACHE.id, ""]
    rows = "[...document.querySelectorAll('.matrix tbody tr')].map(each => each.dataset.row)"
    assert page.evaluate(rows) == [KILL.id, LEASES.id, SWEEP.id, CACHE.id]
    page.get_by_label("Order").select_option("rate")
    assert page.evaluate(SHOWN)[:2] == [SWEEP.id, LEASES.id]


def test_a_link_that_is_no_text_shows_all(page: Page) -> None:
    """A mail program may have cut it within a letter."""
    page.goto(page.url.partition("#")[0] + "#%E0%A4%A")
    page.reload()
    page.get_by_text("5 of 5 shown").wait_for(timeout=5_000)


def test_the_keyboard_is_enough(page: Page) -> None:
    """Slash searches, j and k move, Enter opens the chosen scenario."""
    page.keyboard.press("/")
    page.locator("#search:focus").wait_for(timeout=5_000)
    page.keyboard.type("killed")
    page.get_by_text("1 of 5 shown").wait_for(timeout=5_000)
    assert page.evaluate(SHOWN) == [KILL.id]
    page.keyboard.press("Escape")
    held = page.get_by_role("button", name="HELD").first
    held.click()
    held.click()  # the button has the focus now
    for key in ("j", "j", "j", "k"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    assert page.url.endswith(f"#{CACHE.id}")


def test_without_a_script_all_is_shown(browser: Browser, tmp_path: Path) -> None:
    """The filters are hidden then, and nothing else is."""
    address = write(summarise(campaign()), tmp_path, ["html"])["html"].as_uri()
    context = browser.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto(address)
    assert not shown.get_by_role("searchbox").is_visible()
    assert shown.locator(".grid tbody tr:visible").count() == 4
    context.close()
