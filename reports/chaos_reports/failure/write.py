"""Writes failure pages: one for each evidence pack of a session, and one for an exploration."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pytest_chaos.evidence.perfetto import FILE_NAME as TRACE

from chaos_reports.environment import environment, replace
from chaos_reports.failure.page import page_of
from chaos_reports.failure.source import Source, is_pack, read
from chaos_reports.figures import PAGES as FOLDER, href, page_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from chaos_reports.failure.values import Page

PAGES_MAX: Final = 200
"""Pages that a session writes by itself; ``chaos report PACK`` writes any other."""


def write_pages(session: Path, evidence: Iterable[str]) -> dict[str, Path]:
    """Write the pages of a session's packs; return them by the pack's path.

    ``evidence`` are the paths of packs relative to the session. A pack that is elsewhere, or gone,
    gets no page.
    """
    written: dict[str, Path] = {}
    for name in evidence:
        pack = session / name
        if len(written) < PAGES_MAX and not Path(name).is_absolute() and is_pack(pack):
            written[name] = _write(read(pack), session / page_path(name), pack.resolve())[0]
    return written


def write_one(path: Path) -> tuple[Path, str]:
    """Write the page of a pack or of an exploration; return it with the label of its verdict.

    The page of a session's pack is in the session's folder ``failures``; any other is beside the
    folder. Raises ResultsError for a folder that is neither, and when nothing can be written.
    """
    source, folder = read(path), path.resolve()
    session = folder.parent.parent
    is_of_session = folder.parent.name == "evidence"
    page = session / FOLDER / f"{folder.name}.html" if is_of_session else folder.with_name(f"{folder.name}.html")
    return _write(source, page, folder)


def _write(source: Source, page: Path, folder: Path) -> tuple[Path, str]:
    shown = page_of(source)
    matrix = page.resolve().parent.parent / "matrix.html" if page.parent.name == FOLDER else None
    links = {
        "evidence": href(f"{os.path.relpath(folder, page.resolve().parent)}/"),
        "matrix": href("../matrix.html") if matrix is not None else "",
        "trace": href(f"{os.path.relpath(folder, page.resolve().parent)}/{TRACE}") if has_trace(source) else "",
    }
    return replace(page, render(shown, links)), shown.label


def has_trace(source: Source) -> bool:
    """Whether a pack has a trace; one of an earlier version has none."""
    return source.pack is not None and any(entry.path == TRACE for entry in source.pack.manifest.files)


def render(page: Page, links: Mapping[str, str] = MappingProxyType({})) -> str:
    """Render a page. ``links`` are relative or empty: ``evidence``, ``matrix`` and ``trace``."""
    shown = {"evidence": "", "matrix": "", "trace": "", **links}
    return environment(autoescape=True).get_template("failure.html.j2").render(page=page, links=shown)
