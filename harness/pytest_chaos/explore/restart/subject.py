"""A command without a check as a target: each state is judged by a restart and its end.

After a kill the end has to be that of an unkilled run. After a power loss or an I/O error it need
not: what was never acknowledged may be lost. There the restart must work, and what it lacks is a
finding if a mark has acknowledged it, by its key; after an I/O error also if the program ended as
if nothing had happened: with exit code 0, and with the output of a clean run.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_chaos.explore.record import DeadlockError, prepared, run_untraced, tail
from pytest_chaos.explore.report import ExplorationError, Family, harness_finding
from pytest_chaos.explore.restart.compare import EndDifference, Learned, differences, learn
from pytest_chaos.explore.restart.ends import End, end_of
from pytest_chaos.explore.target import CheckError, CommandSubject, no_restart
from pytest_chaos.model.history import History
from pytest_chaos.model.values import Finding
from pytest_chaos.trace.step import KNOWN_FILES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence, Set as AbstractSet

    from pytest_chaos.explore.judge import Judgement
    from pytest_chaos.model.values import Mark
    from pytest_chaos.trace.step import FileKinds

CLEAN_RUNS: Final = 3
"""The clean runs from which is learned what varies."""
MORE_RUNS: Final = 8
"""Further clean runs, made once something was found: does it come without any fault?"""
_LATE: Final = 0.8
"""The share of the time for a check after which a restart is ended: the check has to end, too."""
_NOTES_MAX: Final = 8
_OUTPUT_CHARACTERS: Final = 2_000
_DURABLE: Final = frozenset({Family.POWER, Family.IO})


class RestartSubject(CommandSubject):
    """A command whose check is its own restart. ``volatile`` are parts that need not be equal.

    A part of a database or of JSON is ``PATH:TABLE``, ``PATH:TABLE.COLUMN`` or ``PATH:KEY``.
    """

    is_by_restart = True

    def __init__(
        self,
        run: Sequence[str],
        *,
        setup: Sequence[str] = (),
        volatile: Sequence[str] = (),
        output: bool = False,
        timeout_s: float = 60.0,
    ) -> None:
        super().__init__(run, run, setup=setup, timeout_s=timeout_s)
        self._volatile = [pattern for pattern in volatile if ":" in pattern]
        self._output = output
        self._learned: Learned | None = None
        self._before: frozenset[str] = frozenset()
        self._files = KNOWN_FILES
        self._folder = Path(tempfile.gettempdir())
        self._family = ""
        self._ran: Judgement | None = None
        self._printed = ""
        self._unstable: list[str] | None = None
        """Parts that more clean runs have left otherwise; None before these were made."""

    # Before anything is explored

    def learn(self, folder: Path, files: FileKinds, *, timeout_s: float) -> tuple[list[str], list[Finding]]:
        """Make clean runs, and one more after a complete one; return notes and findings.

        Raises ExplorationError if a clean run fails, or nothing of its end can be compared.
        """
        self._files, self._folder = files, folder
        directory = folder / "once-0"
        ends = [self._clean_end(folder / f"once-{number}", timeout_s) for number in range(CLEAN_RUNS)]
        self._printed = ends[0].output
        again = self._end(directory, folder / "again.marks", timeout_s)
        for number in range(CLEAN_RUNS):
            shutil.rmtree(folder / f"once-{number}", ignore_errors=True)
        if again is None:
            text = f"a second run, after a complete one, did not end within {timeout_s:.3g} s: a restart would hang"
            raise ExplorationError(text, signature="harness:restart-hangs")
        self._learned = learned = learn(ends, again, self._volatile)
        if not learned.rules:
            self._refuse(learned)
        return self._notes(learned), self._added(learned)

    @staticmethod
    def _refuse(learned: Learned) -> None:
        if learned.added:
            text = (
                f"each run adds to what is there ({_first(learned.added.values())}), so there is no one end that a "
                "restart must come to. If that is meant, give a --check; else let a run go on where the last one ended"
            )
            raise ExplorationError(text, signature="harness:runs-add-up")
        if learned.varying:
            text = (
                f"no clean run leaves what the one before it has left ({_first(learned.varying)}): there is nothing "
                "to compare. Take from the program what is random, such as the time, or give a --check"
            )
            raise ExplorationError(text, signature="harness:runs-differ")
        text = (
            "a clean run leaves no file in its directory that is not volatile: there is nothing to compare. Let it "
            "write there, or give a --check"
        )
        raise ExplorationError(text, signature="harness:nothing-left")

    def _notes(self, learned: Learned) -> list[str]:
        notes = [f"judged by a restart, which must leave what an unkilled run leaves: {_listed(sorted(learned.rules))}"]
        if learned.varying:
            notes.append(f"not compared, since clean runs differ in it: {_listed(learned.varying)}")
        if learned.logs:
            notes.append(f"not compared, since each run appends to this log: {_listed(learned.logs)}")
        for part, rule in learned.rules.items():
            if rule.without and len(notes) < _NOTES_MAX:
                notes.append(f"of {part} is not compared: {_listed(sorted(rule.without))}")
            elif not rule.has_numbers and len(notes) < _NOTES_MAX:
                notes.append(f"of {part} the numbers are not compared, since clean runs differ in them")
        return notes

    @staticmethod
    def _added(learned: Learned) -> list[Finding]:
        """Return the finding that parts without one end were left out: it is INCONCLUSIVE."""
        parts = [part for part in learned.added if part not in learned.logs]
        if not parts:
            return []
        named = " ".join(f"--volatile '{part.replace(' table ', ':')}'" for part in parts[:_NOTES_MAX])
        text = (
            f"a second run, after a complete one, changes {_listed(parts)} ({learned.added[parts[0]]}): each run adds "
            f"to it, so it is not known what a restart should leave there, and it was not compared. If that is meant, "
            f"say so with {named}; else let a run go on where the last one ended"
        )
        return [harness_finding("harness:runs-add-up", text)]

    def _clean_end(self, directory: Path, timeout_s: float) -> End:
        """Run the program in a fresh folder to its end. Raises ExplorationError if it fails."""
        prepared(self, directory, timeout_s=timeout_s)
        self._before = frozenset(end_of(directory, self._is_compared).parts)
        end = self._end(directory, directory.with_suffix(".marks"), timeout_s)
        if end is None:
            text = f"a clean run did not end within {timeout_s:.3g} s: give more time with --run-timeout"
            raise ExplorationError(text, signature="harness:does-not-end")
        if end.exit_code != 0:
            text = f"a clean run ended with exit code {end.exit_code}; it printed: {tail(end.output)}"
            raise ExplorationError(text, signature="harness:clean-run-failed")
        return end

    def _end(self, directory: Path, marks: Path, timeout_s: float) -> End | None:
        """Run the program in a folder and return its end; None if it did not come."""
        try:
            code = run_untraced(self.program(directory, marks), directory, marks, timeout_s, has_timer=True)
        except DeadlockError:
            code = None
        with contextlib.suppress(OSError):
            output = marks.with_name(f"{marks.name}.output").read_text(errors="replace")
        return None if code is None else end_of(directory, self._is_compared, exit_code=code, output=output)

    def _is_compared(self, path: str) -> bool:
        return not self._files.ignores(path) and not self._files.is_volatile(path)

    # In a worker

    def judging(self, family: str, ran: Judgement | None) -> None:
        """Hear of which family the next state is, and how the run before it ended, if any."""
        self._family, self._ran = family, ran

    def check_with_file(self, directory: Path, marks: Path, keys: AbstractSet[str] = frozenset()) -> list[Finding]:
        """Start the program again on a state, and compare its end with that of an unkilled run.

        Raises CheckError if more clean runs differ in what was found.
        """
        del keys
        self.said = ""
        learned = self._learned
        assert learned is not None  # noqa: S101 - see learn
        seen = History.from_lines(marks.read_bytes()).marks if marks.exists() else ()
        end = self._end(directory, marks, self._timeout_s * _LATE)
        if end is None:
            text = f"the restart did not end within {self._timeout_s * _LATE:.3g} s (--check-timeout sets it)"
            return [Finding(signature="liveness:recovery-hangs", text=text, kind="liveness")]
        found = differences(learned, end, self._before, output=self._output)
        if end.exit_code != 0 and (found or learned.exit_again == 0):
            lacks = f"; {found[0].text}" if found else ""
            text = f"a restart ended with exit code {end.exit_code}; it printed: {tail(end.output)}{lacks}"
            return self._stable([], [no_restart(text, f"exit {end.exit_code}")])
        found = [each for each in found if self._counts(each, seen)]
        return self._stable(found, [_finding(each) for each in found])

    def _counts(self, difference: EndDifference, seen: Iterable[Mark]) -> bool:
        """Whether a difference breaks a promise: after a kill each one does."""
        if self._family not in _DURABLE:
            return True
        if self._family == Family.IO and self._has_ended_as_ever():
            return True
        acked = [str(mark.key) for mark in seen if mark.kind == "ack" and mark.key is not None]
        return any(_names(text, key) for key in acked for text in difference.lacks)

    def _has_ended_as_ever(self) -> bool:
        ran = self._ran
        if ran is None:  # the state was made again by its code, for it was found before
            return True
        said = ran.output[-_OUTPUT_CHARACTERS:].strip()
        return ran.exit_code == 0 and not ran.is_timed_out and self._printed.strip().endswith(said)

    def _stable(self, found: Sequence[EndDifference], findings: list[Finding]) -> list[Finding]:
        """Return the findings, if further clean runs do not differ in these parts."""
        if not findings:
            return []
        if self._unstable is None:
            self._unstable = self._more_runs()
        if shaky := [part for part in self._unstable if not found or part in {each.part for each in found}]:
            msg = (
                f"clean runs need not agree on {_listed(shaky)}, so a restart cannot be blamed for it: take from the "
                f"program what is random, or name it with --volatile"
            )
            raise CheckError(msg)
        return findings

    def _more_runs(self) -> list[str]:
        assert self._learned is not None  # noqa: S101 - see learn
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="more-", ignore_cleanup_errors=True) as name:
            try:
                ends = [
                    self._clean_end(Path(name) / f"{number}", self._timeout_s * _LATE) for number in range(MORE_RUNS)
                ]
            except ExplorationError:
                return ["how they end"]
        return sorted({each.part for end in ends for each in differences(self._learned, end, self._before)})


def _finding(found: EndDifference) -> Finding:
    return Finding(signature=f"restart:{found.part}:{found.kind}", text=f"after a restart, {found.text}")


def _names(text: str, key: str) -> bool:
    """Whether a text has a key as a word of its own."""
    return re.search(rf"(?<!\w){re.escape(key)}(?!\w)", text) is not None


def _first(texts: Iterable[str]) -> str:
    return next(iter(texts))


def _listed(texts: Sequence[str]) -> str:
    shown = ", ".join(texts[:_NOTES_MAX])
    return f"{shown} and {len(texts) - _NOTES_MAX:,} more" if len(texts) > _NOTES_MAX else shown
