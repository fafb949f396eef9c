"""The runs of this process: made before a test, judged after it, packed if it failed."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Final

import pytest
from _pytest.outcomes import Failed  # pytest.fail.Exception, by the name under which it can be a base class

from pytest_chaos.plugin import junit
from pytest_chaos.plugin.selection import base_of, is_chaos, scenario_of
from pytest_chaos.plugin.session import command_line, shown, versions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_chaos.model.values import Json, Level, RunRecord
    from pytest_chaos.narrow.variant import RunVariant
    from pytest_chaos.plugin.session import ChaosSession
    from pytest_chaos.runtime.agent import GuardianClient
    from pytest_chaos.runtime.journal import RunHeader
    from pytest_chaos.runtime.run import Run


class Violated(Failed):
    """A VIOLATED run of a test that raised nothing."""


class Inconclusive(Failed):
    """A run without an answer: no fault fired, nothing was asserted, or the harness failed."""


def raise_unless_held(record: RunRecord) -> None:
    """Raise Violated or Inconclusive, with the reason, unless the run held."""
    from pytest_chaos.model.values import Verdict
    from pytest_chaos.model.verdict import reason

    if record.verdict is Verdict.VIOLATED:
        raise Violated(reason(record), pytrace=False) from None
    if record.verdict is Verdict.INCONCLUSIVE:
        raise Inconclusive(reason(record), pytrace=False) from None


def _say_in_one_line(report: pytest.TestReport, record: RunRecord) -> None:
    """Put the reason into the line of pytest's short summary, not the name of our exception."""
    from pytest_chaos.model.verdict import harmless

    reasons = [finding.text for finding in record.findings if finding.verdict is record.verdict]
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None and reasons:
        crash.message = harmless(f"{record.verdict}: {reasons[0]}")


RUN: Final = pytest.StashKey["Run"]()
"""The run of a test, in its stash."""

LEVEL: Final[pytest.StashKey[Level | None]] = pytest.StashKey()
"""What the processes that stay have before a test of a campaign, in its stash."""

REASON: Final = "chaos: verdict"
"""The section of a report with the reasons for the verdict of a test that raised another error."""

REPORTED: Final = pytest.StashKey[bool]()
"""Whether a test's run is in a report."""

VARIANT: Final = pytest.StashKey["RunVariant"]()
"""The variant that a narrowing executes a test with, in its stash."""

RECORD: Final = "chaos_record"
"""The attribute of a report in which a record travels to the controller."""


