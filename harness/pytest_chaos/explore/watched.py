"""The watched run: what a program does to its SQLite databases (``--watch sqlite``).

The program runs once more, with opens, closes and locks noted beside its durable steps, each with
the program's line. It costs one run, whatever is explored. ``pytest_chaos.sqlite`` judges the
events.

Schema changes in several transactions are found, and then tried: the state between two of them is
built from the run's own recording, as a kill there would leave it, and the program is run on it
twice. It is a finding if it fails both times for its schema, and does not fail on the state that
the whole run left. A migration that may be run again holds.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.explore.lines.noted import NotedPlaces
from pytest_chaos.explore.record import prepared, tail
from pytest_chaos.explore.report import ExplorationError, harness_finding
from pytest_chaos.explore.simulate.content import PageStore
from pytest_chaos.explore.simulate.crash import find_crash
from pytest_chaos.explore.simulate.folder import StateFolder
from pytest_chaos.sqlite.detect import NO_DATABASE, SqliteJudgement, judged
from pytest_chaos.sqlite.telling import Teller
from pytest_chaos.trace.calls.touches import EventLog
from pytest_chaos.trace.recording import Recorder, Recording
from pytest_chaos.trace.survey import noting_environment, trace_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_chaos.explore.target import Subject
    from pytest_chaos.model.values import Finding
    from pytest_chaos.sqlite.commits import SchemaChange
    from pytest_chaos.trace.schedule import Schedule
    from pytest_chaos.trace.source import Observation, Program, StepSource
    from pytest_chaos.trace.step import Event

SCHEMA_TRIES: Final = 6
"""So many pairs of schema changes are tried; of more, the first ones."""
NOT_WATCHED: Final = "harness:not-watched"
_OF_A_SCHEMA: Final = re.compile(
    r"duplicate column|already exists|no such (table|column|index)|has no column|table .* has \d+ columns",
    re.IGNORECASE,
)


class WatchedRun(NamedTuple):
    """What a watched run has shown."""

    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


class Watching:
    """Watches a program's SQLite databases in runs of their own, below ``folder``.

    ``power``: its acks promise that a power loss takes nothing back, either.
    """

    def __init__(
        self,
        subject: Subject,
        source: StepSource,
        folder: Path,
        disk: Path,
        *,
        seed: str,
        timeout_s: float,
        power: bool,
    ) -> None:
        self._subject = subject
        self._source = source
        self._folder = folder
        self._disk = disk
        self._seed = seed
        self._timeout_s = timeout_s
        self._power = power
        self._count = 0

    def watch(self, schedule: Schedule | None = None) -> WatchedRun:
        """Run the program once, watched; return what it did to SQLite.

        A run that cannot be watched, or does not end well, is a finding of the harness: nothing is
        known then.
        """
        if self._source.name != "seccomp":
            text = "what the program does to SQLite can be seen by system calls alone, and these cannot be seen here"
            return WatchedRun((harness_finding(NOT_WATCHED, f"{text} (chaos doctor says why)"),))
        events: list[Event] = []
        log = EventLog(events.append)
        try:
            with contextlib.closing(self._recorded(log, schedule)) as run:
                if problem := _problem_of(run.seen, log):
                    return WatchedRun((harness_finding(NOT_WATCHED, f"the watched run {problem}"),))
                names = {str(each.number): f"process {each}" for each in run.seen.processes if each.number > 1}
                found = judged(events, name_of=lambda process: names.get(process, ""), power=self._power)
                if not found.databases:
                    return WatchedRun((harness_finding(NOT_WATCHED, NO_DATABASE),))
                findings = [*found.findings, *self._half_way(found, run, names)]
        except ExplorationError as error:
            return WatchedRun((harness_finding(NOT_WATCHED, f"the watched run failed: {error}"),))
        return WatchedRun(tuple(findings), (f"watched for SQLite: {', '.join(found.databases)}",))

    def _recorded(self, log: EventLog, schedule: Schedule | None) -> _Recording:
        self._count += 1
        place = self._folder / f"watched-{self._count}"
        directory, marks = prepared(self._subject, place, timeout_s=self._timeout_s), place.with_suffix(".marks")
        lines_at = place.with_suffix(".lines")
        recorder = Recorder(self._disk / place.name / "recording", self._source.name)
        lines = NotedPlaces(lines_at)
        try:
            seen = self._source.observe(
                _noting(self._subject.program(directory, marks), lines, lines_at),
                directory,
                marks=marks,
                recorder=recorder,
                schedule=schedule,
                lines=lines,
                events=log,
                timeout_s=self._timeout_s,
            )
        finally:
            recorder.close()
        return _Recording(seen, Recording(recorder.folder), directory)

    # Schema changes

    def _half_way(self, found: SqliteJudgement, run: _Recording, names: dict[str, str]) -> list[Finding]:
        """Try what kills between schema changes leave; return where the program cannot go on."""
        pairs = _pairs(found.schema_changes)[:SCHEMA_TRIES]
        if not pairs or self._run_on(run.directory) is not None:  # it cannot be run twice, whatever its schema is
            return []
        tell = Teller(lambda process: names.get(process, ""))
        findings: dict[str, Finding] = {}
        with contextlib.closing(PageStore(run.recording.folder)) as store:
            for before, after in pairs:
                code = f"crash:{before.event.number + 1}"
                state = find_crash(run.recording, store, code, self._seed)
                if state is None:
                    continue
                directory = self._folder / "half-way"
                StateFolder(directory).put(state.items)
                said = self._run_on(directory)
                again = self._run_on(directory) if said is not None and _OF_A_SCHEMA.search(said) else None
                shutil.rmtree(directory, ignore_errors=True)
                if again is not None and _OF_A_SCHEMA.search(again):
                    text = (
                        f"killed between the schema changes of {before.database} at {tell.who(before.event)} and "
                        f"{tell.who(after.event)}, which are two transactions, the program does not run any more: "
                        f"{again}. Make them one transaction, with the record that they are made"
                    )
                    finding = tell.finding("schema-half-way", before.database, before.event, text)
                    findings.setdefault(finding.signature, finding)
        return list(findings.values())

    def _run_on(self, directory: Path) -> str | None:
        """Run the program on a directory; return what it printed last if it fails, else None."""
        marks = directory.with_suffix(".again")
        marks.write_bytes(b"")
        seen = self._source.observe(
            self._subject.program(directory, marks), directory, marks=marks, timeout_s=self._timeout_s
        )
        return None if seen.exit_code == 0 and not seen.failure else tail(seen.output)


class _Recording(NamedTuple):
    """A watched run with its recording."""

    seen: Observation
    recording: Recording
    directory: Path

    def close(self) -> None:
        """Close the recording, and remove what is left of the run."""
        self.recording.close()
        shutil.rmtree(self.recording.folder.parent, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)


def _noting(program: Program, lines: NotedPlaces, lines_at: Path) -> Callable[[], None] | Sequence[str]:
    """Return the program, with its lines noted: its own, and those of Python that it starts."""
    if not callable(program):
        return program
    start = program

    def run() -> None:
        os.environ.update(noting_environment(lines_at, os.environ))
        trace_lines(lines.put)
        start()

    return run


def _problem_of(seen: Observation, log: EventLog) -> str:
    """Return why a watched run tells nothing, or an empty text."""
    if seen.failure:
        return f"cannot be trusted: {seen.failure}"
    if seen.exit_code != 0:
        return f"ended with {seen.exit_code}; it printed: {tail(seen.output)}"
    return "made more calls than are kept, so that its end was not judged" if log.is_cut else ""


def _pairs(changes: Sequence[SchemaChange]) -> list[tuple[SchemaChange, SchemaChange]]:
    """Return the schema changes of one database that follow each other, from one process."""
    found = []
    last: dict[tuple[str, str], SchemaChange] = {}
    for change in changes:
        key = (change.database, change.event.process)
        if key in last:
            found.append((last[key], change))
        last[key] = change
    return found
