"""The failure page: of a run, of an exploration, or of evidence that cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos_reports.failure.exploration import UNREADABLE, of_exploration
from chaos_reports.failure.run import page_of_run
from chaos_reports.failure.values import Page
from chaos_reports.figures import clip

if TYPE_CHECKING:
    from chaos_reports.failure.source import Source


def page_of(source: Source) -> Page:
    """Return the page of a pack or of an exploration. What cannot be read is said on it."""
    if source.is_damaged:
        return _damaged(source)
    if source.pack is None:
        return of_exploration(source)
    return page_of_run(source)


def _damaged(source: Source) -> Page:
    first = source.problems[0] if source.problems else "there is nothing in it"
    return Page(
        label=UNREADABLE,
        sentence=f"This evidence cannot be read, so it shows nothing: {clip(first, 400)}",
        title=clip(source.name, 120),
        kicker="evidence that cannot be read",
        failure=clip(source.failure, 20_000),
        problems=tuple(clip(text, 600) for text in source.problems),
    )
