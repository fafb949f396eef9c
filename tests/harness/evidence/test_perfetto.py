"""The trace of a pack: what Perfetto needs to draw it, and what it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_chaos.evidence import perfetto, verify

from tests.reports.failure.packs import pack

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def events(folder: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what the trace of a pack says of itself, and its events."""
    written = json.loads((pack(folder, **options) / perfetto.FILE_NAME).read_text())
    return written["otherData"], written["traceEvents"]


def test_operations_begin_and_end_at_their_marks(tmp_path: Path) -> None:
    """One millisecond is one mark; an operation without an ack has a beginning and no end."""
    about, found = events(tmp_path, operations=10)
    begun = {each["id"]: each for each in found if each["ph"] == "b" and each["cat"] == "order"}
    ended = {each["id"]: each for each in found if each["ph"] == "e" and each["cat"] == "order"}
    assert (len(begun), len(ended)) == (10, 9)
    assert all(ended[key]["ts"] - begun[key]["ts"] == 1_000 and ended[key]["cat"] == begun[key]["cat"] for key in ended)
    assert [each["name"] for key, each in begun.items() if key not in ended] == ["order 9"]
    assert (about["verdict"], about["marks left out"]) == ("VIOLATED", 0)


def test_processes_and_faults_have_tracks(tmp_path: Path) -> None:
    """Each process is a slice with its end; the kill is an instant across all tracks."""
    _, found = events(tmp_path)
    names = {each["pid"]: each["args"]["name"] for each in found if each["ph"] == "M"}
    assert names == {0: "faults", 11: "worker", 12: "worker"}
    first, second = [each for each in found if each["ph"] == "X"]
    assert (first["name"], second["pid"], first["dur"] > 0) == ("worker: signal 9", 12, True)
    (kill,) = [each for each in found if each["cat" if "cat" in each else "ph"] == "fault"]
    assert (kill["ph"], kill["s"], kill["name"]) == ("i", "g", "kill worker")


def test_a_long_history_is_cut_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest marks are kept; the trace stays a file that opens."""
    monkeypatch.setattr(perfetto, "MARKS_MAX", 6)
    about, found = events(tmp_path, operations=10)
    assert about["marks left out"] == 13
    assert sum(each["ph"] == "b" for each in found) == 3


def test_the_trace_is_listed_in_the_manifest(tmp_path: Path) -> None:
    """A trace that was changed afterwards is noticed, as any other file of a pack."""
    made = pack(tmp_path)
    assert verify(made) == []
    (made / perfetto.FILE_NAME).write_text("{}")
    assert any(perfetto.FILE_NAME in problem for problem in verify(made))
