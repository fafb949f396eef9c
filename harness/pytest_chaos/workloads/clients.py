"""Clients that drive a target and write the marks that checkers judge: each a loop for an agent.

An agent calls one of these with its marks and with functions of yours. An exception that is listed
in ``refusals`` says that the operation did not happen; any other leaves it unknown, and the client
goes on with the next one.

    def agent(marks, database, client):
        connection = sqlite3.connect(database, isolation_level=None)
        append_lists(marks, txn, connection, seed="a-seed", client=client)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from pytest_chaos.model.calls import FAILED, NOT_KNOWN
from pytest_chaos.workloads.generators import KEYS, transactions

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.runtime.marks import Marks

COUNT: Final = 100
"""How many operations a client makes."""

Connection = TypeVar("Connection")


def append_lists(
    marks: Marks,
    txn: Callable[[Connection, list[list[Any]]], list[list[Any]]],
    connection: Connection,
    *,
    seed: str,
    client: int,
    count: int = COUNT,
    first: int = 0,
    keys: int = KEYS,
    refusals: tuple[type[Exception], ...] = (),
) -> None:
    """Make transactions of reads and appends, for ``isolation.list_append`` to judge.

    ``txn(connection, operations)`` does one, and returns it with the lists that its reads saw.

    >>> lists = {}
    >>> def txn(lists, operations):
    ...     for operation in operations:
    ...         values = lists.setdefault(operation[1], [])
    ...         if operation[0] == "append":
    ...             values.append(operation[2])
    ...         else:
    ...             operation[2] = list(values)
    ...     return operations
    >>> append_lists(Marks("marks"), txn, lists, seed="a-seed", client=1)
    >>> from pathlib import Path
    >>> from pytest_chaos import History
    >>> from pytest_chaos.checkers.isolation import list_append
    >>> list_append()(History.from_lines(Path("marks").read_bytes()))
    ()
    """
    for number, operations in transactions(seed, client, count, first=first, keys=keys):
        do(marks, "txn", number, operations, lambda: txn(connection, operations), refusals)  # noqa: B023 - called at once


def put_and_take(
    marks: Marks,
    put: Callable[[str], object],
    take: Callable[[], object],
    *,
    client: int,
    count: int = COUNT,
    first: int = 0,
    refusals: tuple[type[Exception], ...] = (),
) -> None:
    """Put unique values into a queue and take as many, for ``elements.total_queue`` or a model.

    ``take()`` returns a value, or ``None`` from an empty queue.
    """
    for number in range(first, first + count):
        value = f"{client}.{number}"
        do(marks, "enqueue", None, value, lambda: put(value) and None, refusals)  # noqa: B023 - called at once
        do(marks, "dequeue", None, None, take, refusals)


def lock_and_unlock(
    marks: Marks,
    acquire: Callable[[], int | None],
    release: Callable[[int], object],
    *,
    count: int = COUNT,
    name: str = "lock",
    refusals: tuple[type[Exception], ...] = (),
) -> None:
    """Take a lock and give it back, for ``linearizable("lock")`` to judge.

    ``acquire()`` returns a fencing token, or ``None`` where another client holds the lock.
    """
    for _ in range(count):
        token = do(marks, "acquire", name, None, lambda: acquire() or False, refusals)
        if token:
            do(marks, "release", name, token, lambda: release(token) is not False, refusals)  # noqa: B023 - called at once


def do(
    marks: Marks,
    operation: str,
    key: str | int | None,
    given: Any,
    done: Callable[[], Any],
    refusals: tuple[type[Exception], ...] = (),
) -> Any:
    """Do one operation between its marks, and return its output; ``None`` if it is not known.

    >>> do(Marks("marks"), "read", "x", None, lambda: 3)
    3
    """
    marks.intent(operation, key, given)
    try:
        output = done()
    except refusals as error:
        marks.note(operation, key, {FAILED: f"{type(error).__name__}: {error}"})
        return None
    except Exception as error:  # noqa: BLE001 - what the target raises leaves the outcome unknown, as a lost answer does
        marks.note(operation, key, {NOT_KNOWN: f"{type(error).__name__}: {error}"})
        return None
    marks.ack(operation, key, output)
    return output
