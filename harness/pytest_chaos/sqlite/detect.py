"""All detectors over the events of one run. Pure.

>>> judged([], name_of=str).findings
()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.sqlite.commits import Commits, SchemaChange
from pytest_chaos.sqlite.copies import WholeCopies
from pytest_chaos.sqlite.integrity import CancelledLocks, CarriedConnections, FileSystems, ReplacedFiles
from pytest_chaos.sqlite.telling import Teller
from pytest_chaos.sqlite.waiting import StaleUpgrades, StarvedLogs
from pytest_chaos.sqlite.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_chaos.model.values import Finding
    from pytest_chaos.sqlite.telling import Detector
    from pytest_chaos.trace.step import Event


NO_DATABASE: Final = (
    "SQLite was to be watched, and no database in the directory was locked: let the program keep its database there, "
    "or do not watch it"
)


class SqliteJudgement(NamedTuple):
    """What the events of one run show: findings, databases, and the changes of their schemas."""

    findings: tuple[Finding, ...]
    databases: tuple[str, ...]
    schema_changes: tuple[SchemaChange, ...]


def judged(events: Iterable[Event], *, name_of: Callable[[str], str], power: bool = False) -> SqliteJudgement:
    """Judge the events of one run. ``name_of`` gives the name of a process, or nothing.

    With ``power``, an ack also promises that a power loss takes nothing back. Without, it promises
    that for a kill, which needs no flush.
    """
    world, tell, commits = World(), Teller(name_of), Commits()
    detectors: list[Detector] = [
        CancelledLocks(),
        ReplacedFiles(),
        CarriedConnections(),
        FileSystems(),
        WholeCopies(),
        StaleUpgrades(),
        StarvedLogs(),
        *([commits] if power else []),
    ]
    for event in events:
        for detector in detectors:
            detector.see(event, world)
        if not power:
            commits.see(event, world)
        world.apply(event)
    findings = tuple(finding for detector in detectors for finding in detector.findings(world, tell))
    return SqliteJudgement(findings, tuple(sorted(world.databases)), tuple(commits.schema_changes))
