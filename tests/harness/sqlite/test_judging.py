"""Findings from events that are written by hand: what no program need be run for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st
from pytest_chaos.sqlite.detect import SqliteJudgement, judged
from pytest_chaos.sqlite.world import (
    PENDING,
    RESERVED,
    SHARED,
    SHARED_BYTES,
    WAL_CHECKPOINT,
    WAL_OPEN,
    WAL_READ,
    WAL_WRITE,
)
from pytest_chaos.trace.step import Action, Event, LockType, Touch

DB, SHM, WAL = 2, 3, 4
PATHS = {DB: "a.db", SHM: "a.db-shm", WAL: "a.db-wal"}


def event(what: Touch | Action, process: str = "1", **fields: Any) -> Event:
    """Return an event of a process; ``node`` gives the path."""
    fields = {"path": PATHS.get(fields.get("node", 0), ""), **fields}
    kind: dict[str, Any] = {"touch": what} if isinstance(what, Touch) else {"action": what}
    return Event(process=process, **kind, **fields)


def opened(descriptor: int, process: str = "1", node: int = DB, line: str = "") -> Event:
    """Return an open."""
    return event(Touch.OPEN, process, node=node, descriptor=descriptor, line=line)


def closed(descriptor: int, process: str = "1", node: int = DB, line: str = "") -> Event:
    """Return a close."""
    return event(Touch.CLOSE, process, node=node, descriptor=descriptor, length=4096, line=line)


def locked(kind: LockType, start: int = SHARED, length: int = SHARED_BYTES, process: str = "1", **fields: Any) -> Event:
    """Return a lock that is asked for, by default SHARED of the database."""
    given_: dict[str, Any] = {"node": DB, "descriptor": 3, **fields}
    return event(Touch.LOCK, process, offset=start, length=length, lock=kind, **given_)


def kinds(events: list[Event]) -> list[str]:
    """Return the kinds of what is found."""
    return [finding.signature.split(":")[1] for finding in told(events).findings]


def told(events: list[Event]) -> SqliteJudgement:
    """Judge events; processes other than the first are named by their numbers."""
    return judged(events, name_of=lambda process: "" if process == "1" else f"process {process}", power=True)


READ, WRITE, NONE = LockType.READ, LockType.WRITE, LockType.NONE


def test_a_close_of_the_descriptor_with_the_lock_is_its_owners() -> None:
    """SQLite closes its own; only another one of the same process is a finding."""
    own = [opened(3), locked(READ), closed(3)]
    other = [opened(3), locked(READ), opened(5), closed(5)]
    elsewhere = [opened(3), locked(READ), opened(5, "2"), closed(5, "2")]
    unlocked = [opened(3), locked(READ), locked(NONE), opened(5), closed(5)]
    assert [kinds(each) for each in (own, other, elsewhere, unlocked)] == [[], ["locks-cancelled"], [], []]


def test_a_file_that_nobody_locks_as_sqlite_does_is_no_database() -> None:
    """A POSIX lock at the beginning of a file is another program's."""
    events = [opened(3), locked(WRITE, 0, 10), opened(5), closed(5)]
    assert told(events) == SqliteJudgement((), (), ())


def test_both_parties_are_named() -> None:
    """By their lines; a process that is not the first, or has no line, by its name."""
    events = [opened(3, line="a.py:1 in open_it"), locked(READ, line="a.py:2 in read_it")]
    events += [opened(5), closed(5, line="b.py:9 in peek")]
    (finding,) = told(events).findings
    assert finding.signature == "sqlite:locks-cancelled:a.db:b.py in peek"
    assert finding.text.startswith(
        "b.py:9 in peek closes a.db while the same process holds SHARED on it, taken at a.py:2"
    )
    events = [opened(3, "2"), locked(READ, process="2"), opened(5, "2"), closed(5, "2")]
    (finding,) = told(events).findings
    assert finding.text.startswith(
        "process 2 closes a.db while the same process holds SHARED on it, taken at process 2"
    )


@pytest.mark.parametrize("name", ["nfs4", "9p", "virtiofs", "fuse.sshfs", "cifs"])
def test_a_file_system_without_working_locks_is_found(name: str) -> None:
    """By its type, with the database."""
    (finding,) = told([opened(3), locked(READ, system=name)]).findings
    assert finding.signature.startswith("sqlite:file-system:a.db")
    assert name in finding.text


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", ""])
def test_a_local_file_system_is_left_alone(name: str) -> None:
    """Or one that is not known."""
    assert kinds([opened(3), locked(READ, system=name)]) == []


def _upgrade(*between: Event, line: str = "a.py:2 in put") -> list[Event]:
    """Return a read, what comes between, and the wish to write, of which nothing comes."""
    index: dict[str, Any] = {"node": SHM, "descriptor": 6}
    return [
        opened(3),
        locked(READ),
        locked(READ, WAL_OPEN, 1, **index),
        locked(READ, WAL_READ + 1, 1, line="a.py:1 in get", **index),
        *between,
        locked(WRITE, WAL_WRITE, 1, line=line, **index),
        locked(NONE, WAL_WRITE, 1, **index),
        locked(NONE, WAL_READ + 1, 1, **index),
    ]


