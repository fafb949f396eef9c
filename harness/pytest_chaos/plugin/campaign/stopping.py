"""Runs that are not begun: their scenario's rate is decided, or the budget is used up.

The process that has all records decides. Under xdist it leaves the names of decided scenarios in
the session's folder, where workers look before each run. A run that is not begun is a skipped test
with a reason, so fixtures of a module end as usual; it is counted apart from what a test skipped.

A run that has begun is never cut: the budget bounds what begins. A test that took longer the last
time than is left is not begun either, but for its first run.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_chaos.plugin.runs import RECORD
from pytest_chaos.plugin.selection import base_of, is_chaos, scenario_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

    from pytest_chaos.model.values import RunRecord, Scenario
    from pytest_chaos.plugin.session import ChaosSession

NOT_BEGUN: Final = "chaos_not_begun"
"""The attribute of a report that says why a run was not begun."""
DECIDED: Final = "decided"
OVER_BUDGET: Final = "over budget"
_WORDS: Final = {DECIDED: "not needed", OVER_BUDGET: "over budget"}
_FILE: Final = ".decided"
_WHY: Final = pytest.StashKey[str]()


def now_s() -> float:
    """Return the time of the clock that budgets are about, which all processes share."""
    return time.monotonic()


class Stopping:
    """The hooks that leave out runs."""

    def __init__(self, session: ChaosSession) -> None:
        """Leave out nothing yet."""
        self._session = session
        self._decided: set[str] = set()
        self._counts: dict[str, Counter[str]] = {}
        self._took_s: dict[str, float] = {}
        self._seen: tuple[int, int] = (0, 0)

    def count(self, runs: Iterable[RunRecord]) -> None:
        """Count runs, of this session or an earlier part of it, and decide."""
        prove = self._session.settings.prove
        if prove is None:
            return
        from pytest_chaos.model.deciding.sequential import Standing, decide

        for run in runs:
            name = run.scenario.id
            counts = self._counts.setdefault(name, Counter())
            counts[run.verdict] += 1
            if name in self._decided:
                continue
            held, violated, unclear = (counts[each] for each in ("HELD", "VIOLATED", "INCONCLUSIVE"))
            is_out = violated > 0 and (run.scenario.pass_rate_min or 0) >= 1
            if is_out or decide(_rate(run.scenario, prove), held, violated, unclear) is not Standing.UNDECIDED:
                self._decided.add(name)
                self._tell()

    def is_decided(self, scenario: str) -> bool:
        """Whether further runs of a scenario are not needed."""
        return scenario in self._decided

    @property
    def _path(self) -> Path:
        return self._session.folder / _FILE

    def _tell(self) -> None:
        """Leave the decided scenarios for workers, in one step."""
        if not self._session.config.pluginmanager.hasplugin("dsession"):
            return
        fresh = self._path.with_name(f"{_FILE}-new")
        with contextlib.suppress(OSError):  # then workers make more runs than are needed
            fresh.write_text("\n".join(sorted(self._decided)))
            fresh.replace(self._path)

    def _hear(self) -> None:
        if not self._session.is_worker or self._session.settings.prove is None:
            return
        with contextlib.suppress(OSError):  # not there before the first decision
            status = self._path.stat()
            if (status.st_mtime_ns, status.st_ino) != self._seen:
                self._decided |= set(self._path.read_text().split("\n"))
                self._seen = (status.st_mtime_ns, status.st_ino)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Start the budget, and count what a resumed session has made."""
        is_distributed = session.config.pluginmanager.hasplugin("dsession")  # the workers have the items
        if not is_distributed and not any(map(is_chaos, session.items)):
            return  # a suite without chaos tests pays for no settings
        if self._session.settings.budget_s is not None:
            _ = self._session.began_s
        if self._session.resumed is not None:
            self.count(self._session.resumed.runs)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip a run that is not begun, before any fixture."""
        if not is_chaos(item) or (why := self._why(item)) is None:
            return
        item.stash[_WHY] = why
        pytest.skip(f"chaos: {why}")

    def _why(self, item: pytest.Item) -> str | None:
        settings = self._session.settings
        if settings.prove is not None:
            self._hear()
            if self.is_decided(scenario_of(item).id):
                return DECIDED
        if settings.budget_s is not None:
            left_s = self._session.began_s + settings.budget_s - now_s()
            if left_s <= self._took_s.get(base_of(item), 0.0):
                return OVER_BUDGET
        return None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Take the time of a run, with its fixtures."""
        began_s = now_s()
        try:
            return (yield)
        finally:
            if self._session.settings.budget_s is not None and is_chaos(item) and _WHY not in item.stash:
                self._took_s[base_of(item)] = now_s() - began_s

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Say in the report why a run was not begun."""
        report = yield
        if report.when == "setup" and (why := item.stash.get(_WHY, None)) is not None:
            setattr(report, NOT_BEGUN, why)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the run of a report, in the process that has them all."""
        text = getattr(report, RECORD, None)
        if text is None or self._session.is_worker or self._session.settings.prove is None:
            return
        import msgspec

        from pytest_chaos.model.values import RunRecord

        self.count([msgspec.json.decode(text, type=RunRecord)])

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> Any:
        """Give a run that is not begun a category of its own, and no letter."""
        why = getattr(report, NOT_BEGUN, None)
        return None if why is None else (_WORDS[why], "", f"NOT RUN ({_WORDS[why]})")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Remove the file for the workers."""
        if not self._session.is_worker and self._decided:
            with contextlib.suppress(OSError):
                self._path.unlink()


def _rate(scenario: Scenario, prove: float) -> float:
    own = scenario.pass_rate_min
    return own if own is not None and 0 < own < 1 else prove
