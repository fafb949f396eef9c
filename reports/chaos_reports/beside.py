"""What other commands left in the results folder: caught defects, the bank, the library matrix.

No verdict of a matrix depends on it. A file that cannot be read is a sentence on the page.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from pytest_chaos.model.campaign import SideTable

from chaos_reports.figures import clip, moment, number, plural

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.model.campaign import MatrixSummary

PLANTED: Final = "mutation/planted.jsonl"
BANK: Final = "bank/bank.json"
LIBRARIES: Final = "libraries.json"
ROWS_MAX: Final = 300
_SENTENCES_MAX: Final = 5
"""Entries of the bank of which the head of a matrix says what is wrong; the table has more."""
COLUMNS_MAX: Final = 20
BYTES_MAX: Final = 16 << 20
_Read = TypeVar("_Read")
_LOOKS: Final = {"shown": "held", "not shown": "violated", "not held": "violated"}


class _Planted(msgspec.Struct, frozen=True):
    scenario: str
    defect: str
    signature: str
    test: str = ""


class _ShownEntry(msgspec.Struct, frozen=True):
    name: str
    title: str = ""
    kind: str = ""
    subject: str = ""
    outcome: str = ""
    sentence: str = ""


class _Bank(msgspec.Struct, frozen=True):
    entries: list[_ShownEntry]
    started: str = ""
    versions: dict[str, str] = {}


class _Library(msgspec.Struct, frozen=True):
    library: str
    cells: dict[str, str]
    note: str = ""


class _Libraries(msgspec.Struct, frozen=True):
    """``libraries.json``: the library matrix. ``cells`` has the verdict of each family."""

    rows: list[_Library]
    started: str = ""


def with_beside(matrix: MatrixSummary, results: Path) -> MatrixSummary:
    """Return the summary with what lies beside the sessions of a results folder."""
    problems: list[str] = []
    bank = _read(results / BANK, _Bank, problems)
    return msgspec.structs.replace(
        matrix,
        planted=_planted(results / PLANTED, problems),
        bank=() if bank is None else tuple(_bank_sentences(bank)),
        beside=tuple(_tables(bank, results, problems)),
    )


def _bank_sentences(bank: _Bank) -> Iterator[str]:
    """Yield how many entries were shown, where and when; and what is wrong with others."""
    shown = sum(entry.outcome == "shown" for entry in bank.entries)
    where = f"Python {bank.versions.get('python', '?')}, Linux {bank.versions.get('kernel', '?')}"
    many = f"{number(shown)} of {number(len(bank.entries))} entries"
    yield f"bug bank: {many} shown and held once mended ({bank.started[:10]}, {clip(where, 80)})"
    others = [entry for entry in bank.entries if entry.outcome != "shown"]
    for entry in others[:_SENTENCES_MAX]:
        yield f"bug bank: {clip(entry.name, 60)} is {clip(entry.outcome, 20)}: {clip(entry.sentence, 200)}"
    if (more := len(others) - _SENTENCES_MAX) > 0:
        yield f"bug bank: {number(more)} more entries are not shown"


def _planted(path: Path, problems: list[str]) -> dict[str, tuple[str, ...]]:
    """Return, by scenario, the planted defects that it has caught, each in a line."""
    found: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for line in _content(path, problems).splitlines():
        try:
            each = msgspec.json.decode(line, type=_Planted)
        except msgspec.DecodeError:
            continue  # a line that was cut short
        where = f", in {clip(each.test.rpartition('::')[2], 100)}" if each.test else ""
        found[each.scenario][f"{clip(each.defect, 120)}: {clip(each.signature, 100)}{where}"] = None
    return {name: tuple(sorted(texts)) for name, texts in found.items()}


def _tables(bank: _Bank | None, results: Path, problems: list[str]) -> Iterator[SideTable]:
    if bank is not None:
        shown = sum(each.outcome == "shown" for each in bank.entries)
        yield SideTable(
            title="The bug bank",
            text=f"{shown:,} of {plural(len(bank.entries), 'public bug')} shown again, and held once mended"
            f"{f'; {moment(clip(bank.started, 40))}' if bank.started else ''}. Nothing here is part of the matrix.",
            head=("Entry", "Program", "Outcome", "What was seen"),
            rows=tuple(
                (clip(each.title or each.name, 200), clip(each.subject, 120), each.outcome, clip(each.sentence, 300))
                for each in sorted(bank.entries, key=lambda each: (each.outcome == "shown", each.name))[:ROWS_MAX]
            ),
            looks={**_LOOKS},
        )
    libraries = _read(results / LIBRARIES, _Libraries, problems)
    if libraries is not None:
        families = list(dict.fromkeys(name for each in libraries.rows for name in each.cells))[:COLUMNS_MAX]
        yield SideTable(
            title="Libraries by faults",
            text=f"{len(libraries.rows):,} explored"
            f"{f'; {moment(clip(libraries.started, 40))}' if libraries.started else ''}. "
            "Nothing here is part of the matrix.",
            head=("Library", *(clip(name, 40) for name in families), "Note"),
            rows=tuple(
                (
                    clip(each.library, 120),
                    *(clip(each.cells.get(name, "not explored"), 60) for name in families),
                    clip(each.note, 200),
                )
                for each in libraries.rows[:ROWS_MAX]
            ),
            looks={"HELD": "held", "VIOLATED": "violated", "INCONCLUSIVE": "inconclusive"},
        )
    for problem in problems:
        yield SideTable(title="", text=problem)


def _content(path: Path, problems: list[str]) -> bytes:
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as stream:
            return stream.read(BYTES_MAX)
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}.")
        return b""


def _read(path: Path, kind: type[_Read], problems: list[str]) -> _Read | None:
    content = _content(path, problems)
    if not content:
        return None
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {clip(str(error), 200)}.")
        return None
