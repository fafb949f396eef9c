"""Takes the picture of the failure page anew: ``python -m tests.documents.pictures``.

It runs the first command of docs/five-minutes.md, and opens the page that it writes in Chromium.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.documents.examples import Command, examples_of
from tests.reports.browsing import ARGUMENTS, CHROMIUM

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENT: Final = ROOT / "docs/five-minutes.md"
PICTURE: Final = ROOT / "docs/images/failure-page.png"
WIDTH: Final = 1000
HEIGHT: Final = 952


def take(page: Path, picture: Path) -> None:
    """Take the picture of the first finding of a failure page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        opened = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        opened.goto(page.as_uri())
        opened.evaluate("document.querySelector('main h2').scrollIntoView(); window.scrollBy(0, -14)")
        opened.screenshot(path=picture)
        browser.close()


def explored(folder: Path) -> Path:
    """Run the first command of the document in a folder; return the failure page that it wrote."""
    example = next(examples_of(DOCUMENT.name, DOCUMENT.read_text()))
    for step in example.steps:
        if isinstance(step, Command):
            subprocess.run(step.line, shell=True, cwd=folder, check=False, stdout=subprocess.DEVNULL)  # noqa: S602 - a command of our own document
            break
        (folder / step.name).write_text(step.text)
    (page,) = folder.glob("chaos-results/explore/*/states-1.html")
    return page


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        take(explored(Path(scratch)), PICTURE)
