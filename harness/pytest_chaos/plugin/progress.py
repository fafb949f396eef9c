"""Progress of a session: the scenario that runs, the runs done and their verdicts, the time left.

A terminal gets one line that is written over, and a line that stays for each run that did not hold.
A pipe, as in CI, gets a line at most every 10 s. Under ``-q`` there is nothing. No thread keeps the
clock: a test may fork, so a line comes when a run begins or ends.

The time left is the sum of what each waiting run took the last time, from pytest's cache. A run
without such a time counts as the mean of those that ended.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_chaos.plugin.runs import RECORD
from pytest_chaos.plugin.selection import without_iteration
from pytest_chaos.plugin.session import DURATIONS, earlier_s

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from pytest_chaos.model.values import RunRecord
    from pytest_chaos.plugin.planned import Planned

EVERY_S: Final = 10.0
_DURATIONS_KEPT: Final = 10_000
_CLEAR: Final = "\r\x1b[2K"


class SessionProgress:
    """The hooks that tell how far the session is; ``planned`` knows the runs to come."""

    def __init__(self, config: pytest.Config, planned: Planned) -> None:
        """Tell nothing before the first chaos run."""
        self._config = config
        self._planned = planned
        self._reporter: Any = None
        self._verdicts: Counter[str] = Counter()
        self._started_s: dict[str, float] = {}
        self._took_s: dict[str, float] = {}
        self._earlier_s: Mapping[str, float] = {}
        self._told_s = 0.0
        self._live: bool | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Name the run that begins, before pytest would name its file."""
        if nodeid not in self._planned.waiting:
            return
        if self._live is None:
            self._begin()
        self._started_s[nodeid] = time.monotonic()
        self._tell(nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the run that ended; one that did not hold gets a line that stays."""
        text = getattr(report, RECORD, None)
        if text is None or self._live is None:
            return
        import msgspec

        from pytest_chaos.model.values import RunRecord

        record = msgspec.json.decode(text, type=RunRecord)
        self._verdicts[str(record.verdict)] += 1
        if (started_s := self._started_s.pop(report.nodeid, None)) is not None:
            self._took_s[self._key(report.nodeid)] = time.monotonic() - started_s
        if self._live and record.verdict != "HELD":
            self._write(f"{_CLEAR}{shortened(_sentence(record), _columns())}\n")
        if self._started_s:  # of another worker
            self._tell(next(reversed(self._started_s)))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> Generator[None, Any, Any]:
        """Print no letter for a run that the live line has counted."""
        status = yield
        if self._live and getattr(report, RECORD, None) is not None and status:
            return status[0], "", status[2]
        return status

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Remove the live line, and keep the durations for the next session."""
        if self._live:
            self._write(_CLEAR)
        self._live = None
        cache = getattr(self._config, "cache", None)  # -p no:cacheprovider: there is none
        if cache is not None and self._took_s:
            kept = {**self._earlier_s, **{key: round(took_s, 3) for key, took_s in self._took_s.items()}}
            cache.set(DURATIONS, dict(list(kept.items())[-_DURATIONS_KEPT:]))

    def _begin(self) -> None:
        option = self._config.option
        self._reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        is_plain = option.verbose == 0 and option.capture != "no" and not self._planned.has_others
        self._live = is_plain and sys.stdout.isatty() and not getattr(option, "usepdb", False)
        if self._live and self._reporter is not None:
            self._reporter.showfspath = False
        self._told_s = time.monotonic()
        self._earlier_s = earlier_s(self._config)

    def _tell(self, node_id: str) -> None:
        if self._config.option.verbose < 0 or self._reporter is None:
            return
        if self._live:
            self._write(f"{_CLEAR}{shortened(self._line(node_id), _columns() - 1)}")
        elif time.monotonic() - self._told_s >= EVERY_S:
            self._told_s = time.monotonic()
            self._reporter.ensure_newline()
            self._reporter.write_line(self._line(node_id))

    def _line(self, node_id: str) -> str:
        done = self._verdicts.total()
        waiting = self._planned.waiting
        left_s = time_left_s(
            [self._earlier_s.get(self._key(each)) for each in waiting],
            list(self._took_s.values()),
            workers=int(getattr(self._config.option, "numprocesses", None) or 1),
        )
        scenario = waiting.get(node_id, "")
        return progress_line(done, done + len(waiting), self._verdicts, left_s, _named(scenario, node_id))

    def _key(self, node_id: str) -> str:
        return without_iteration(node_id) if self._planned.is_campaign else node_id

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that has gone
            sys.stdout.write(text)
            sys.stdout.flush()


def time_left_s(earlier_s: list[float | None], took_s: list[float], *, workers: int) -> float | None:
    """Return the seconds that the waiting runs will take, or None before anything is known.

    ``earlier_s`` has a time of each waiting run, None if it never ran; ``took_s`` has one of each
    that ended.

    >>> time_left_s([2.0, None], [4.0, 6.0], workers=1)
    7.0
    >>> time_left_s([None], [], workers=2) is None
    True
    """
    known = took_s or [each for each in earlier_s if each is not None]
    if not known:
        return None
    mean_s = sum(known) / len(known)
    return sum(mean_s if each is None else each for each in earlier_s) / workers


def progress_line(done: int, total: int, verdicts: Mapping[str, int], left_s: float | None, running: str) -> str:
    """Return the line that tells how far a session is.

    >>> progress_line(3, 9, {"HELD": 2, "VIOLATED": 1}, 75.4, "01-kill-9: test_killed")
    'chaos: 3 of 9 runs: 2 held, 1 violated; some 1:15 left; 01-kill-9: test_killed'
    """
    counted = ", ".join(f"{count} {verdict.lower()}" for verdict, count in verdicts.items() if count)
    parts = [f"chaos: {done:,} of {total:,} runs" + (f": {counted}" if counted else "")]
    if left_s is not None and done < total:
        minutes, seconds = divmod(round(left_s), 60)
        parts.append(f"some {minutes}:{seconds:02d} left")
    return "; ".join([*parts, running])


def shortened(text: str, columns: int) -> str:
    """Return a text in one line of a terminal, without characters that a terminal obeys.

    >>> shortened("a long line", 8)
    'a lon...'
    """
    plain = "".join(each if each.isprintable() else " " for each in text)
    return plain if len(plain) <= columns else plain[: max(columns - 3, 0)] + "..."


def _sentence(record: RunRecord) -> str:
    why = record.findings[0].text if record.findings else record.failure
    return f"{record.verdict} {_named(record.scenario.id, record.node_id)}: {why}"


def _named(scenario: str, node_id: str) -> str:
    test = node_id.rpartition("::")[2] if "[" not in node_id else node_id.partition("[")[0].rpartition("::")[2]
    parameters = node_id.partition("[")[1] + node_id.partition("[")[2]
    return f"{scenario}: {test}{parameters}" if scenario else f"{test}{parameters}"


def _columns() -> int:
    return shutil.get_terminal_size().columns