class Runs:
    """The runs of this process, with one guardian and one scratch folder for all."""

    def __init__(self, session: ChaosSession) -> None:
        """Prepare; nothing is started or written before the first run."""
        self._session = session
        self._client: GuardianClient | None = None
        self._scratch: Path | None = None
        self._confirmed: dict[tuple[str, frozenset[str]], str] = {}

    def start(self, item: pytest.Item, iteration: int) -> Run:
        """Make the run of a test: its journal and its header, before anything else happens."""
        import secrets

        from pytest_chaos.errors import UsageError
        from pytest_chaos.plugin.sweeps import PLACE
        from pytest_chaos.runtime.journal import Journal
        from pytest_chaos.runtime.run import Run

        header = self._run_header(item, iteration)
        variant = self._variant(item)
        replayed = variant.plan if variant is not None else None
        try:
            journal = Journal(self._scratch_folder() / f"{header.run_id}-{secrets.token_hex(2)}")
            run = Run(journal, header, self._connect, replay=replayed, place=item.stash.get(PLACE, None))
        except UsageError as error:
            raise Inconclusive(str(error), pytrace=False) from None
        except OSError as error:
            folder = self._session.settings.scratch
            msg = f"the scratch folder {folder} cannot be written ({error.strerror}). Give another, --chaos-scratch=DIR"
            raise Inconclusive(msg, pytrace=False) from None
        if variant is not None:
            run.given.fix(variant.sizes, variant.drawn)
        if self._session.config.getoption("chaos_steps") or (variant is not None and variant.survey):
            run.begin_survey(steps=True, lines=True)
        if item.config.getoption("chaos_watch"):
            run.watch_sqlite(if_any=True)
        return run

    def _variant(self, item: pytest.Item) -> RunVariant | None:
        """Return what a replay makes: the plan of its pack, or what a narrowing asks for."""
        pack = self._session.replayed
        if pack is None:
            return None
        from pytest_chaos.narrow.variant import of_pack

        return item.stash.get(VARIANT, None) or of_pack(pack)

    def _run_header(self, item: pytest.Item, iteration: int) -> RunHeader:
        import datetime

        from pytest_chaos.plugin import selection as scenarios
        from pytest_chaos.plugin.sweeps import PLACE
        from pytest_chaos.runtime.journal import RunHeader

        base = base_of(item)
        place = item.stash.get(PLACE, None)
        at = "" if place is None else f"-at-{place.number}"
        name = self._free_name(scenarios.run_id(base, iteration) + at)
        return RunHeader(
            run_id=name,
            node_id=base,
            scenario=scenario_of(item),
            seed=self._session.settings.seed,
            session_folder=str(self._session.folder),
            iteration=iteration,
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            command=command_line(),
            reproduce=self._reproduce(name, item.path),
            root=str(self._session.config.rootpath),
            versions=versions(),
            controller_pid=os.getpid(),
            worker=os.environ.get("PYTEST_XDIST_WORKER", ""),
        )

    def _reproduce(self, name: str, file: Path) -> str:
        """Return the line that repeats a run, with the project's own options."""
        import shlex

        config = self._session.config
        own = self._own_arguments()
        pack = self._session.folder / "evidence" / name
        is_here = file.is_relative_to(config.invocation_params.dir)  # else replay would refuse the test as foreign
        words = ["chaos", "replay", shown(pack, config) if is_here else str(pack)]
        line = shlex.join([*words, "--", *own] if own else words)
        return line if is_here else f"cd {shlex.quote(str(config.rootpath))} && {line}"

    def _free_name(self, name: str) -> str:
        """Return the name, numbered if there is evidence of it already: the test ran again."""
        evidence = self._session.folder / "evidence"
        again = (f"{name}-again-{number}" for number in range(2, 1000))
        return next(candidate for candidate in itertools.chain([name], again) if not (evidence / candidate).exists())

    def finish(self, run: Run) -> None:
        """Remove what a run left in the scratch folder; its evidence, if any, is packed by now."""
        run.conclude()
        run.remove()

    def report(self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        """Finish a run's record with pytest's text of the failure; pack it unless it held."""
        run = item.stash.get(RUN, None)  # also of a test that asked for the fixture only while it ran
        is_expected = hasattr(report, "wasxfail")
        if (report.skipped and not is_expected) or (run is None and not is_chaos(item)):
            return
        import msgspec

        error = call.excinfo.value if call.excinfo is not None else None
        if run is not None:
            record = run.conclude(error)
        elif report.failed or is_expected:
            record = self._record_without_run(item, error)
        else:
            return
        record = msgspec.structs.replace(record, level=item.stash.get(LEVEL, None))
        record = self._pack(item, run, record, report)
        if isinstance(error, (Violated, Inconclusive)):
            _say_in_one_line(report, record)
        for properties in (item.user_properties, report.user_properties):  # JUnit has the item's, at its very end
            properties.extend(junit.properties(record))
        setattr(report, RECORD, msgspec.json.encode(record).decode())
        item.stash[REPORTED] = True

    def report_interrupted(self, item: pytest.Item, error: BaseException) -> None:
        """Judge, pack and record a run whose test was interrupted, as for other tests."""
        run = item.stash.get(RUN, None)
        if run is None or item.stash.get(REPORTED, False):
            return
        record = run.conclude(error)
        call = pytest.CallInfo.from_call(lambda: raise_unless_held(record), when="call")
        report = pytest.TestReport.from_item_and_call(item, call)
        self.report(item, call, report)
        item.ihook.pytest_runtest_logreport(report=report)

    def _record_without_run(self, item: pytest.Item, error: BaseException | None) -> RunRecord:
        """Return a record for a scenario whose run could not begin, so that the matrix shows it."""
        from pytest_chaos.evidence.redact import clean
        from pytest_chaos.model import verdict
        from pytest_chaos.model.values import RunRecord

        header = self._run_header(item, 0)
        findings = (verdict.of_error(error),) if error is not None else ()
        record = RunRecord(
            scenario=header.scenario,
            node_id=header.node_id,
            run_id=header.run_id,
            seed=header.seed,
            verdict=verdict.of_run([*findings, verdict.NOTHING_ASSERTED]),
            findings=findings,
            started=header.started,
            worker=header.worker,
        )
        return clean(record)

    def _stop_time_limit(self, item: pytest.Item) -> None:
        """Stop the clock of pytest-timeout: saving and replaying a failure is not the test's time.

        It stops by itself for each failure, but later, and could end the session before.
        """
        if (stop := getattr(self._session.config.hook, "pytest_timeout_cancel_timer", None)) is not None:
            stop(item=item)

    def _pack(self, item: pytest.Item, run: Run | None, record: RunRecord, report: pytest.TestReport) -> RunRecord:
        import msgspec

        from pytest_chaos.model import campaign, verdict
        from pytest_chaos.model.values import Verdict
        from pytest_chaos.model.verdict import reason

        if record.verdict is Verdict.HELD:
            return record
        self._stop_time_limit(item)
        failure = verdict.encodable(report.longreprtext)
        record = msgspec.structs.replace(record, failure=failure[-4000:])
        if run is None or record.evidence or VARIANT in item.stash:
            return record
        record = run.pack(record, failure, self._session.folder / "evidence", queries=self._evidence_queries())
        if record.evidence:
            record = self._confirm(record)
        lines = [f"seed {record.seed}; reproduce: {record.reproduce}"]
        if campaign.REPRODUCED in record.notes:
            lines.append(f"reproduced: {record.notes[campaign.REPRODUCED]}")
        lines += [text for name in ("shrunk", "explained") for text in record.notes.get(name, ())]
        if record.evidence:
            lines.append(f"evidence: {shown(self._session.folder / record.evidence, self._session.config)}")
        lines += [f"evidence is incomplete: {text}" for text in record.notes.get("evidence_problems", ())]
        if (why := reason(record)) not in failure:  # the test raised something else than the verdict
            report.sections.append((REASON, why))
        report.sections.append(("chaos", "\n".join(lines)))
        return record

    def _confirm(self, record: RunRecord) -> RunRecord:
        """Replay a violation, once for all runs of a scenario that have the same findings."""
        import msgspec

        from pytest_chaos.evidence import replay as confirm
        from pytest_chaos.model import campaign
        from pytest_chaos.model.values import Verdict

        is_wanted = self._session.settings.replays > 0 and self._session.replayed is None
        is_wanted &= not self._session.interrupts.came
        if record.verdict is not Verdict.VIOLATED or not is_wanted:
            return record
        key = (record.scenario.id, confirm.signatures(record))
        narrowed: dict[str, Json] = {}
        if key not in self._confirmed:
            pack = self._session.folder / record.evidence
            folder = self._scratch_folder() / f"confirm-{record.run_id}"
            confirmation = confirm.confirm(
                record,
                pack,
                root=self._session.config.rootpath,
                folder=folder,
                arguments=self._own_arguments(),
                replays=self._session.settings.replays,
            )
            self._confirmed[key] = str(confirmation)
            if confirmation.repeated:
                confirm.watch(
                    record, pack, root=self._session.config.rootpath, folder=folder, arguments=self._own_arguments()
                )
                narrowed = self._narrowed(pack)
        notes = {**record.notes, campaign.REPRODUCED: self._confirmed[key], **narrowed}
        return msgspec.structs.replace(record, notes=notes)

    def _narrowed(self, pack: Path) -> dict[str, Json]:
        """Shrink and explain a violation, where that is asked for; return sentences about it."""
        config = self._session.config
        is_asked = {name: config.getoption(f"chaos_{name}") for name in ("shrink", "explain")}
        if not any(is_asked.values()):
            return {}
        from pytest_chaos.narrow import work

        root, own = config.rootpath, self._own_arguments()
        found: dict[str, Json] = {}
        if is_asked["shrink"]:
            found["shrunk"] = work.shrink_in_session(pack, root=root, arguments=own)
        if is_asked["explain"]:
            found["explained"] = work.explain_in_session(pack, root=root, arguments=own)
        return found

    def _own_arguments(self) -> list[str]:
        config = self._session.config
        answers: list[list[str]] = config.hook.pytest_chaos_replay_arguments(config=config)
        return [argument for answer in answers for argument in answer]

    def _evidence_queries(self) -> dict[str, str]:
        config = self._session.config
        asked: list[Mapping[str, str]] = config.hook.pytest_chaos_evidence_queries(config=config)
        return {name: sql for answer in reversed(asked) for name, sql in answer.items()}

    def _scratch_folder(self) -> Path:
        if self._scratch is None:
            from pytest_chaos.runtime import scratch

            scratch.sweep(self._session.settings.scratch)
            self._scratch = scratch.create(self._session.settings.scratch)
        return self._scratch

    def _connect(self) -> GuardianClient:
        """Return the guardian, started at the first need and again if it was killed."""
        if self._client is not None:
            self._client.pump()  # it may have ended between two runs
        if self._client is None or not self._client.alive:
            from pytest_chaos.runtime import processes
            from pytest_chaos.runtime.agent import GuardianClient

            watch = processes.seen_from_here(*self._session.given["watch"]) if "watch" in self._session.given else None
            self._client = GuardianClient(self._scratch_folder(), watch=watch)
        return self._client

    def close(self) -> None:
        """End the guardian, and remove the scratch folder."""
        if self._client is not None:
            self._client.close()
        if self._scratch is not None:
            from pytest_chaos.runtime import scratch

            scratch.remove(self._scratch)