def test_an_upgrade_is_found_where_another_process_has_written() -> None:
    """Not one that nobody was in the way of, and not one statement that reads and writes."""
    commit = event(Action.WRITE, "2", node=WAL, descriptor=5, length=4096, line="b.py:3 in commit")
    own = event(Action.WRITE, "1", node=WAL, descriptor=5, length=4096)
    assert kinds(_upgrade(commit)) == ["stale-upgrade"]
    assert kinds(_upgrade()) == kinds(_upgrade(own)) == []
    assert kinds(_upgrade(commit, line="a.py:1 in get")) == kinds(_upgrade(commit, line="")) == []


def test_a_write_lock_of_another_process_is_in_the_way_of_an_upgrade() -> None:
    """In the rollback journal, where it has written nothing yet."""
    other = [opened(3, "2"), locked(WRITE, RESERVED, 1, "2", line="b.py:3 in begin")]
    events = [opened(3), locked(READ, line="a.py:1 in get"), *other, locked(WRITE, RESERVED, 1, line="a.py:2 in put")]
    (finding,) = told([*events, locked(NONE)]).findings
    assert "b.py:3 in begin (process 2) has written since, or does" in finding.text


def test_two_processes_that_make_a_file_at_once_have_carried_nothing_over() -> None:
    """Each open is noted before it is done, so each process is taken for the file's maker."""
    first = [opened(3), opened(6, node=SHM), locked(READ), locked(READ, WAL_READ, 1, node=SHM, descriptor=6)]
    its_own = [opened(3, "2"), event(Touch.OPEN, "2", node=99, path=PATHS[SHM], descriptor=6)]
    use = [locked(READ, process="2"), locked(READ, WAL_READ + 1, 1, "2", node=SHM, descriptor=6)]
    assert kinds([*first, *its_own, *use]) == []
    assert kinds([*first, its_own[0], *use]) == ["carried-over-fork"]


def test_an_upgrade_between_threads_is_one_whose_lock_is_given_back_at_once() -> None:
    """A transaction that began with BEGIN IMMEDIATE gives it back at its end, on another line."""

    def by(thread: int, events: list[Event]) -> list[Event]:
        return [msgspec.structs.replace(each, thread=thread) for each in events]

    commit = by(2, [event(Action.WRITE, node=WAL, descriptor=5, length=4096, line="b.py:3 in commit")])
    at_once = by(1, _upgrade())
    read, write, back, end = at_once[:4], at_once[4], at_once[5], at_once[6:]
    same = msgspec.structs.replace(back, line=write.line)
    (finding,) = told([*read, *commit, write, same, *end]).findings
    assert finding.signature.startswith("sqlite:stale-upgrade:a.db")
    assert "b.py:3 in commit in another thread has written since" in finding.text
    assert kinds([*read, *commit, write, back, *end]) == []
    assert kinds([*read, *by(1, commit), write, same, *end]) == []


def test_a_read_that_another_thread_goes_on_with_is_no_upgrade() -> None:
    """A BEGIN IMMEDIATE waits for another process, and shares the read of another thread."""
    index: dict[str, Any] = {"node": SHM, "descriptor": 6}
    holds = [opened(6, "2", SHM), locked(WRITE, WAL_WRITE, 1, "2", line="b.py:3 in begin", **index)]
    second = locked(READ, WAL_OPEN, 1, thread=2, line="a.py:5 in other", **index)
    reads, asks, back, ends = _upgrade()[:4], _upgrade()[4], _upgrade()[5], _upgrade()[6]
    by_other = msgspec.structs.replace(ends, thread=2, line="a.py:5 in other")
    by_own = [msgspec.structs.replace(ends, line=line) for line in ("a.py:2 in put", "a.py:3 in rollback")]
    exits = event(Touch.EXIT)
    assert kinds([*reads, *holds, asks, back, exits]) == ["stale-upgrade"]
    assert [kinds([*reads, second, *holds, asks, back, end]) for end in (by_other, *by_own, exits)] == [[]] * 4


def test_a_read_mark_that_was_refused_is_no_read() -> None:
    """SQLite tries the next mark at once; a BEGIN IMMEDIATE much later has read nothing before."""
    index: dict[str, Any] = {"node": SHM, "descriptor": 6}
    refused, gets = WAL_READ + 2, WAL_READ + 1
    before = [
        opened(3),
        locked(READ),
        locked(READ, WAL_OPEN, 1, **index),
        locked(READ, refused, 1, line="a.py:1 in get", **index),
        locked(READ, gets, 1, line="a.py:1 in get", **index),
        locked(NONE, gets, 1, line="a.py:1 in get", **index),
    ]
    holds = [opened(6, "2", SHM), locked(WRITE, WAL_WRITE, 1, "2", line="b.py:3 in begin", **index)]
    begins: dict[str, Any] = {"line": "a.py:9 in begin", **index}
    begin = [locked(READ, refused, 1, **begins), locked(WRITE, WAL_WRITE, 1, **begins)]
    assert kinds([*before, *holds, *begin, locked(NONE, refused, 1, **begins)]) == []
    reads = [*before[:-1], locked(READ, refused, 1, line="a.py:2 in get", **index)]
    assert kinds([*reads, *holds, begin[1], locked(NONE, refused, 1, **begins)]) == ["stale-upgrade"]


