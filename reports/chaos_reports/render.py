"""The files of a matrix: replaced in one step.

The same records, with the same history, give the same bytes.

The plugin imports this module, and Jinja2 with it, only if there is something to render.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
from pytest_chaos.errors import ResultsError

from chaos_reports.ci.ctrf import to_ctrf
from chaos_reports.columns import HTML, MARKDOWN, shown_in
from chaos_reports.contract import document
from chaos_reports.environment import environment, replace
from chaos_reports.figures import page_path
from chaos_reports.matrix import view

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from pytest_chaos.model.campaign import MatrixSummary

    from chaos_reports.columns import Column
    from chaos_reports.matrix import MatrixView
    from chaos_reports.trend.history import Sessions

DEFAULT_FORMATS: Final = ("md", "html", "json")
FORMATS: Final = (*DEFAULT_FORMATS, "ctrf")
"""The formats, each rendered into ``matrix.FORMAT``; CTRF into ``matrix.ctrf.json``."""
_NAMES: Final = {"ctrf": "ctrf.json"}


def to_html(matrix: MatrixSummary, pages: Collection[str] = (), history: Sessions | None = None) -> str:
    """Render one self-contained page: no request, every text escaped.

    ``pages`` are the packs that have a failure page; the others link to their folder.
    """
    shown = view(matrix, is_worst_first=True, history=history)
    return _page("matrix.html.j2", shown, shown_in(HTML), autoescape=True, pages=pages)


def to_markdown(matrix: MatrixSummary) -> str:
    """Render a table and its details, for a code host."""
    return _page("matrix.md.j2", view(matrix), shown_in(MARKDOWN), autoescape=False)


def to_json(matrix: MatrixSummary) -> str:
    """Render the contract for other programs (:mod:`chaos_reports.contract`)."""
    return msgspec.json.format(msgspec.json.encode(document(matrix)), indent=2).decode() + "\n"


def check_formats(formats: Sequence[str]) -> None:
    """Raise ResultsError for an unknown format, or for none."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        came = ", ".join(repr(name) for name in unknown) or "none"
        msg = f"a report format must be one of {', '.join(FORMATS)}; got {came}. Give for instance md,html"
        raise ResultsError(msg)


def write(
    matrix: MatrixSummary,
    folder: Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    pages: Collection[str] = (),
    history: Sessions | None = None,
) -> dict[str, Path]:
    """Write ``matrix.FORMAT`` for each format into the folder and return their paths.

    ``pages`` are the packs that have a failure page, as their records name them. ``history`` are
    the earlier sessions that the page shows.

    Raises ResultsError for an unknown format, or when the folder cannot be written.
    """
    check_formats(formats)
    renderers: dict[str, Callable[[MatrixSummary], str]] = {
        "md": to_markdown,
        "html": partial(to_html, pages=pages, history=history),
        "json": to_json,
        "ctrf": to_ctrf,
    }
    contents = {name: renderers[name](matrix) for name in dict.fromkeys(formats)}
    return {name: replace(folder / f"matrix.{_NAMES.get(name, name)}", content) for name, content in contents.items()}


def _page(
    template: str,
    page: MatrixView,
    columns: tuple[Column, ...],
    *,
    autoescape: bool,
    pages: Collection[str] = (),
) -> str:
    made = environment(autoescape=autoescape).get_template(template)
    return made.render(page=page, columns=columns, link=lambda pack: page_path(pack) if pack in pages else pack)
