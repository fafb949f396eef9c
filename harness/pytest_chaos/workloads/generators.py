"""What clients ask for, drawn from a seed: keys by Zipf's law, transactions, puts and takes.

Few keys get most of the load, as in production, so that clients meet. A key gets at most some
hundred values, and is then followed by another: lists that are read whole stay short. The same seed
and client give the same operations on every machine.
"""

from __future__ import annotations

import bisect
import itertools
from typing import TYPE_CHECKING, Any, Final

from pytest_chaos.errors import UsageError
from pytest_chaos.model.seed import stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.model.seed import Stream

ZIPF: Final = 1.1
"""The usual exponent: the first of eight keys gets 38 % of the operations."""
KEYS: Final = 8
LONGEST: Final = 4
PER_KEYS: Final = 200
"""How many transactions a client makes before it moves on to new keys."""


class ZipfKeys:
    """Numbers from 0 to ``count`` - 1, of which small ones come often: the n-th as 1 / n ** s.

    >>> keys = ZipfKeys(3, stream("a-seed", "keys"))
    >>> sorted({keys.draw() for _ in range(100)})
    [0, 1, 2]
    """

    def __init__(self, count: int, drawn: Stream, exponent: float = ZIPF) -> None:
        if count < 1 or exponent < 0:
            msg = f"keys must be 1 or more, and their exponent 0 or more; got {count} and {exponent}. Give such numbers"
            raise UsageError(msg)
        self._drawn = drawn
        self._sums = list(itertools.accumulate(1 / (nth + 1) ** exponent for nth in range(count)))

    def draw(self) -> int:
        """Return the next number."""
        return bisect.bisect(self._sums, self._drawn.random() * self._sums[-1])


def transactions(
    seed: str,
    client: int,
    count: int,
    *,
    first: int = 0,
    keys: int = KEYS,
    longest: int = LONGEST,
    write: str = "append",
) -> Iterator[tuple[int, list[list[Any]]]]:
    """Yield the transactions of one client with their numbers, from ``first`` on.

    Half of the operations read, half append a value that no other client or number has. A client
    that starts again gives the first number that it has not used. With ``write="w"`` they are for
    registers.

    >>> next(transactions("a-seed", 1, 2))
    (0, [['r', 'k0.1', None], ['append', 'k0.5', '1.0.1'], ['append', 'k0.0', '1.0.2'], ...])
    """
    for number in range(first, first + count):
        drawn = stream(seed, "transactions", client, number)
        zipf = ZipfKeys(keys, drawn)
        operations: list[list[Any]] = []
        for nth in range(1 + int(drawn.random() * longest)):
            key = f"k{number // PER_KEYS}.{zipf.draw()}"
            if drawn.random() < 0.5:
                operations.append(["r", key, None])
            else:
                operations.append([write, key, f"{client}.{number}.{nth}"])
        yield number, operations
