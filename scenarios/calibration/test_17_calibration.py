"""Scenario 17: what is explored comes out as it is known to be;
a tool that calls all sound, or all broken, fails here.

A row holds when the *expected* verdict comes out: SQLite with DELETE+FULL loses acknowledged
commits in a power loss, and an exploration that does not find it is as wrong as one that finds
fault with WAL+FULL.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import pytest

from scenarios.targets.checkpoints import Checkpoints
from scenarios.targets.compiled import Compiled, NoCompiler, build
from scenarios.targets.databases import DAMAGED, LOST, Database
from scenarios.targets.files import UNREADABLE, InPlace, Renamed, RenamedSyncedBoth, RenamedSyncedFile
from scenarios.targets.habits import (
    TORN,
    FolderNotSynced,
    Habit,
    HeaderWithoutBarrier,
    IndexFirst,
    LockLeftBehind,
    LogWithoutLength,
    MappedInPlace,
    MappedWithoutFlush,
    RecordInParts,
    TruncatedFirst,
    UnlinkedFirst,
)
from scenarios.targets.parallel import Concurrent, OneSet, Pool, TwoLogs
from scenarios.targets.servers import NumberServer

if TYPE_CHECKING:
    from pytest_chaos import Run
    from pytest_chaos.explore.report import Exploration, FamilyResult
    from pytest_chaos.plugin.explore_fixture import Explore

SCENARIO = pytest.mark.chaos(
    id="17-calibration",
    title="What is known of programs comes out when they are explored",
    why="A tool that finds nothing may have looked at nothing: it has to find what is known to be there, and no more.",
    steps=[
        "Programs whose outcome is known are recorded: SQLite in six configurations, JSON files, habits, C, servers.",
        "Every crash point and power-loss state is built, a sample of I/O errors made; their own check judges each.",
        "The findings of each are those that are known, by name; the sound ones have none.",
        "What is built from the recording is what real kills leave, at every step.",
        "The recovery core's own checkpoints are explored in the same way.",
    ],
)
pytestmark = [SCENARIO, pytest.mark.chaos_once]  # one iteration shows all

NOTHING: frozenset[str] = frozenset()
NO_START = "recovery-fails:exit code 1"


class Row(NamedTuple):
    """A program, and the signatures that its exploration has to find:
    in a crash, when power fails, and in a race without a fault.

    ``allowed`` are signatures that a power loss may show besides.
    """

    target: object
    crash: frozenset[str] = NOTHING
    power: frozenset[str] = NOTHING
    allowed: frozenset[str] = NOTHING
    race: frozenset[str] = NOTHING


ROWS = {
    "wal-full": Row(Database("wal", "full", rows=4)),
    "delete-extra": Row(Database("delete", "extra", rows=4)),
    "wal-normal": Row(Database("wal", "normal", rows=4), power=frozenset({LOST})),
    "delete-full": Row(Database("delete", "full", rows=4), power=frozenset({LOST})),
    "delete-normal": Row(Database("delete", "normal", rows=10), power=frozenset({LOST, DAMAGED})),
    "delete-off": Row(Database("delete", "off", rows=4), power=frozenset({LOST, DAMAGED})),
    "json-in-place": Row(InPlace(), crash=frozenset({UNREADABLE}), power=frozenset({UNREADABLE, LOST})),
    "json-renamed": Row(Renamed(), power=frozenset({UNREADABLE}), allowed=frozenset({LOST})),
    "json-synced-file": Row(RenamedSyncedFile(), power=frozenset({LOST})),
    "json-synced-both": Row(RenamedSyncedBoth()),
}

BAD = frozenset({TORN})
SERVERS: dict[str, Row] = {
    "sound": Row(NumberServer("sound")),
    "early": Row(NumberServer("early"), power=frozenset({LOST}), allowed=frozenset({NO_START})),
    "in-place": Row(NumberServer("in-place"), crash=frozenset({NO_START}), power=frozenset({NO_START, LOST})),
}
"""A server that answers when all is synced, one that answers before, and one without care."""

HABITS: dict[str, Row] = {
    "log-without-length": Row(LogWithoutLength(), crash=BAD, power=BAD),
    "folder-not-synced": Row(FolderNotSynced(), power=frozenset({LOST})),
    "index-first": Row(IndexFirst(), crash=BAD, power=BAD),
    "truncated-first": Row(TruncatedFirst(), crash=BAD, power=BAD),
    "record-in-parts": Row(RecordInParts(), crash=BAD, power=BAD),
    "unlinked-first": Row(UnlinkedFirst(), crash=BAD, power=BAD),
    "header-without-barrier": Row(HeaderWithoutBarrier(), power=BAD),
    "lock-left-behind": Row(LockLeftBehind(), crash=BAD, power=BAD),
    "mapped-without-flush": Row(MappedWithoutFlush(), power=frozenset({LOST})),
    "mapped-in-place": Row(MappedInPlace(), crash=BAD, power=BAD),
}
"""Habits that lost data in programs that many use, and what finds each;
to rename what was not synced is above.
"""


CONCURRENT: dict[str, Row] = {
    "two-logs": Row(TwoLogs(), power=frozenset({LOST})),
    "one-set": Row(OneSet(), race=frozenset({LOST}), crash=frozenset({LOST}), power=frozenset({LOST})),
    "pool": Row(Pool(), power=frozenset({LOST})),
}
"""Habits of several threads and processes; a race needs no fault."""


IS_NIGHTLY = os.environ.get("CHAOS_NIGHTLY") == "1"
RECOVERIES, IO_RUNS = (1000, 10_000) if IS_NIGHTLY else (6, 40)
"""Of recoveries and I/O errors a sample is explored here, and all of them nightly."""
REST: tuple[str, ...] = ("recovery", "io")
"""What is left to explore where another test explores crashes and power losses of the same program,
all of them.
"""


def mended_of(row: Row) -> Habit:
    """Return the same program without its bad habit."""
    assert isinstance(row.target, Habit)
    return type(row.target)(is_mended=True)


def judge(chaos: Run, explored: Exploration, row: Row) -> None:
    """Expect just the known findings, and an answer for every explored state."""
    for family in explored.families:
        expected = {"crash": row.crash, "power": row.power}.get(str(family.family), row.crash)
        expect_signatures(chaos, explored, family, expected, row.allowed)


def expect_signatures(
    chaos: Run, explored: Exploration, family: FamilyResult, expected: frozenset[str], allowed: frozenset[str]
) -> None:
    """Record, with its coverage, whether a family found what it had to find."""
    found = {each.signature for each in family.discoveries}
    wanted = ", ".join(sorted(expected)) or "nothing"
    seen = ", ".join(sorted(found)) or "nothing"
    chaos.expect(
        f"{explored.target}: {family.family} finds {wanted}",
        observed=f"{seen} in {family.coverage}",
        holds=expected <= found <= expected | allowed and family.is_complete,
    )


@pytest.mark.parametrize("name", ROWS)
def test_known_outcomes(chaos: Run, explore: Explore, name: str) -> None:
    """Under crashes and power losses each program is found guilty of what it is known for,
    and of nothing else.
    """
    row = ROWS[name]

    judge(chaos, explore(row.target, faults=("crash", "power"), judge=False), row)


@pytest.mark.parametrize("name", HABITS)
def test_known_habits(chaos: Run, explore: Explore, name: str) -> None:
    """Each bad habit is found by its family of faults,
    and with the habit mended there is nothing to find.
    """
    row = HABITS[name]

    judge(chaos, explore(row.target, faults=("crash", "power"), judge=False), row)
    mended = Row(mended_of(row))
    judge(chaos, explore(mended.target, faults=("crash", "power"), judge=False), mended)


@pytest.mark.parametrize("name", CONCURRENT)
def test_known_orders(chaos: Run, explore: Explore, name: str) -> None:
    """In some order of threads and processes each habit is found, and mended in none."""
    row = CONCURRENT[name]
    assert isinstance(row.target, Concurrent)
    explored = explore(row.target, faults=("crash", "power"), schedules=3, samples=16, judge=False)
    found = {each.signature for each in explored.discoveries} | {each.signature for each in explored.findings}
    wanted = row.race or row.power
    where = explored.coverage if explored.families else "a run without a fault"
    chaos.expect(
        f"{row.target.name}: {', '.join(sorted(wanted))} is found",
        observed=f"{', '.join(sorted(found)) or 'nothing'} in {where}",
        holds=found == wanted,
    )
    explore(mended_of(row), faults=("crash", "power"), schedules=3, samples=16)


@pytest.mark.parametrize("name", SERVERS)
def test_known_servers(chaos: Run, explore: Explore, name: str) -> None:
    """A server is driven by a client and started again on each state: the sound one holds,
    and its twins are found guilty.
    """
    row = SERVERS[name]

    schedules = 2 if name == "early" else 1  # the order of answer and write decides for that one alone
    explored = explore(row.target, faults=("crash", "power"), schedules=schedules, judge=False, jobs=2)
    judge(chaos, explored, row)


@pytest.mark.chaos_deep
@pytest.mark.parametrize("name", HABITS)
def test_mended_habits_hold_under_everything(explore: Explore, name: str) -> None:
    """Mended habits cause no false alarm, in recovery or with an I/O error."""
    explore(mended_of(HABITS[name]), faults=REST, recoveries=RECOVERIES, io_runs=IO_RUNS)


@pytest.mark.chaos_deep
@pytest.mark.parametrize("name", ["wal-full", "delete-extra", "json-synced-both"])
def test_sound_programs_hold_under_everything(explore: Explore, name: str) -> None:
    """Sound programs survive kills in their recovery, and I/O errors."""
    explore(ROWS[name].target, faults=REST, jobs=2, recoveries=RECOVERIES, io_runs=IO_RUNS)


def test_every_state_is_what_a_real_kill_leaves(chaos: Run, explore: Explore) -> None:
    """At all steps: the program is really killed there,
    and its directory is what the recording says.
    """
    explored = explore(ROWS["wal-full"].target, faults=("crash",), confirmations=1000)
    (crash,) = explored.families

    chaos.expect(
        "real kills that left the built state",
        observed=f"{crash.confirmed} of {explored.steps}",
        holds=crash.confirmed == explored.steps > 0,
    )


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("how", ["careful", "careless"])
def test_compiled_programs(chaos: Run, explore: Explore, how: str, *, static: bool) -> None:
    """A program in C, also a static one, is seen like any other, without a change."""
    try:
        program = build(chaos.directory, static=static)
    except NoCompiler as missing:
        pytest.skip(str(missing))
    power = frozenset({UNREADABLE}) if how == "careless" else NOTHING
    row = Row(Compiled(program, how), power=power, allowed=frozenset({LOST}) if how == "careless" else NOTHING)

    judge(chaos, explore(row.target, faults=("crash", "power"), judge=False), row)


def test_checkpoints_survive(explore: Explore, manager: str) -> None:
    """The recovery core loses no acknowledged checkpoint,
    at no crash point and in no power loss.
    """
    explore(Checkpoints(manager, count=2), faults=("crash", "power"))


@pytest.mark.chaos_deep
def test_checkpoints_survive_everything(explore: Explore, manager: str) -> None:
    """The checkpoints survive kills in their recovery, I/O errors and a full disk."""
    faults = ("crash", "power", *REST) if IS_NIGHTLY else REST  # of two checkpoints, the rest is above
    explore(Checkpoints(manager), faults=faults, jobs=2, recoveries=RECOVERIES, io_runs=IO_RUNS)