def test_a_write_whose_lock_may_have_come_is_none_without_locks() -> None:
    """The other process gave the lock back while this one asked for it."""
    index: dict[str, Any] = {"node": SHM, "descriptor": 6}
    first = [opened(3), locked(READ), opened(6, node=SHM), opened(5, "2"), opened(6, "2", SHM)]
    first += [locked(READ, process="2", descriptor=5)]
    first += [locked(WRITE, WAL_CHECKPOINT, 1, "2", **index), event(Action.SYNC, "2", node=WAL)]
    asks, gives = locked(WRITE, WAL_CHECKPOINT, 1, **index), locked(NONE, WAL_CHECKPOINT, 1, "2", **index)
    write = event(Action.WRITE, node=DB, descriptor=3, length=4096)
    assert kinds([*first, asks, gives, write]) == kinds([*first, gives, asks, write]) == []
    assert kinds([*first, asks, write]) == ["overwritten"]


def _schema(number: int, cookie: int, process: str = "1") -> list[Event]:
    """Return a transaction of the log with another schema cookie."""
    page = b"SQLite format 3\0" + bytes(24) + cookie.to_bytes(4, "big") + bytes(56)
    header = (1).to_bytes(4, "big") + (2).to_bytes(4, "big") + bytes(16)
    return [
        event(Action.WRITE, process, node=WAL, descriptor=5, length=24, head=header, number=number),
        event(Action.WRITE, process, node=WAL, descriptor=5, length=4096, head=page, number=number + 1),
        event(Action.SYNC_DATA, process, node=WAL, number=number + 2),
    ]


def test_a_schema_change_is_a_transaction_with_another_cookie() -> None:
    """By the number of the step that commits it."""
    events = [opened(3), locked(READ), *_schema(10, 1), *_schema(20, 1), *_schema(30, 2)]
    assert [(each.database, each.event.number) for each in told(events).schema_changes] == [("a.db", 11), ("a.db", 31)]


def test_an_ack_needs_a_flush_only_where_power_may_fail() -> None:
    """A kill takes nothing from the kernel."""
    ack = event(Action.MARK, head=b'{"kind": "ack", "operation": "put", "key": 1}\n')
    note = event(Action.MARK, head=b'{"kind": "note", "operation": "ack"}\n')
    before = [opened(3), locked(READ), *_schema(10, 1)[:2]]
    assert kinds([*before, ack]) == ["acknowledged-unflushed"]
    assert kinds([*before, note]) == kinds([*before, *_schema(10, 1)[2:], ack]) == []
    assert judged([*before, ack], name_of=str).findings == ()


ANY = st.builds(
    event,
    st.sampled_from([*Touch, *Action]),
    st.sampled_from("123"),
    node=st.sampled_from([0, DB, SHM, WAL, 9]),
    descriptor=st.integers(-1, 6),
    offset=st.sampled_from([0, WAL_WRITE, WAL_READ, WAL_OPEN, PENDING, RESERVED, SHARED]),
    length=st.sampled_from([0, 1, 2, 24, 510, 4096, 1 << 62]),
    lock=st.sampled_from(list(LockType)),
    target=st.sampled_from(["", *PATHS.values(), "b.db"]),
    replaced=st.sampled_from([0, DB, WAL]),
    line=st.sampled_from(["", "a.py:1 in f", "b.py:2 in g"]),
    head=st.sampled_from([b"", b"SQLite format 3\0", b'{"kind":"ack"}', bytes.fromhex("d9d505f920a163d7")]),
    holders=st.sampled_from([(), (("1", 3),), (("2", 3), ("1", 5))]),
    behind=st.integers(0, 2),
    system=st.sampled_from(["", "nfs4", "ext4"]),
    refused=st.sampled_from(["", "ENOLCK", "ENOSYS"]),
)


@given(st.lists(ANY, max_size=60))
def test_any_events_are_judged(events: list[Event]) -> None:
    """A trace may be cut, or of a program that does anything: no event raises."""
    found = told(events).findings
    assert all(finding.kind == "safety" and finding.text for finding in found)
    assert len({finding.signature for finding in found}) <= len(found)
    assert told(events) == told(events)


@given(st.lists(st.tuples(st.sampled_from("12"), st.sampled_from([READ, WRITE, NONE])), max_size=20))
def test_connections_that_lock_and_close_by_themselves_are_sound(asked: list[tuple[str, LockType]]) -> None:
    """Whatever the order in which two processes open, lock, unlock and close."""
    events = [opened(3, "1"), opened(4, "2")]
    for process, kind in asked:
        events.append(
            locked(kind, process=process, descriptor=3 if process == "1" else 4, line=f"p{process}.py:1 in f")
        )
    events += [closed(3, "1"), closed(4, "2")]
    assert kinds(events) == []
