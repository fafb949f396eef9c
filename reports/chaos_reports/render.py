"""The three files of a matrix: replaced in one step; the same records give the same bytes.

The plugin imports this module, and Jinja2 with it, only if there is something to render.
"""

from __future__ import annotations

import re
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pytest_chaos.errors import ResultsError
from pytest_chaos.model.campaign import FAILURES_MAX

from chaos_reports import figures
from chaos_reports.columns import HTML, MARKDOWN, first_value, shown_in
from chaos_reports.contract import document
from chaos_reports.figures import clip
from chaos_reports.matrix import GLYPHS, bound, label, outcome, view

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_chaos.model.campaign import MatrixSummary

    from chaos_reports.columns import Column

FORMATS: Final = ("md", "html", "json")
"""The formats, each rendered into ``matrix.FORMAT``."""

_ANY_TEXT_CHARACTERS_MAX: Final = 2_500

_MARKDOWN_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>|#~])")


def to_html(matrix: MatrixSummary) -> str:
    """Render one self-contained page: no request, no script, every text escaped."""
    return _page("matrix.html.j2", matrix, shown_in(HTML), autoescape=True)


def to_markdown(matrix: MatrixSummary) -> str:
    """Render a table and its details, for a code host."""
    return _page("matrix.md.j2", matrix, shown_in(MARKDOWN), autoescape=False)


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


def write(matrix: MatrixSummary, folder: Path, formats: Sequence[str] = FORMATS) -> dict[str, Path]:
    """Write ``matrix.FORMAT`` for each format into the folder and return their paths.

    Raises ResultsError for an unknown format, or when the folder cannot be written.
    """
    check_formats(formats)
    renderers: dict[str, Callable[[MatrixSummary], str]] = {"md": to_markdown, "html": to_html, "json": to_json}
    pages = {name: renderers[name](matrix) for name in dict.fromkeys(formats)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {name: _replace(folder / f"matrix.{name}", content) for name, content in pages.items()}
    except OSError as error:
        msg = f"the report cannot be written to {folder} ({error.strerror or error}). Give a folder that can be written"
        raise ResultsError(msg) from error


def _replace(path: Path, content: str) -> Path:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(content, encoding="utf-8", errors="replace")
    return fresh.replace(path)


def _page(template: str, matrix: MatrixSummary, columns: tuple[Column, ...], *, autoescape: bool) -> str:
    return _environment(autoescape=autoescape).get_template(template).render(page=view(matrix), columns=columns)


@cache  # its templates are compiled once, not for each page
def _environment(*, autoescape: bool) -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=autoescape,  # noqa: S701 - off for Markdown alone, whose filters escape
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(
        percent=figures.percent,
        duration=figures.duration,
        size=figures.size,
        number=figures.number,
        moment=figures.moment,
        clip=figures.clip,
        href=figures.href,
        md=_markdown,
        code=_code,
        outcome=outcome,
        bound=bound,
        fired=_fired,
        first_value=first_value,
    )
    globals_: dict[str, object] = {
        "measure": figures.measure,
        "plural": figures.plural,
        "label": partial(label, tolerated=False),
        "glyphs": GLYPHS,
        "failures_max": FAILURES_MAX,
    }
    made.globals.update(globals_)
    return made


def _finalize(value: object) -> object:
    """Clean and cut each plain text on its way to the page: no template can forget it."""
    return clip(value, _ANY_TEXT_CHARACTERS_MAX) if type(value) is str else value


def _fired(receipts: Sequence[object]) -> str:
    """Count what fired of the faults of one run."""
    fired = sum(bool(getattr(receipt, "fired", False)) for receipt in receipts)
    return f"{fired} of {len(receipts)}" if receipts else "none"


def _markdown(text: str) -> str:
    """Escape a text for a Markdown table or list: nothing in it makes a cell, a link or a tag."""
    flat = " ".join(clip(text).split())
    return _MARKDOWN_SPECIAL.sub(r"\\\1", flat.replace("&", "&amp;"))


def _code(text: str) -> str:
    """Put a text into a code span with a fence that is long enough. Not for tables: pipes stay."""
    flat = " ".join(clip(text).split())
    longest = max((len(run) for run in re.findall(r"`+", flat)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if longest else ""
    return f"{fence}{padding}{flat}{padding}{fence}"
