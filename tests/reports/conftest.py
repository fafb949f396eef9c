"""The browser that the tests of pages share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.reports.browsing import ARGUMENTS, CHROMIUM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start one browser for all tests of this module."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright comes with the extra 'dev' only")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()
