"""The built site: it asks no other host, and programs find every page in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README_LINES_MAX = 120
IMAGE_BYTES_MAX = 200_000
LOADED = re.compile(r"""(?:\bsrc=|<link[^>]*\bhref=|url\()["']?(https?:)?//""")
"""What a browser fetches by itself from another host."""


@pytest.mark.nightly
def test_the_site_needs_no_network_and_lists_its_pages(tmp_path: Path) -> None:
    """The site is built without a warning, loads nothing from elsewhere, and has ``llms.txt``."""
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        DOCS,
        tmp_path / "site",
    ]
    built = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert built.returncode == 0, built.stderr
    site = tmp_path / "site"
    loading = [
        path for suffix in ("html", "css") for path in site.rglob(f"*.{suffix}") if LOADED.search(path.read_text())
    ]
    assert loading == []
    listed = re.findall(r"^- \[.*?\]\((.*?)\)", (site / "llms.txt").read_text(), flags=re.MULTILINE)
    assert {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} <= set(listed)
    whole = (site / "llms-full.txt").read_text()
    for text in ("Plan the end that no program can prepare for", "--check-timeout", "CHAOS_MIN_PASS_RATE", "acquire("):
        assert text in whole, f"the reference lacks {text}"


@pytest.mark.parametrize(
    ("text", "is_loaded"),
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example/a.css"/>', True),
        ("@font-face {src: url(https://fonts.example/a.woff2)}", True),
        ('<a href="https://example.org/">a link</a><img src="images/a.png"/>', False),
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(text: str, *, is_loaded: bool) -> None:
    """Scripts, styles and fonts of other hosts are found; links are not."""
    assert bool(LOADED.search(text)) is is_loaded


def test_the_readme_and_its_pictures_are_small() -> None:
    """The README has at most 120 lines, and each picture is below 200 kB."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES_MAX
    images = list((DOCS / "images").iterdir())
    assert images
    assert [image.name for image in images if image.stat().st_size > IMAGE_BYTES_MAX] == []


def test_every_link_between_pages_leads_somewhere() -> None:
    """README and pages link to files that are there."""
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
    broken = [
        f"{document.relative_to(ROOT)}: {link}"
        for document in documents
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
        if not link.startswith("http") and not (document.parent / link).exists()
    ]
    assert broken == []
