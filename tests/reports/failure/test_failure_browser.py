"""The failure page in a real browser: its script, its policy, its width, its colours, on paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest
from chaos_reports.failure.write import write_one

from tests.reports.browsing import CHROMIUM, CONTRAST, opened
from tests.reports.failure.packs import HOSTILE, LOST, pack, states

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page is not opened")


@pytest.fixture
def addresses(tmp_path: Path) -> list[str]:
    """The page of a run with hostile texts, and that of an exploration."""
    line = {"kind": "kill", "line": f"orders_of_a_shop.py:12 in {'keep_' * 12}order (pathlib.Path.rename)"}
    note = {"kind": "note", "operation": "chaos.fault", "key": 0, "agent": "worker", "pid": 11, "value": line}
    title, output = f"An order is kept {HOSTILE}", f"{HOSTILE}\n" * 50
    run = pack(tmp_path, operations=600, title=title, output=output, key=HOSTILE, more_marks=[note])
    return [write_one(folder)[0].as_uri() for folder in (run, states(tmp_path))]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (1280, "dark"), (390, "dark")])
def test_a_failure_page_loads_nothing_and_fits(
    browser: Browser, addresses: list[str], width: int, scheme: Literal["light", "dark"]
) -> None:
    """No request but the file, no error, nothing wider than the screen, and enough contrast."""
    for address in addresses:
        page, requests, complaints = opened(browser, address, width, scheme)
        assert {url for url in requests if not url.startswith("data:")} == {address}
        assert complaints == []
        assert page.title() != "owned"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate(CONTRAST) == []
        page.close()


def test_the_copy_button_copies_the_line(browser: Browser, addresses: list[str]) -> None:
    """The clipboard holds the line that runs it again, and the button says so."""
    page, _, complaints = opened(browser, addresses[0], 1280, "light")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="copy").first.click()
    page.get_by_role("button", name="copied").wait_for(timeout=5_000)
    assert page.evaluate("navigator.clipboard.readText()") == "chaos replay evidence/run-1"
    assert complaints == []
    page.close()


def test_the_policy_stops_a_script_that_gets_into_a_page(browser: Browser, tmp_path: Path) -> None:
    """Were a text not escaped, the hashes would still stop it."""
    path = write_one(pack(tmp_path, findings=(LOST,)))[0]
    path.write_text(path.read_text().replace("<main", "<script>document.title='owned'</script><main", 1))
    page, _, complaints = opened(browser, path.as_uri(), 1280, "light")
    assert page.title() != "owned"
    assert "Content Security Policy" in complaints[0]
    page.close()


def test_a_printed_failure_page_shows_all(browser: Browser, addresses: list[str]) -> None:
    """On paper what was folded is unfolded, and the lanes carry their names."""
    page, _, _ = opened(browser, addresses[0], 1280, "light")
    page.emulate_media(media="print")
    assert page.get_by_text("AssertionError: it did not hold").is_visible()
    assert page.locator("svg.chart text.printed").first.is_visible()
    page.close()
