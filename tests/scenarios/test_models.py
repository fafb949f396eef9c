"""The models of checkpoint numbers, cycles and workspaces: what each allows, and what it finds."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import History
from pytest_chaos.model.values import Mark, MarkKind

from scenarios.model.numbering import check_numbers
from scenarios.model.states import Moment
from scenarios.model.workspaces import MISSING, TORN, Workspaces
from scenarios.state.state_checks import check_cycles_by_model

if TYPE_CHECKING:
    from pathlib import Path

NOW = Moment(0, 0)


def marks(*said: tuple[str, str, int, object]) -> History:
    """Return the history of agents that said this: who, intent or ack, iteration, value."""
    return History(
        tuple(
            Mark(kind=MarkKind(kind), operation="checkpoint", key=key, value=value, agent=who, order=order)
            for order, (who, kind, key, value) in enumerate(said)
        )
    )


ONE_BY_ONE = [("a", "intent", 1, None), ("a", "ack", 1, 1), ("b", "intent", 2, None), ("b", "ack", 2, 2)]
AT_ONCE = [("a", "intent", 1, None), ("b", "intent", 2, None), ("b", "ack", 2, 1), ("a", "ack", 1, 2)]
KILLED = [("a", "intent", 1, None), ("b", "intent", 2, None), ("b", "ack", 2, 2)]


@pytest.mark.parametrize(
    ("said", "rows", "signatures"),
    [
        (ONE_BY_ONE, {1: 1, 2: 2}, []),
        (AT_ONCE, {1: 2, 2: 1}, []),
        (KILLED, {1: 1, 2: 2}, []),
        (KILLED, {2: 2}, ["model:save-sequence-number"]),
        (ONE_BY_ONE, {1: 2, 2: 1}, ["model:save-sequence-number"] * 2 + ["model:numbers-not-in-order"]),
        (
            [(who, kind, key, value and 3 - value) for who, kind, key, value in ONE_BY_ONE],
            {1: 2, 2: 1},
            ["model:numbers-not-in-order"],
        ),
    ],
)
def test_numbers_are_an_order_of_the_saves(
    said: list[tuple[str, str, int, int | None]], rows: dict[int, int], signatures: list[str]
) -> None:
    """A number above one that began later, or another than was told, is found."""
    found = [finding.signature for finding in check_numbers(marks(*said), rows)]
    assert sorted(found) == sorted(signatures)


@pytest.mark.parametrize(
    ("fields", "registry", "file"),
    [
        ({"file": "running"}, "failed", "failed"),
        ({"file": "running", "lives": True}, "running", "running"),
        ({"file": "completed", "stored": "running"}, "completed", "completed"),
        ({"file": TORN, "stored": "queued"}, "queued", "queued"),
        ({"file": TORN, "stored": "running", "lives": True}, "running", TORN),
        ({"stored": "running"}, "failed", MISSING),
        ({"file": "running", "is_ours": False}, None, "running"),
        ({"file": TORN}, None, TORN),
    ],
)
def test_a_start_believes_files_and_fails_the_dead(
    fields: dict[str, str | bool], registry: str | None, file: str
) -> None:
    """What is said of one workspace, by its file, the store, and its executor."""
    model = Workspaces()
    model.lay(NOW, "a", **fields)
    model.start(NOW)
    assert (model.workspaces["a"].stored, model.workspaces["a"].file) == (registry, file)
    assert model.tables()["files"] == {"a": {"status": file}}


def told(root: Path, disposition: str, entries: int, *, lives: bool = False, name: str = "nightly") -> list[str]:
    """Return what is found of a start that dealt so with a cycle of two entries."""
    (root / ".core").mkdir()
    with contextlib.closing(sqlite3.connect(root / ".core" / "db.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE cycles (cycle_id, name)")
        connection.execute("CREATE TABLE cycle_entries (cycle_id, place, value)")
        if entries:
            connection.execute("INSERT INTO cycles VALUES ('1', ?)", (name,))
        rows = [("1", place, json.dumps({"number": place})) for place in range(entries)]
        connection.executemany("INSERT INTO cycle_entries VALUES (?, ?, ?)", rows)
    begun = {"name": name, "file": "f.buffer", "of": 2}
    said = [
        Mark(kind=MarkKind.INTENT, operation="cycle", key="1", value=begun, agent="cycle", order=0),
        Mark(kind=MarkKind.ACK, operation="start-up", value={"orphans": [["f", disposition]]}, agent="start", order=1),
    ]
    said += [Mark(kind=MarkKind.NOTE, operation="lives", agent="cycle", order=2)] if lives else []
    return [finding.signature for finding in check_cycles_by_model(History(tuple(said)), root)]


def test_a_dead_cycle_is_discarded_or_whole(tmp_path: Path) -> None:
    """Discarded is right for the dead; half of it in the history is not."""
    for name in "abc":
        (tmp_path / name).mkdir()
    assert told(tmp_path / "a", "discarded", 0) == []
    assert told(tmp_path / "b", "discarded", 2) == []
    assert told(tmp_path / "c", "discarded", 1) == ["model:history-entries"]


def test_a_living_cycle_is_left_alone_and_a_damaged_one_is_kept(tmp_path: Path) -> None:
    """What a recovery does otherwise is named by what it did."""
    for name in "abcd":
        (tmp_path / name).mkdir()
    assert told(tmp_path / "a", "left", 0, lives=True) == []
    assert told(tmp_path / "b", "discarded", 0, lives=True) == ["model:orphan-discarded"]
    assert told(tmp_path / "c", "discarded", 0, name="damaged") == ["model:orphan-discarded"]
    assert told(tmp_path / "d", "left", 0) == ["model:orphan-left"]
