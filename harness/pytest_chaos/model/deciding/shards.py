"""Shards: which part of a campaign has a run, without anybody who hands them out.

A run belongs to a shard by a hash of its scenario, test, iteration and seed. So machines need
nothing but a common seed, in whatever order they begin; and a run that two of them made has one
identity in both.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_chaos.model.values import RunRecord

SHARDS_MAX: Final = 10_000
_SHARD: Final = re.compile(r"(\d{1,6})/(\d{1,6})")


class Shard(NamedTuple):
    """The ``number``-th of ``of`` parts of a campaign, from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        """Return it as a user writes it."""
        return f"{self.number}/{self.of}"

    def has(self, scenario: str, test: str, iteration: int, seed: str) -> bool:
        """Whether a run is of this shard. ``test`` is a node id without its iteration.

        >>> [Shard(number, 3).has("count", "test_count.py::test", 0, "s") for number in (1, 2, 3)]
        [True, False, False]
        """
        return _place(scenario, test, iteration, seed) % self.of == self.number - 1


def parse(text: str) -> Shard:
    """Return a shard such as ``2/5``. Raises UsageError for anything else.

    >>> parse("2/5")
    Shard(number=2, of=5)
    """
    found = _SHARD.fullmatch(text.strip())
    shard = Shard(int(found[1]), int(found[2])) if found else Shard(0, 0)
    if not 1 <= shard.number <= shard.of <= SHARDS_MAX:
        msg = f"must be I/N with 1 <= I <= N <= {SHARDS_MAX:,}, such as 2/5; got {text[:40]!r}"
        raise UsageError(msg)
    return shard


def identity(run: RunRecord) -> int:
    """Return the identity of a run: the same for the same draws, on whatever machine.

    Runs of a sweep, and a test that was run again, share a test and an iteration; their names
    differ.
    """
    name = run.run_id.rpartition(str(run.iteration))[2]
    return _place(run.scenario.id, run.node_id, run.iteration, f"{run.seed} {name}")


def missing(shards: Iterable[Shard]) -> list[Shard]:
    """Return the shards that are not there, of each number of parts.

    >>> missing([Shard(1, 3), Shard(3, 3)])
    [Shard(number=2, of=3)]
    """
    given = set(shards)
    return [
        Shard(number, of)
        for of in sorted({each.of for each in given})
        for number in range(1, of + 1)
        if Shard(number, of) not in given
    ]


def _place(*parts: str | int) -> int:
    content = "\0".join(map(str, parts)).encode("utf-8", errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
