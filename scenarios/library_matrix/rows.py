"""The rows of the library matrix: read from ``rows.toml``, and checked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

import msgspec
from pytest_chaos.errors import UsageError

ROWS: Final = Path(__file__).parents[1] / "targets" / "rows.toml"
CELLS: Final = ("crash", "recovery", "ext4", "strict", "io", "schedules")
TITLES: Final = ("crash", "crash in recovery", "power, ext4", "power, strict", "I/O errors", "schedules")


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program: its targets, and what is known of it. Cells are named as in :data:`CELLS`.

    ``together`` is the target with two writers, ``recovering`` the one whose recovery is explored
    if it is too slow for the other cells. ``distributions`` are Python packages, ``programs``
    commands that print a version. ``by_design`` says of a cell why what is found there is no
    mistake, ``unexplored`` why a cell is not explored, ``by_hand`` what a person has tried, and
    ``confirmed`` in which cells that was a real kill.
    """

    name: str
    target: str
    promise: str
    source: str
    upstream: str
    together: str = ""
    recovering: str = ""
    distributions: tuple[str, ...] = ()
    programs: tuple[tuple[str, ...], ...] = ()
    sqlite: bool = False
    """Whether Python's own SQLite is below it, whose version counts, too."""
    samples: int = 8
    by_design: dict[str, str] = {}
    unexplored: dict[str, str] = {}
    by_hand: str = ""
    confirmed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse cells that do not exist."""
        for field in ("by_design", "unexplored", "confirmed"):
            if unknown := sorted(set(getattr(self, field)) - set(CELLS)):
                msg = f"{field} of {self.name} must name some of {', '.join(CELLS)}; got {', '.join(unknown)}"
                raise ValueError(msg)

    def target_of(self, cell: str) -> str:
        """Return the target that is explored for a cell; empty if there is none."""
        return {"schedules": self.together, "recovery": self.recovering or self.target}.get(cell, self.target)


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rows: list[Row]


def read_rows(path: Path = ROWS) -> dict[str, Row]:
    """Return the rows by name. Raises UsageError with the place of what is wrong."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _Document, strict=False)
    except (OSError, ValueError, msgspec.ValidationError) as error:
        msg = f"{path.name} must have rows of the library matrix; got: {error}. Correct it"
        raise UsageError(msg) from error
    rows = {row.name: row for row in found.rows}
    if len(rows) < len(found.rows):
        msg = f"each name in {path.name} must stand once; got {len(found.rows)} rows with {len(rows)} names. Rename one"
        raise UsageError(msg)
    return rows


def chosen(rows: dict[str, Row], names: tuple[str, ...]) -> list[Row]:
    """Return the rows of these names, or all. Raises UsageError for a name that is not there."""
    if unknown := [name for name in names if name not in rows]:
        msg = f"a library must be one of {', '.join(rows)}; got {', '.join(unknown)}. Give one of them"
        raise UsageError(msg)
    return [row for name, row in rows.items() if not names or name in names]
