"""The questions about threads that share one transaction, and what an interrupt leaves of it."""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
import sqlite3
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from durable_agents import TaskManager, TaskStatus, open_store
from durable_agents.errors import DatabaseFull, StoreError
from durable_agents.store.rows import Audit, Task
from durable_agents.store.sqlite import group_commit
from durable_agents.store.sqlite.group_commit import Group, GroupCommit

from scenarios.judging import BEGINNING
from scenarios.questions.world import WAIT_S, Questions, World, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LATE_S: Final = 10.0
"""After this time a call is said to be late: what it waits for does not come."""
LATE: Final = "late"


def in_time(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a call returns, the name of its error, or that it did not end in time."""
    found: list[Any] = [LATE]

    def run() -> None:
        try:
            found[0] = call(*arguments)
        except BaseException as error:  # noqa: BLE001 - an interrupt is an answer, too
            found[0] = type(error).__name__

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LATE_S)
    return found[0]


def add(transaction: Any, name: str) -> None:
    """Add a task."""
    transaction.insert_task(Task(name, None, TaskStatus.CREATED, "", BEGINNING, BEGINNING, BEGINNING))


def nothing_more(_: Any) -> None:
    """End the block as it should."""


def raises(_: Any) -> None:
    """End the block by an error of its own."""
    raise ZeroDivisionError


def is_interrupted(_: Any) -> None:
    """End the block by an interrupt."""
    raise KeyboardInterrupt


def is_rolled_back(transaction: Any) -> None:
    """Have SQLite roll back, as it does on a full disk, and end the block by its error."""
    row = ("0", None, "created", "", 1, 1, 1)
    transaction.execute("INSERT OR ROLLBACK INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    transaction.execute("INSERT OR ROLLBACK INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def goes_on(transaction: Any) -> None:
    """Have SQLite roll back, and end the block as if it had not."""
    with contextlib.suppress(StoreError):
        is_rolled_back(transaction)


def cannot_commit(transaction: Any) -> None:
    """Make the COMMIT fail."""
    transaction.execute("PRAGMA defer_foreign_keys = 1", ())
    transaction.insert_audit(Audit("no such task", "said", None, None, "", BEGINNING))


class Members:
    """Threads that write at once: each begins when the one before it is in its block."""

    def __init__(self, store: Any, early: Sequence[int] = (), age_s: float = 60.0) -> None:
        """Keep the store, who does not wait for the last, and how old a group may become."""
        self.store, self.sooner, self.age_s = store, early, age_s
        self.told: dict[int, str] = {}
        self.errors: list[BaseException] = []
        self.early: list[int] = []
        self.commits = 0
        self.may_go = threading.Event()

    def run(self, *ends: Callable[[Any], None]) -> list[Any]:
        """Let each thread add a task, and end its block so; return what became of all."""
        threads = [threading.Thread(target=self._member, args=[n, *ends], daemon=True) for n in range(len(ends))]
        with mock.patch.object(group_commit, "AGE_S_MAX", self.age_s):  # a slow computer must not part them
            for number, thread in enumerate(threads):
                thread.start()
                self._wait_for(lambda number=number: len(self.store.group_commit._queue) >= number)  # type: ignore[misc]  # noqa: SLF001 - nothing else tells
            self.may_go.set()
            deadline = time.monotonic() + LATE_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        told = [self.told.get(number, LATE) for number in range(len(ends))]
        found = [told, [task.task_id for task in self.store.tasks()], self.early, self.commits]
        is_free = in_time(write, self.store, "another") == ""
        return [*found, is_free, len({id(error) for error in self.errors}) == len(self.errors)]

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LATE_S
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.001)  # sleeps because nothing tells that a thread has queued

    def _member(self, number: int, *ends: Callable[[Any], None]) -> None:
        try:
            with self.store.transaction() as transaction:
                transaction.connection.set_trace_callback(self._note)
                self.may_go.wait(LATE_S)
                add(transaction, f"task {number}")
                if number == len(ends) - 1:
                    self._wait_for(lambda: {*self.sooner} <= {*self.told})
                    time.sleep(WAIT_S)  # sleeps because who does not wait needs time to show it
                    self.early = sorted(self.told)
                ends[number](transaction)
        except BaseException as error:  # noqa: BLE001 - an interrupt is what some are told
            self.errors.append(error)
            self.told[number] = type(error).__name__
        else:
            self.told[number] = ""

    def _note(self, statement: str) -> None:
        self.commits += statement == "COMMIT"


def grouped(world: World) -> dict[str, list[Any]]:
    """Return what three threads are told that share a commit, and what is kept, by how they end."""
    found = {}
    for name, ends in ENDS.items():
        with open_store(world.folder / f"{name}.db") as store:
            store.give_back(store.borrow())
            early, age_s = GROUPED[name][2], -1.0 if name == "too old" else 60.0
            found[name] = Members(store, early, age_s).run(*ends)
            found[name].append(len(store._idle))  # noqa: SLF001 - a connection that is lost is opened anew each time
        if LATE in found[name][0]:
            break  # one answer is wrong, and each wait takes its time
    return found


ENDS: Final[dict[str, tuple[Callable[[Any], None], ...]]] = {
    "all": (nothing_more,) * 3,
    "first raises": (raises, nothing_more, nothing_more),
    "second raises": (nothing_more, raises, nothing_more),
    "last raises": (nothing_more, nothing_more, raises),
    "second interrupted": (nothing_more, is_interrupted, nothing_more),
    "rolled back": (nothing_more, is_rolled_back, nothing_more),
    "goes on": (nothing_more, goes_on, nothing_more),
    "no commit": (nothing_more, nothing_more, cannot_commit),
    "too old": (nothing_more,) * 3,
}

GROUPED: Final[dict[str, list[Any]]] = {
    "all": [["", "", ""], ["task 0", "task 1", "task 2"], [], 1, True, True, 1],
    "first raises": [["ZeroDivisionError", "", ""], ["task 1", "task 2"], [0], 1, True, True, 1],
    "second raises": [["", "ZeroDivisionError", ""], ["task 0", "task 2"], [], 1, True, True, 1],
    "last raises": [["", "", "ZeroDivisionError"], ["task 0", "task 1"], [], 1, True, True, 1],
    "second interrupted": [["", "KeyboardInterrupt", ""], ["task 0", "task 2"], [1], 1, True, True, 1],
    "rolled back": [["StoreError", "StoreError", ""], ["task 2"], [0, 1], 1, True, True, 1],
    "goes on": [["StoreError", "StoreError", ""], ["task 2"], [0, 1], 1, True, True, 1],
    "no commit": [["StoreError"] * 3, [], [], 1, True, True, 1],
    "too old": [["", "", ""], ["task 0", "task 1", "task 2"], [0, 1], 3, True, True, 1],
}
"""By how they end: what each is told, what is kept, who does not wait for the last, how many
commits there are, whether the next can write, whether each has an error of its own, and how many
connections are kept for later."""


@contextlib.contextmanager
def interrupted(step: str) -> Iterator[None]:
    """Interrupt a step of a group commit, the first time that it is done."""
    inner, is_done = getattr(GroupCommit, step), list[bool]()

    def raise_once(*arguments: Any) -> Any:
        if not is_done:
            is_done.append(True)
            raise KeyboardInterrupt
        return inner(*arguments)

    with mock.patch.object(GroupCommit, step, raise_once):
        yield


def interrupts(world: World) -> dict[str, list[Any]]:
    """Return what a writer is told that is interrupted at a step, and what the next is told."""
    found = {}
    for step in ("_take_slot", "_begun", "_settle", "_pass_on", "_commit"):
        with open_store(world.folder / f"{step}.db", busy_timeout_s=0.2) as store, interrupted(step):
            told, after = in_time(write, store, "one"), in_time(write, store, "two")
            found[step] = [told, after, [task.task_id for task in store.tasks()]]
        if LATE in found[step]:
            break  # as above
    return found


def write(store: Any, name: str) -> str:
    """Add a task in a transaction."""
    with store.transaction() as transaction:
        add(transaction, name)
    return ""


def locked_out(world: World) -> list[Any]:
    """Return what a writer is told while another program writes, and afterwards."""
    path = world.folder / "recovery.db"
    with open_store(path, busy_timeout_s=0.05) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            told = [in_time(write, store, "one") for _ in range(2)]
        return [told, in_time(write, store, "two"), len(store._idle)]  # noqa: SLF001 - as above


def stale_tickets(world: World) -> list[Any]:
    """Return whether a slot that is another's, or the parent's, cannot be given up."""
    store = world.store
    commit: GroupCommit = store.group_commit
    stale = _thread.allocate_lock()
    with store.transaction() as transaction:
        add(transaction, "one")
        group = commit._group  # noqa: SLF001 - as if an interrupt had torn an earlier one apart
        assert group is not None
        commit.abandon(stale, group)
        commit._leave_slot(stale)  # noqa: SLF001 - as above
        passed_on = commit._pass_on(stale)  # noqa: SLF001 - as above
        is_open = [commit._holder is transaction._ticket, group.has_ended, passed_on is None]  # noqa: SLF001 - as above
        is_open.append(in_child(lambda: [abandoned_in_child(commit, transaction, group)]) == [True])
    return [*is_open, [task.task_id for task in store.tasks()]]


def abandoned_in_child(commit: GroupCommit, transaction: Any, group: Group) -> bool:
    """Return whether a forked child that gives up its parent's slot leaves it as it is."""
    commit.abandon(transaction._ticket, group)  # noqa: SLF001 - as the end of the child's interpreter may
    return commit._holder is transaction._ticket and not group.has_ended  # noqa: SLF001 - as above


def in_child(call: Callable[[], list[int]]) -> list[int]:
    """Return the small numbers that a call gives in a forked child, or nothing if it raises."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.write(write_end, bytes(call()))
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answer:
        content = answer.read()
    os.waitpid(pid, 0)
    return list(content)


def ended_in_child(world: World) -> list[Any]:
    """Return what a forked child is told that ends its parent's transaction, and what is kept."""
    store = world.store
    with store.transaction() as transaction:
        add(transaction, "one")
        told = in_child(lambda: list(refused(transaction.commit).encode()))
        left = in_child(lambda: [transaction.__exit__(ValueError, ValueError(), None) is None])
    return [bytes(told).decode(), left, [task.task_id for task in store.tasks()]]


def last_moment(world: World) -> list[Any]:
    """Return what is told where the slot, or the end, comes at the very end of the wait."""
    with open_store(world.folder / "recovery.db", busy_timeout_s=0.01) as store:
        commit = store.group_commit
        commit._holder = _thread.allocate_lock()  # noqa: SLF001 - another thread's, as above
        with mock.patch.object(GroupCommit, "_leave_queue", return_value=False):  # it was called just now
            told = [in_time(refused, functools.partial(commit._take_slot, _thread.allocate_lock()))]  # noqa: SLF001 - as above
        waits = []
        with closing(sqlite3.connect(":memory:")) as connection, mock.patch.object(group_commit, "END_S_MAX", 0.01):
            for has_ended in (False, True):
                group = Group(connection)
                group.has_ended = has_ended
                end = group.end_lock()
                waits.append(in_time(refused, functools.partial(commit._wait, group, end)))  # noqa: SLF001 - as above
        return [*told, *waits]


def torn_apart(world: World) -> list[Any]:
    """Return whether a slot is free that was given to a thread just when it was interrupted."""
    commit: GroupCommit = world.store.group_commit
    ticket = _thread.allocate_lock()
    leave = GroupCommit._leave_queue  # noqa: SLF001 - as above

    def give_first(self: GroupCommit, mine: Any) -> bool:
        self._holder = mine
        return leave(self, mine)

    with (
        mock.patch.object(GroupCommit, "_take_slot", side_effect=KeyboardInterrupt),
        mock.patch.object(GroupCommit, "_leave_queue", give_first),
    ):
        told = in_time(commit.join, ticket, Members(None))
    return [told, commit._holder is None]  # noqa: SLF001 - as above


def broken_ends(_: World) -> list[Any]:
    """Return what is said of a COMMIT that is interrupted, before and after it was done."""
    found = []
    for is_open in (True, False):
        store, connection = mock.Mock(), mock.Mock(in_transaction=is_open)
        connection.execute.side_effect = [KeyboardInterrupt, None]
        group = Group(connection)
        told = in_time(GroupCommit(store)._commit, group)  # noqa: SLF001 - as above
        found.append([told, type(group.error).__name__, group.has_ended])
    return found


class Told(Group):
    """A group that notes what its end sets, in this order."""

    def __init__(self, connection: Any) -> None:
        """Begin without notes."""
        self.noted: list[str] = []
        super().__init__(connection)

    def __setattr__(self, name: str, value: Any) -> None:
        """Note what is set."""
        super().__setattr__(name, value)
        self.noted.append(name)


def an_end(_: World) -> list[str]:
    """Return what the end of a group sets: a thread may look between any two steps."""
    group = Told(None)
    group.noted.clear()
    group.end(DatabaseFull("the disk is full"))
    return group.noted


def after_the_commit(world: World) -> list[Any]:
    """Return whether the size of the log is looked at when the slot is free again."""
    store, looks = world.store, list[bool]()

    def look(_: object) -> None:
        looks.append(store.group_commit._holder is None)  # noqa: SLF001 - as above

    with mock.patch.object(type(store.log_watch), "look", look):
        TaskManager(store, clock=world.clock).create("t")
    return looks


QUESTIONS: Final[Questions] = {
    "store: threads that write at once": (grouped, GROUPED),
    "store: interrupts of a writer": (
        interrupts,
        {
            "_take_slot": ["KeyboardInterrupt", "", ["two"]],
            "_begun": ["KeyboardInterrupt", "", ["two"]],
            "_settle": ["KeyboardInterrupt", "", ["two"]],
            "_pass_on": ["KeyboardInterrupt", "", ["two"]],
            "_commit": ["KeyboardInterrupt", "", ["two"]],
        },
    ),
    "store: a writer that is locked out": (locked_out, [["DatabaseLocked"] * 2, "", 1]),
    "store: stale tickets": (stale_tickets, [True, False, True, True, ["one"]]),
    "store: a transaction that a child ends": (ended_in_child, ["InheritedTransaction", [1], ["one"]]),
    "store: the last moment of a wait": (last_moment, ["", "DatabaseUnavailable", ""]),
    "store: a slot that is torn apart": (torn_apart, ["KeyboardInterrupt", True]),
    "store: a commit that is interrupted": (
        broken_ends,
        [["KeyboardInterrupt", "DatabaseUnavailable", True], ["KeyboardInterrupt", "NoneType", True]],
    ),
    "store: the end of a group": (an_end, ["error", "has_ended"]),
    "store: looks after a commit": (after_the_commit, [True]),
}
"""By room and name: the question, and the answer."""
