"""Old sessions of a results folder: which are kept, and the removal of the others.

A session that holds an evidence pack is never removed unasked, nor is the one that ``latest``
points at. Explorations (``RESULTS/explore``) are not touched.
"""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.errors import ResultsError, UsageError
from pytest_chaos.evidence.records import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEPT_UNASKED: Final = 100
"""After each session so many of the newest sessions are kept, and all that hold evidence."""


class Cleaned(NamedTuple):
    """The sessions that were removed, and the older ones that were kept for their evidence."""

    removed: tuple[str, ...]
    kept_for_evidence: tuple[str, ...]


def clean(results: Path, *, keep: int, with_packs: bool = False) -> Cleaned:
    """Remove all but the newest ``keep`` sessions; those with evidence only ``with_packs``.

    Raises UsageError for a number below 1, ResultsError for a session that cannot be removed.
    """
    if keep < 1:
        msg = f"keep must be 1 or more; got {keep}. The newest session is always kept"
        raise UsageError(msg)
    latest = results / "latest"
    newest = latest.resolve() if latest.exists() else None
    removed, kept = [], []
    for session in _sessions(results)[keep:]:
        if session.resolve() == newest:
            continue
        if not with_packs and _has_pack(session):
            kept.append(session.name)
            continue
        try:
            shutil.rmtree(session)
        except OSError as error:
            msg = f"the session {session} cannot be removed ({error.strerror or error}). Remove it by hand"
            raise ResultsError(msg) from error
        removed.append(session.name)
    return Cleaned(tuple(removed), tuple(kept))


def _sessions(results: Path) -> list[Path]:
    """Return the folders of sessions, the newest first: their names begin with the time."""
    found: Iterator[Path] = iter(())
    with contextlib.suppress(OSError):
        found = iter(sorted((results / "sessions").iterdir(), key=lambda path: path.name, reverse=True))
    return [path for path in found if not path.is_symlink() and (path / FILE_NAME).is_file()]


def _has_pack(session: Path) -> bool:
    """Whether a session, or one of its replays, has an evidence pack, whole or not."""
    places = (session / "evidence", *session.glob("replays/sessions/*/evidence"))
    return any(True for place in places if place.is_dir() for _ in place.iterdir())
