"""The results of a session: records, reports, exit code, and the last lines of the terminal.

Only the controller has them. Under xdist each record travels in the report of its test.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_chaos.plugin import junit
from pytest_chaos.plugin.campaign.remembered import remember
from pytest_chaos.plugin.runs import REASON, RECORD
from pytest_chaos.plugin.selection import WORKER_OUTPUT
from pytest_chaos.plugin.session import command_line, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from pytest_chaos.evidence.records import SessionFolder
    from pytest_chaos.model.campaign import MatrixSummary
    from pytest_chaos.model.values import RunRecord, SessionEnd, SessionResumed
    from pytest_chaos.plugin.runs import Runs
    from pytest_chaos.plugin.session import ChaosSession

_CRASH_TIMEOUT_S: Final = 15.0


class Results:
    """The hooks about reports and the end of the session."""

    def __init__(self, session: ChaosSession, runs: Runs) -> None:
        """Collect the results of this session, which ends its runs."""
        self._session = session
        self._runs = runs
        self._folder: SessionFolder | None = None
        self._records: list[RunRecord] = []
        self._expected: list[RunRecord] = []
        self._problems: list[str] = []
        self._mistakes: list[str] = []
        self._other_failures = 0
        self._tolerated: set[str] = set()
        self.end: Callable[[], SessionEnd]
        """What is known of the planned runs at the end; set by ``planned``."""

    def begin(self) -> None:
        """Begin the records of the session, before its first run."""
        from pytest_chaos.errors import ResultsError
        from pytest_chaos.evidence.records import SessionFolder

        if self._folder is not None:
            return
        self._folder = self._session.resumed_folder
        try:
            if self._folder is not None and self._session.resumed is not None:
                self._records += self._session.resumed.runs
                self._folder.resume(self._resumed_line(self._session.resumed.again))
                return
            self._folder = SessionFolder(self._session.settings.results, self._session.name)
            self._folder.create(self._session.header)
            self._folder.hold()
        except ResultsError as error:
            self._problems.append(str(error))

    def _resumed_line(self, again: tuple[tuple[str, int], ...]) -> SessionResumed:
        import datetime

        from pytest_chaos.model.values import SessionResumed

        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return SessionResumed(started=started, command=command_line(), again=again)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write each record at once, in the process that has them all."""
        if self._session.is_worker:
            return
        text = getattr(report, RECORD, None)
        if text is None:
            self._other_failures += report.failed
            return
        import msgspec

        from pytest_chaos.model.values import RunRecord, Verdict

        record = msgspec.json.decode(text, type=RunRecord)
        self._other_failures += report.failed and record.verdict is Verdict.HELD  # by xfail(strict=True), say
        if hasattr(report, "wasxfail") and record.verdict is not Verdict.HELD:
            self._expected.append(record)
        self._add_record(record)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a module that cannot be collected as a failure that no pass rate forgives."""
        self._other_failures += report.failed

    def _add_record(self, record: RunRecord) -> None:
        self._records.append(record)
        self.begin()
        self._append(record)

    def _append(self, line: RunRecord | SessionEnd) -> None:
        from pytest_chaos.errors import ResultsError
        from pytest_chaos.model.values import SessionEnd

        if self._folder is None or self._problems:
            return
        try:
            if isinstance(line, SessionEnd):
                self._folder.end(line)
            else:
                self._folder.append(line)
        except ResultsError as error:
            self._problems.append(str(error))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Collect mistakes in markers and options that only workers, which collect, can see."""
        mistake = getattr(node, "workeroutput", {}).get(WORKER_OUTPUT)
        if mistake is not None and mistake not in self._mistakes:
            self._mistakes.append(mistake)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """Record the run of a worker that died, from the evidence that its guardian saves."""
        import msgspec

        from pytest_chaos.runtime.scratch import record_of

        for pack in self._packs_of_crashed(crashitem):
            record = record_of(pack, report.longreprtext)
            setattr(report, RECORD, msgspec.json.encode(record).decode())

    def _packs_of_crashed(self, node_id: str) -> list[Path]:
        """Return the evidence of a run that died with its worker, once it is saved."""
        from pytest_chaos.plugin import selection as scenarios

        known = {record.run_id for record in self._records}
        is_campaign = self._session.settings.iterations > 1 and self._session.replayed is None
        base = scenarios.without_iteration(node_id) if is_campaign else node_id
        prefix = scenarios.run_id(base, 0).rpartition("-")[0]
        found: list[Path] = []

        def is_over(under_way: set[str]) -> bool:
            packs = (self._session.folder / "evidence").glob(f"{prefix}-*")
            found[:] = [pack for pack in sorted(packs) if pack.name not in known]
            return bool(found) or base not in under_way

        self._await_evidence(is_over)
        return found[:1]

    def _await_evidence(self, is_over: Callable[[set[str]], bool]) -> None:
        """Wait, with a bound, while guardians save evidence; save it where there is no guardian.

        A run that started no agent had no guardian. ``is_over`` gets the node ids of the runs
        whose evidence is not saved yet.
        """
        import time

        from pytest_chaos.runtime import scratch

        base = self._session.settings.scratch
        deadline_s = time.monotonic() + _CRASH_TIMEOUT_S
        while not is_over(scratch.runs_under_way(base, self._session.folder)) and time.monotonic() < deadline_s:
            if not scratch.sweep(base):
                time.sleep(0.01)

    def pytest_report_teststatus(self, report: pytest.CollectReport | pytest.TestReport) -> Any:
        """Show an inconclusive run as I: neither a pass nor a verdict against the target."""
        text = getattr(report, RECORD, None)
        if text is None or not report.failed:
            return None
        record = json.loads(text)
        if record["verdict"] == "INCONCLUSIVE":
            return "inconclusive", "I", ("INCONCLUSIVE", {"yellow": True})
        own = record["scenario"].get("pass_rate_min")
        rate_min = self._session.settings.pass_rate_min if own is None else own
        if record["verdict"] == "VIOLATED" and rate_min < 1:  # the rate decides later whether it is a failure
            return "failed", "v", ("VIOLATED", {"red": True})
        return None

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, None, None]:
        """End the guardian, let reports be made, and derive the exit code from the pass rates.

        It comes after xdist has ended its workers, which may leave evidence at their end.
        """
        self._runs.close()
        yield
        if self._mistakes:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        if not self._session.is_worker:
            self._finish(session, exitstatus)

    def _finish(self, session: pytest.Session, exitstatus: int) -> None:
        if session.config.pluginmanager.hasplugin("dsession"):
            self._adopt_packs()
        if not self._records and not self._session.planned:
            return
        from pytest_chaos.evidence.records import Records, gathered
        from pytest_chaos.model import campaign
        from pytest_chaos.model.values import Verdict

        records = gathered(self._session.header, tuple(self._records), end := self.end())
        self._append(end)
        is_whole = not any(account.missing for account in records.accounts)
        is_whole &= not any(campaign.short_budget(records.header, records.accounts))
        is_part = self._session.settings.shard is not None or self._session.resumed is not None
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and is_part:  # all its runs are elsewhere, or made
            session.exitstatus = exitstatus = pytest.ExitCode.OK
        if not self._records and is_whole:  # all of them were skipped
            return
        remember(self._session.config, self._session.settings)
        unexpected = [record for record in self._records if record not in self._expected]
        verdict = (
            campaign.summarise(Records(self._session.header, tuple(unexpected))).verdict if unexpected else Verdict.HELD
        )
        forgivable = (
            is_whole and not self._other_failures and not session.shouldfail
        )  # with -x the campaign was not run to its end
        if exitstatus == pytest.ExitCode.TESTS_FAILED and forgivable and verdict is Verdict.HELD:
            session.exitstatus = pytest.ExitCode.OK
        elif exitstatus == pytest.ExitCode.OK and (verdict is not Verdict.HELD or self._problems or not is_whole):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if not session.shouldfail:
            self._tolerate(campaign.summarise(records))
        if self._folder is not None and not self._problems:
            self._remove_old_sessions()
            self._session.config.hook.pytest_chaos_session_finished(
                session_folder=self._folder.path,
                records=records,
                formats=self._session.settings.formats,
                config=self._session.config,
            )

    def _tolerate(self, summary: MatrixSummary) -> None:
        """Give runs that a pass rate tolerates an outcome of their own, like pytest's xfail."""
        self._tolerated = {each.scenario.id for each in summary.scenarios if each.tolerated}
        reporter = self._session.config.pluginmanager.get_plugin("terminalreporter")
        if not self._tolerated or reporter is None:
            return
        junit.tolerate(self._session.config, self._tolerated)
        for category in ("failed", "inconclusive"):
            for report in reporter.getreports(category):
                text = getattr(report, RECORD, None)
                if text is not None and json.loads(text)["scenario"]["id"] in self._tolerated:
                    reporter.stats[category].remove(report)
                    reporter.stats.setdefault("tolerated", []).append(report)
            if not reporter.stats.get(category):
                reporter.stats.pop(category, None)

    def _word(self, record: RunRecord) -> str:
        return "TOLERATED" if record.scenario.id in self._tolerated else str(record.verdict)

    def _write_hints(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write, each in one line, what runs that held cannot have shown."""
        from pytest_chaos.model import verdict

        hints = Counter(each for record in self._records for each in record.notes.get(verdict.HINT, ()))
        for hint, held in hints.items():
            which = f"{held} run{'s' if held != 1 else ''} held"
            terminalreporter.write_line(f"chaos: {which}, and {hint}", yellow=True)

    def _adopt_packs(self) -> None:
        """Record runs whose worker ended before its report came, from the evidence of them."""
        if self._folder is None or len(self._records) >= sum(each.runs for each in self._session.planned):
            return
        from pytest_chaos.errors import EvidenceError
        from pytest_chaos.runtime import scratch

        self._await_evidence(lambda under_way: not under_way)
        known = {record.run_id for record in self._records}
        for pack in sorted(self._folder.evidence.glob("*/manifest.json")):
            if pack.parent.name not in known:
                with contextlib.suppress(EvidenceError):  # a pack that was not finished
                    self._add_record(scratch.record_of(pack.parent))

    def _remove_old_sessions(self) -> None:
        """Keep the newest sessions, and all with evidence; what cannot be removed stays."""
        from pytest_chaos.errors import ResultsError
        from pytest_chaos.evidence import retention

        with contextlib.suppress(ResultsError):
            retention.clean(self._session.settings.results, keep=retention.KEPT_UNASKED)

    @pytest.hookimpl(wrapper=True, tryfirst=True, specname="pytest_terminal_summary")
    def pytest_terminal_summary_of_inconclusive(
        self, terminalreporter: pytest.TerminalReporter
    ) -> Generator[None, object, object]:
        """Show inconclusive runs in pytest's short test summary, without counting them twice."""
        try:
            return (yield)
        finally:
            unclear = terminalreporter.getreports("inconclusive")
            failed = [report for report in terminalreporter.stats.get("failed", []) if report not in unclear]
            if unclear and not failed:
                terminalreporter.stats.pop("failed", None)
            elif unclear:
                terminalreporter.stats["failed"] = failed

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show inconclusive runs, and for each run that did not hold the line that repeats it."""
        for problem in (*self._mistakes, *self._problems):
            terminalreporter.write_line(f"chaos: {problem}", red=True)
        unclear = terminalreporter.getreports("inconclusive")
        if unclear and terminalreporter.config.option.tbstyle != "no":
            terminalreporter.write_sep("=", "chaos: INCONCLUSIVE", yellow=True)
            for report in unclear:
                terminalreporter.write_sep("_", report.head_line or report.nodeid)
                for _, why in (each for each in report.sections if each[0] == REASON):
                    terminalreporter.write_line(why)
                terminalreporter.write_line(report.longreprtext)
        if self._records and terminalreporter.config.getoption("verbose") >= 0:
            folder = shown(self._session.folder, self._session.config)
            terminalreporter.write_line(f"chaos: seed {self._session.settings.seed}; results in {folder}")
            self._write_hints(terminalreporter)
        failed = [record for record in self._records if record.verdict != "HELD"]
        if failed:
            terminalreporter.write_sep("=", "chaos: reproduce")
            for record in failed:
                terminalreporter.write_line(
                    f"{self._word(record)} {record.node_id}: {record.reproduce or 'run it again'}"
                )
        if unclear:  # pytest's short summary comes next, and knows the lines of failed tests only
            terminalreporter.stats.setdefault("failed", []).extend(unclear)
