"""The harness's own files as targets: records, journal, packs, progress and baseline.

What a kill must not take: each acknowledged record, receipt and mark, and a pack that was made. A
loss of power may take records and journals, which are not flushed; then what is left must not pass
for all. A pack is flushed, and so is a baseline.
"""

from __future__ import annotations

import itertools
import os
import secrets
from typing import TYPE_CHECKING, Any, Final, cast
from unittest import mock

import msgspec
from pytest_chaos import Finding
from pytest_chaos.errors import ChaosError
from pytest_chaos.evidence import manifest, pack
from pytest_chaos.evidence.open import open_pack
from pytest_chaos.evidence.records import FILE_NAME, SessionFolder, read, read_all_that_can_be
from pytest_chaos.explore.baseline import known_findings, read_baseline, write_baseline
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Exploration
from pytest_chaos.explore.session import Saved, Session
from pytest_chaos.model.values import PlannedRuns, Receipt, RunRecord, Scenario, SessionEnd, SessionHeader, Verdict
from pytest_chaos.runtime.journal import HEADER, Journal, RunHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

SCENARIO: Final = Scenario(id="01-own", title="Our own files")
RUNS: Final = 3
TOLD: Final = "own:lost"
BELIEVED: Final = "own:incomplete-and-not-told"
BROKEN: Final = "own:cannot-be-read"
TARGET: Final = "shop"


def acknowledged(marks: Sequence[Mark], operation: str) -> set[Any]:
    """Return the keys that were acknowledged."""
    return {mark.key for mark in marks if mark.kind == "ack" and mark.operation == operation}


class Sessions:
    """A session that appends the records of its runs. A loss of power may take some of them."""

    name = "records"

    def __init__(self, *, is_power: bool = False) -> None:
        self._is_power = is_power

    def run(self, directory: Path, marks: Marks) -> None:
        """Make the folder, append the records, and say that it is over."""
        folder = SessionFolder(directory, "own")
        planned = (PlannedRuns(scenario=SCENARIO, runs=RUNS),)
        folder.create(SessionHeader(session="own", seed="1", started="now", planned=planned))
        marks.ack("create")
        for number in range(RUNS):
            record = RunRecord(
                scenario=SCENARIO, node_id=f"test_{number}", run_id=f"run-{number}", seed="1", verdict=Verdict.HELD
            )
            folder.append(record)
            marks.ack("record", number)
        folder.append(SessionEnd())
        marks.ack("end")

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Find records that are lost, and a rest that passes for the whole."""
        session = directory / "sessions" / "own"
        if not (session / FILE_NAME).exists() or not (session / FILE_NAME).stat().st_size:
            if acknowledged(marks, "create") and not self._is_power:
                yield Finding(signature=TOLD, text="the session was begun, and there is none")
            return
        try:
            found = read_all_that_can_be(session)
            if not self._is_power:
                found = read(session)
        except ChaosError as error:
            if not self._is_power and acknowledged(marks, "create"):
                yield Finding(signature=BROKEN, text=str(error))
            return
        kept = {int(run.run_id.rpartition("-")[2]) for run in found.runs}
        lost = acknowledged(marks, "record") - kept
        if lost and not self._is_power:
            yield Finding(signature=TOLD, text=f"records were appended and are gone: {sorted(lost)}")
        is_told = bool(found.reasons) or any(account.missing for account in found.accounts)
        if len(kept) < RUNS and not is_told:
            yield Finding(signature=BELIEVED, text=f"{len(kept)} of {RUNS} records pass for all")


class Evidence:
    """A run's journal, and the pack that is made of it."""

    name = "journal and pack"

    def __init__(self, *, is_power: bool = False, journal: type[Journal] = Journal) -> None:
        self._is_power = is_power
        self._journal = journal

    def run(self, directory: Path, marks: Marks) -> None:
        """Write a journal, and make a pack."""
        numbers = itertools.count(1)
        with mock.patch.object(secrets, "token_hex", lambda size: f"{next(numbers):0{2 * size}x}"):
            journal = self._journal(directory / "journal")
            journal.create(
                RunHeader(
                    run_id="run", node_id="test", scenario=SCENARIO, seed="1", session_folder=str(directory / "session")
                )
            )
            marks.ack("header")
            for number in range(RUNS):
                journal.add_receipt(
                    Receipt(kind="kill", agent=f"a{number}", when="now", fired=True, evidence="signal 9")
                )
                marks.ack("receipt", number)
            journal.write_failure("it failed")
            marks.ack("failure")
            pack.write(journal.folder, directory / "session" / "evidence" / "run")
            marks.ack("pack")

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Find what is lost of the journal; make a pack of it, as a later session would."""
        made = directory / "session" / "evidence" / "run"
        if made.exists():
            try:
                problems = manifest.verify(made)
                shown = open_pack(made)
            except ChaosError as error:
                yield Finding(signature=BROKEN, text=f"a pack that stands there: {error}")
                return
            yield from (Finding(signature=BROKEN, text=f"a pack that stands there: {each}") for each in problems)
            kept = len(shown.receipts)
        elif acknowledged(marks, "pack"):
            yield Finding(signature=TOLD, text="the pack was made, and is gone")
            return
        elif self._is_power or not (directory / "journal" / HEADER).exists():
            if acknowledged(marks, "header") and not self._is_power:
                yield Finding(signature=TOLD, text="the journal was begun, and has no header")
            return
        else:
            again = pack.write(directory / "journal", directory / "again")
            kept = len(open_pack(again).receipts)
        if not self._is_power and kept < len(acknowledged(marks, "receipt")):
            yield Finding(signature=TOLD, text=f"{kept} receipts are left")


class Progress:
    """The progress file of an exploration, and a baseline, each written twice."""

    name = "progress and baseline"

    def __init__(self, write: Callable[[Exploration, Path], object] = write_baseline) -> None:
        self._write = write

    def run(self, directory: Path, marks: Marks) -> None:
        """Save, and save again."""
        options = Options(seed="1", progress=directory / "progress-1.json")
        session = Session(options, cast("Any", None), directory, saved=Saved(fingerprint="1", seed="1"))
        with mock.patch.object(os, "getpid", return_value=1):
            for number in range(2):
                session.saved.consumed = number
                session.save()
                marks.ack("progress", number)
                self._write(explored_with(number), directory / "known.json")
                marks.ack("baseline", number)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Read both, as the next exploration does."""
        path = directory / "progress-1.json"
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Saved)
        except FileNotFoundError:
            found = None
        except msgspec.MsgspecError:  # a loss of power: it begins anew
            found = Saved(fingerprint="")
        if found is not None and found.fingerprint and found.consumed not in {0, 1}:
            yield Finding(signature=BROKEN, text=f"the progress is {found.consumed}")
        said = acknowledged(marks, "baseline")
        known = directory / "known.json"
        if not known.exists():
            if said:
                yield Finding(signature=TOLD, text="the baseline was written, and is gone")
            return
        try:
            entries = read_baseline(known, TARGET).known
        except ChaosError as error:
            yield Finding(signature=BROKEN, text=str(error))
            return
        allowed = [known_findings(explored_with(number)) for number in range(max(said, default=0), 2)]
        if entries not in allowed:
            yield Finding(signature=TOLD, text=f"the baseline is {entries}")


def explored_with(number: int) -> Exploration:
    """Return an exploration with one finding."""
    return Exploration(
        target=TARGET, seed="1", findings=(Finding(signature=f"check:{'ab'[number]} is lost", text=f"lost {number}"),)
    )
