"""Scenario 18: programs that nobody here wrote get the verdict that their documentation lets
expect.

A row holds when just the findings come out that ``docs/foreign.md`` explains. An update of a
program that mends a finding, or brings one, fails its row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from pytest_chaos.model.values import Verdict

from scenarios.targets.databases import DAMAGED, LOST, Database
from scenarios.targets.foreign import embedded, languages, servers, version_control
from scenarios.targets.foreign.base import Foreign

if TYPE_CHECKING:
    from pytest_chaos import Run
    from pytest_chaos.explore.report import FamilyResult
    from pytest_chaos.plugin.explore_fixture import Explore

SCENARIO = pytest.mark.chaos(
    id="18-foreign-programs",
    title="Programs that nobody here wrote get the verdict that their documentation lets expect",
    why="A tool that is right about its own examples alone may be wrong about every real program.",
    steps=[
        "Stores, version control, servers and programs in five languages put keys and acknowledge each.",
        "Crash points and power-loss states are judged by the program itself, started again on each.",
        "The findings are those that docs/foreign.md explains; what is not installed is skipped.",
    ],
)
pytestmark = [SCENARIO, pytest.mark.chaos_once]  # one iteration shows all

NOTHING: frozenset[str] = frozenset()
NO_START = "recovery-fails:exit code 1"
STEPS_MIN = 4


class Row(NamedTuple):
    """A program, and what a crash and a loss of power find: nothing is HELD, else it is VIOLATED.

    ``ext4`` is what remains when the file system keeps the order of names, as ext4 does; a power
    loss under strict POSIX may find ``strict`` besides. What a sample need not show is ``allowed``.
    """

    target: object
    crash: frozenset[str] = NOTHING
    ext4: frozenset[str] = NOTHING
    strict: frozenset[str] = NOTHING
    allowed: frozenset[str] = NOTHING
    samples: int = 8
    faults: tuple[str, ...] = ("crash", "power")


SAMPLE = {
    "sqlite-wal-full": Row(Database("wal", "full", rows=2)),
    "node-in-place": Row(languages.NodeInPlace(), crash=frozenset({DAMAGED}), ext4=frozenset({DAMAGED, LOST})),
    "git": Row(version_control.Git(), ext4=frozenset({DAMAGED, LOST})),
}
"""The small sample of every run, under crashes alone."""

# Under a crash the order of stores through memory stays unknown in GDBM and in LMDB with a
# writable map: INCONCLUSIVE, also where a real kill was found to lose a key of GDBM.
ALL = SAMPLE | {
    "uvicorn": Row(servers.Uvicorn()),  # starts anew for each state: 20 s
    "git-synced": Row(version_control.GitSynced(), ext4=frozenset({LOST}), strict=frozenset({DAMAGED})),
    "mercurial": Row(version_control.Mercurial(), allowed=frozenset({DAMAGED, LOST}), samples=1),
    "gdbm": Row(embedded.Gdbm(), ext4=frozenset({LOST}), allowed=frozenset({DAMAGED}), faults=("power",)),
    "lmdb": Row(embedded.Lmdb()),
    "lmdb-writemap": Row(embedded.LmdbWritemap(), faults=("power",)),
    "leveldb": Row(embedded.LevelDb(), strict=frozenset({DAMAGED})),
    "rocksdb": Row(embedded.RocksDb(), strict=frozenset({DAMAGED})),
    "sqlite-delete-extra": Row(Database("delete", "extra", rows=2)),
    "sqlite-wal-normal": Row(Database("wal", "normal", rows=2), ext4=frozenset({LOST})),
    "sqlite-delete-full": Row(Database("delete", "full", rows=2), ext4=frozenset({LOST})),
    "duckdb": Row(embedded.DuckDb(), crash=frozenset({DAMAGED}), ext4=frozenset({DAMAGED}), strict=frozenset({LOST})),
    "zodb": Row(embedded.Zodb(), ext4=frozenset({DAMAGED}), samples=64),
    "postgresql": Row(servers.Postgres(), crash=frozenset({NO_START}), ext4=frozenset({NO_START}), samples=1),
    "redis-always": Row(servers.Redis(), allowed=frozenset({NO_START})),
    "redis-everysec": Row(servers.RedisEverySecond(), ext4=frozenset({LOST}), allowed=frozenset({NO_START})),
    "huey": Row(servers.Huey(), samples=1),
    "gunicorn": Row(servers.Gunicorn(), samples=1),
    "node-write-file-atomic": Row(languages.NodeAtomic(), ext4=frozenset({LOST})),
    "h2": Row(languages.H2(), crash=frozenset({LOST}), ext4=frozenset({LOST}), samples=4),
    "bbolt": Row(languages.Bbolt()),
    "tantivy": Row(languages.Tantivy(), ext4=frozenset({LOST})),
}


def skip_if_missing(target: object) -> None:
    """Skip a row whose program is not installed."""
    if isinstance(target, Foreign) and (missing := target.missing()):
        pytest.skip(f"not installed: {missing}")


@pytest.mark.parametrize("name", SAMPLE)
def test_a_small_sample(chaos: Run, explore: Explore, name: str) -> None:
    """A store, a program in place, version control and a server, killed at every point."""
    row = SAMPLE[name]
    skip_if_missing(row.target)
    explored = explore(row.target, faults=("crash",), schedules=1, confirmations=2, jobs=2, judge=False)
    for family in explored.families:
        expect(chaos, name, family, row.crash, NOTHING)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", ["ext4", "strict"])
@pytest.mark.parametrize("name", ALL)
def test_all(chaos: Run, explore: Explore, name: str, model: str) -> None:
    """Each program under crashes and losses of power, by either model of a file system."""
    row = ALL[name]
    skip_if_missing(row.target)
    explored = explore(
        row.target,
        faults=row.faults,
        model=model,
        schedules=1,
        samples=row.samples,
        check_timeout_s=60,
        jobs=2,
        judge=False,
    )
    for family in explored.families:
        is_power = str(family.family) == "power"
        allowed = row.allowed | (row.strict if model == "strict" else NOTHING) if is_power else NOTHING
        expect(chaos, f"{name}, {family.family}", family, row.ext4 if is_power else row.crash, allowed)
    chaos.expect("durable steps", observed=explored.steps, holds=explored.steps >= STEPS_MIN)


def expect(chaos: Run, name: str, family: FamilyResult, expected: frozenset[str], allowed: frozenset[str]) -> None:
    """Expect just these findings, and the verdict that goes with them; some more may be allowed."""
    found = {each.signature for each in family.discoveries}
    verdict = Verdict.VIOLATED if found else Verdict.HELD
    chaos.expect(
        f"{name} finds {', '.join(sorted(expected)) or 'nothing'}",
        observed=f"{', '.join(sorted(found)) or 'nothing'} in {family.coverage}",
        holds=expected <= found <= expected | allowed and family.verdict is verdict and family.is_complete,
    )
