"""The earlier sessions of a results folder: each scenario's rate, duration and findings in them.

Of a record no more is decoded than is shown, so thirty sessions of a thousand runs take a second. A
session that cannot be read is counted and named; it is no gap that looks like a clean one.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import msgspec
from pytest_chaos.evidence.reading import reading
from pytest_chaos.evidence.records import FILE_NAME
from pytest_chaos.model.campaign import judge, judge_proof
from pytest_chaos.model.signatures import cause_of
from pytest_chaos.model.statistics import rate_lower_bound
from pytest_chaos.model.values import SessionEnd, SessionHeader, SessionResumed, Verdict

from chaos_reports.figures import moment, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pytest_chaos.model.campaign import ScenarioSummary

SESSIONS_MAX: Final = 30
"""Earlier sessions that are looked at, the newest ones."""
BYTES_MAX: Final = 256 << 20
"""Records of earlier sessions that are read in all."""
_END: Final = b'{"line":"end"'
_RESUMED: Final = b'{"line":"resumed"'


class _Scenario(msgspec.Struct, frozen=True):
    id: str
    pass_rate_min: float | None = None


class _Finding(msgspec.Struct, frozen=True):
    signature: str = ""


class _Run(msgspec.Struct, frozen=True):
    """What the history shows of a run."""

    scenario: _Scenario
    verdict: Verdict
    node_id: str = ""
    iteration: int = 0
    duration_s: float = 0.0
    findings: tuple[_Finding, ...] = ()


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario in one session. ``page`` is the session's matrix, relative to this one."""

    started: str
    verdict: Verdict
    runs: int
    held: int
    violated: int
    missing: int = 0
    duration_s: float = 0.0
    causes: frozenset[str] = frozenset()
    page: str = ""

    @property
    def rate(self) -> float | None:
        """The share of conclusive runs that held."""
        return self.held / (self.held + self.violated) if self.held + self.violated else None

    @property
    def lower(self) -> float | None:
        """The lower bound of the rate that these runs show."""
        conclusive = self.held + self.violated
        return rate_lower_bound(self.held, conclusive) if conclusive else None


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario over sessions, the oldest first; the last one is the session of the page."""

    pasts: tuple[Past, ...]
    failing: str = ""
    first_seen: dict[str, str] = {}
    """When each cause of a finding was first seen, in words."""

    @property
    def duration_s_max(self) -> float:
        """The longest duration, which the drawing is scaled to."""
        return max(past.duration_s for past in self.pasts)


class Sessions(msgspec.Struct, frozen=True, kw_only=True):
    """The earlier sessions by scenario, the oldest first. ``is_cut``: there are older ones."""

    sessions: int = 0
    pasts: dict[str, tuple[Past, ...]] = {}
    problems: tuple[str, ...] = ()
    is_cut: bool = False

    def trend(self, summary: ScenarioSummary, started: str, shown_max: int = SESSIONS_MAX) -> Trend | None:
        """Return the trend of a scenario up to its summary; None without an earlier session."""
        earlier = self.pasts.get(summary.scenario.id, ())
        if not earlier:
            return None
        now = Past(
            started=started, verdict=summary.verdict, runs=summary.runs, held=summary.held,
            violated=summary.violated, missing=summary.missing, duration_s=summary.duration_s,
            causes=frozenset(cause_of(each.signature) for each in summary.failures),
        )  # fmt: skip
        everything = (*earlier, now)
        return Trend(
            pasts=everything[-shown_max:],
            failing=self._failing(everything),
            first_seen={cause: self._first(cause, everything) for cause in now.causes},
        )

    def _failing(self, pasts: Sequence[Past]) -> str:
        """Say since when a scenario fails, or when it last did."""
        failed = [each for each in pasts if each.verdict is Verdict.VIOLATED]
        if not failed:
            return f"Not violated in {plural(len(pasts), 'session')}"
        if pasts[-1].verdict is not Verdict.VIOLATED:
            return f"Last violated {moment(failed[-1].started)}, first {moment(failed[0].started)}"
        streak = len(pasts) - 1
        while streak and pasts[streak - 1].verdict is Verdict.VIOLATED:
            streak -= 1
        if streak == len(pasts) - 1:
            before = "" if len(failed) == 1 else f"; it was violated before, first {moment(failed[0].started)}"
            return f"First seen failing in this session{before}"
        since = moment(pasts[streak].started)
        at_least = "at least " if streak == 0 and self.is_cut else ""
        return f"Failing since {at_least}{since}, for {plural(len(pasts) - streak, 'session')}"

    def _first(self, cause: str, pasts: Sequence[Past]) -> str:
        first = next(place for place, each in enumerate(pasts) if cause in each.causes)
        if first == len(pasts) - 1:
            return "first seen in this session"
        earlier = "or earlier, " if first == 0 and self.is_cut else ""
        seen = sum(cause in each.causes for each in pasts)
        return f"first seen {moment(pasts[first].started)}, {earlier}in {seen} of {plural(len(pasts), 'session')}"


def history_of(session: Path, page_folder: Path | None = None) -> Sessions:
    """Return the history of the sessions that began before this one, in its results folder.

    ``page_folder`` is where the page goes; links lead from there.
    """
    if session.parent.name != "sessions":
        return Sessions()
    own, headers, problems = _headers(session)
    if own is None:
        return Sessions()
    earlier = sorted(
        ((header, folder) for folder, header in headers.items() if header.started < own.started),
        key=lambda pair: (pair[0].started, pair[1].name),
    )
    pasts: defaultdict[str, list[Past]] = defaultdict(list)
    left = BYTES_MAX
    read = 0
    for header, folder in reversed(earlier[-SESSIONS_MAX:]):
        left -= (folder / FILE_NAME).stat().st_size
        if left < 0:
            break
        try:
            found = _pasts(folder, header, page_folder or session)
        except (OSError, ValueError) as error:
            problems.append(f"the session {folder.name} cannot be read: {error}")
            continue
        read += 1
        for name, past in found.items():
            pasts[name].append(past)
    return Sessions(
        sessions=read,
        pasts={name: tuple(reversed(each)) for name, each in pasts.items()},
        problems=tuple(problems),
        is_cut=read < len(earlier),
    )


def _headers(session: Path) -> tuple[SessionHeader | None, dict[Path, SessionHeader], list[str]]:
    """Return the header of a session, those of its neighbours, and what could not be read."""
    headers: dict[Path, SessionHeader] = {}
    problems: list[str] = []
    own: SessionHeader | None = None
    for folder in sorted(session.parent.iterdir()):
        if folder.is_symlink() or not (folder / FILE_NAME).is_file():
            continue
        try:
            with reading(folder / FILE_NAME) as stream:
                header = msgspec.json.decode(stream.readline(), type=SessionHeader)
        except (OSError, ValueError) as error:
            problems.append(f"the session {folder.name} cannot be read: {error}")
            continue
        if folder.resolve() == session.resolve():
            own = header
        else:
            headers[folder] = header
    return own, headers, problems


def _pasts(folder: Path, header: SessionHeader, page_folder: Path) -> dict[str, Past]:
    """Return a session's scenarios. Raises ValueError for a record that is none."""
    with reading(folder / FILE_NAME) as stream:
        _, *lines, tail = stream.read().split(b"\n")
    if tail.endswith(b"}"):
        lines.append(tail)
    decode = msgspec.json.Decoder(_Run).decode
    runs: defaultdict[str, list[_Run]] = defaultdict(list)
    end = SessionEnd()
    for line in lines:
        if line.startswith(_END):
            end = msgspec.json.decode(line, type=SessionEnd)
        elif line.startswith(_RESUMED):
            again = set(msgspec.json.decode(line, type=SessionResumed).again)
            for name, each in runs.items():
                runs[name] = [run for run in each if (run.node_id, run.iteration) not in again]
        elif line:
            run = decode(line)
            runs[run.scenario.id].append(run)
    planned = {each.scenario.id: each.runs - _not_owed(end, each.scenario.id) for each in header.planned}
    page = os.path.relpath(folder / "matrix.html", page_folder) if (folder / "matrix.html").is_file() else ""
    return {
        name: _past(runs[name], header, planned.get(name, 0), page)
        for name in runs.keys() | {name for name, owed in planned.items() if owed > 0}
    }


def _not_owed(end: SessionEnd, scenario: str) -> int:
    return sum(each.get(scenario, 0) for each in (end.skipped, end.decided, end.over_budget))


def _past(runs: Iterable[_Run], header: SessionHeader, planned: int, page: str) -> Past:
    listed = list(runs)
    counts = {verdict: sum(run.verdict is verdict for run in listed) for verdict in Verdict}
    missing = max(0, planned - len({(run.node_id, run.iteration) for run in listed}))
    rates = [run.scenario.pass_rate_min for run in listed if run.scenario.pass_rate_min is not None]
    rate_min = max(rates, default=header.pass_rate_min)
    held, violated = counts[Verdict.HELD], counts[Verdict.VIOLATED]
    return Past(
        started=header.started,
        verdict=judge(held, violated, counts[Verdict.INCONCLUSIVE], rate_min, missing)
        if header.prove is None
        else judge_proof(header.prove, held, violated, counts[Verdict.INCONCLUSIVE]),
        runs=len(listed),
        held=held,
        violated=violated,
        missing=missing,
        duration_s=sum(run.duration_s for run in listed),
        causes=frozenset(cause_of(each.signature) for run in listed for each in run.findings),
        page=page,
    )
