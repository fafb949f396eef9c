"""The environment of the templates: filters, escaping, and limits that no template can forget.

HTML pages make no request. Their content security policy names the one style, and the one script,
by their hashes: nothing else in a page can run, whatever a program under test has written.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pytest_chaos.errors import ResultsError
from pytest_chaos.model.campaign import FAILURES_MAX

from chaos_reports import figures
from chaos_reports.columns import first_value
from chaos_reports.figures import clip
from chaos_reports.matrix import GLYPHS, bound, decision, label, outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

_ANY_TEXT_CHARACTERS_MAX: Final = 2_500
_MARKDOWN_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>|#~])")


def replace(path: Path, content: str) -> Path:
    """Write a page in one step. Raises ResultsError when the folder cannot be written."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(content, encoding="utf-8", errors="replace")
        return fresh.replace(path)
    except OSError as error:
        reason = error.strerror or error
        msg = f"the report cannot be written to {path.parent} ({reason}). Give a folder that can be written"
        raise ResultsError(msg) from error


@cache  # its templates are compiled once, not for each page
def environment(*, autoescape: bool) -> Environment:
    """Return the environment of all pages; HTML escapes by itself, Markdown by filters."""
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
        short=figures.short,
        href=figures.href,
        md=_markdown,
        code=_code,
        outcome=outcome,
        bound=bound,
        decision=decision,
        fired=_fired,
        first_value=first_value,
        sha256=_sha256,
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


def _sha256(text: str) -> str:
    """Return the hash of an inline style or script, as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


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
