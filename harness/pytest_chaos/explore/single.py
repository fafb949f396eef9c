"""One state alone: built from a fresh recording, kept where it can be looked at, and judged. What ``--state`` does."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, NamedTuple

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.explorer import check_options, find_state, keep_state
from pytest_chaos.explore.families.io import trouble_of
from pytest_chaos.explore.judge import Known, Pool
from pytest_chaos.explore.launch import default_base, guarded, step_source, work_folders
from pytest_chaos.explore.record import record
from pytest_chaos.explore.session import Saved, Session
from pytest_chaos.explore.simulate.folder import read_folder
from pytest_chaos.model.history import History
from pytest_chaos.model.values import Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.explore.judge import Judgement
    from pytest_chaos.explore.session import Options
    from pytest_chaos.explore.target import Subject
    from pytest_chaos.model.values import Finding
    from pytest_chaos.trace.source import StepSource


class Judged(NamedTuple):
    """A state in words, and what the check says of it."""

    state: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings."""
        return Verdict.worst([*(finding.verdict for finding in self.findings), Verdict.HELD])


def judge_state(
    subject: Subject, options: Options, code: str, destination: Path, *, base: Path | None = None
) -> Judged:
    """Record the target, keep the state of this code in ``destination`` (which is emptied) and judge a copy of it.

    Raises UsageError for a code that names none of this target's states, ExplorationError for a
    target that cannot be recorded, StepsUnavailable where nothing can be.
    """
    check_options(options)
    source = step_source()
    shutil.rmtree(destination, ignore_errors=True)
    with work_folders(base or default_base()) as folders:
        return guarded(lambda _: _judge_here(subject, source, options, code, destination, folders[0]), folders=folders)


def _judge_here(
    subject: Subject, source: StepSource, options: Options, code: str, destination: Path, folder: Path
) -> Judged:
    """Do what ``judge_state`` promises, in this process and this folder."""
    with contextlib.ExitStack() as closing:
        recorded, _ = record(subject, source, folder, timeout_s=options.run_timeout_s)
        closing.callback(recorded.close)
        known = Known(subject, source, recorded.marks, recorded.recording.steps)
        with Pool(known, folder, timeout_s=options.check_timeout_s) as pool:
            session = Session(known, recorded, pool, options, folder, saved=Saved(fingerprint=""))
            if not keep_state(session, code, destination):
                msg = f"{code} names no state of {subject.name}, which made {recorded.steps} steps: was it changed?"
                raise UsageError(msg)
            findings = _judge_error(session, code) if code.startswith("io:") else _judge(session, destination)
            return Judged(_words(session, code), findings)


def _words(session: Session, code: str) -> str:
    if code.startswith("io:"):
        return trouble_of(code, session.recorded.recording.durable()).text
    return str(find_state(session, code))


def _judge_error(session: Session, code: str) -> tuple[Finding, ...]:
    """Have the error happen, and judge what it leaves with the marks that were written then."""
    heard: list[Finding] = []

    def done(judgement: Judgement, _: Path) -> None:
        heard.extend(judgement.findings)

    directive = trouble_of(code, session.recorded.recording.durable()).directive
    timeout_s = session.options.run_timeout_s
    session.pool.run(directive, done, timeout_s=timeout_s, items=session.recorded.before, compare=False)
    session.pool.drain()
    return tuple(heard)


def _judge(session: Session, destination: Path) -> tuple[Finding, ...]:
    """Judge a copy of what was kept, which stays as it is."""
    heard: list[Finding] = []

    def done(judgement: Judgement, _: Path) -> None:
        heard.extend(judgement.findings)

    marks = History.from_lines((destination / "marks.jsonl").read_bytes()).marks
    items = read_folder(destination / "directory", session.recorded.store)
    session.pool.check(items, len(marks), done)
    session.pool.drain()
    return tuple(heard)
