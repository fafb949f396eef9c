"""The inbox: each delivery is there once, is handled once, and holds up no other,
whoever dies in between.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from durable_agents import ManualClock, SqliteStore, TaskManager, open_store
from durable_agents.errors import DatabaseReadOnly
from durable_agents.store.rows import Audit, DeliveryStatus, StoredDelivery
from durable_agents.webhooks.inbox import ATTEMPTS_MAX, KEPT_S, Inbox, InboxPoint, InboxStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents.store import Transaction
    from durable_agents.webhooks.inbox import DeliveryChange


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Open a store with one task, whose audit rows tell what handlers did."""
    with open_store(tmp_path / "inbox.db") as opened:
        TaskManager(opened).create("t")
        yield opened


def delivery(number: int, source: str = "tracker") -> StoredDelivery:
    """Return a delivery as a receiver makes it."""
    return StoredDelivery(0, source, f"id:{number}", f"msg_{number}", "", f'{{"n": {number}}}', 1_000_000 * number)


def write_audit(handled: StoredDelivery) -> DeliveryChange:
    """Handle a delivery: leave a trace in the database."""
    return lambda transaction: transaction.insert_audit(Audit("t", "handled", None, None, handled.delivery_id, 1))


def traces(store: SqliteStore) -> list[str]:
    """Return which deliveries left a trace."""
    return [audit.detail for audit in store.audits("t") if audit.event == "handled"]


def test_a_delivery_is_accepted_once(store: SqliteStore) -> None:
    """Known by source and identity: in one batch, in the next,
    and from another source it is another.
    """
    inbox = Inbox(store)
    assert inbox.accept([delivery(1), delivery(1), delivery(2)]) == [True, False, True]
    assert inbox.accept([delivery(2), delivery(2, "github")]) == [False, True]
    assert store.deliveries(DeliveryStatus.PENDING) == 3


def test_deliveries_are_handled_in_order_and_once(store: SqliteStore) -> None:
    """Oldest first; a second round finds nothing, and what was sent again after it was handled is
    known.
    """
    inbox = Inbox(store, write_audit, clock=ManualClock(now=0))
    inbox.accept([delivery(number) for number in (3, 1, 2)])
    assert inbox.run_once() == InboxStatistics(handled=3)
    assert traces(store) == ["msg_3", "msg_1", "msg_2"]
    assert inbox.accept([delivery(1)]) == [False]
    assert inbox.run_once() == InboxStatistics()


def test_many_processes_worth_of_rounds_handle_each_once(store: SqliteStore) -> None:
    """Eight rounds at once over a hundred deliveries."""
    Inbox(store).accept([delivery(number) for number in range(100)])
    start = threading.Barrier(8)

    def work() -> int:
        inbox = Inbox(store, write_audit, clock=ManualClock(now=0))
        start.wait()
        return inbox.run_once().handled

    with ThreadPoolExecutor(8) as pool:
        counts = [future.result() for future in [pool.submit(work) for _ in range(8)]]
    assert sum(counts) == 100
    assert sorted(traces(store)) == sorted(f"msg_{number}" for number in range(100))


@pytest.mark.parametrize("is_late", [False, True], ids=["deciding", "changing"])
def test_a_handler_that_raises_changes_nothing_and_is_tried_again(store: SqliteStore, *, is_late: bool) -> None:
    """What it had written is undone; the others are handled;
    after the last attempt it is put aside with the reason.
    """

    def handle(handled: StoredDelivery) -> DeliveryChange:
        def change(transaction: Transaction) -> None:
            write_audit(handled)(transaction)
            if handled.delivery_id == "msg_2" and is_late:
                raise LookupError(message)

        if handled.delivery_id == "msg_2" and not is_late:
            raise LookupError(message)
        return change

    message = "not yet"
    inbox = Inbox(store, handle, clock=ManualClock(now=0))
    inbox.accept([delivery(number) for number in (1, 2, 3)])
    assert inbox.run_once() == InboxStatistics(handled=2, postponed=1)
    for _ in range(ATTEMPTS_MAX - 2):
        assert inbox.run_once() == InboxStatistics(postponed=1)
    assert inbox.run_once() == InboxStatistics(failed=1)
    assert inbox.run_once() == InboxStatistics()
    assert traces(store) == ["msg_1", "msg_3"]
    assert store.deliveries(DeliveryStatus.FAILED) == 1


def test_what_was_handled_long_ago_is_forgotten(store: SqliteStore) -> None:
    """After a week, and no earlier; what waits or was put aside stays."""
    clock = ManualClock(now=2_000_000)
    inbox = Inbox(store, write_audit, clock=clock)
    inbox.accept([delivery(1), delivery(2)])
    inbox.run_once()
    clock.advance(KEPT_S - 0.5)
    inbox.run_once()
    assert store.deliveries(DeliveryStatus.HANDLED) == 1
    clock.advance(1)
    inbox.run_once()
    assert store.deliveries(DeliveryStatus.HANDLED) == 0


@pytest.mark.parametrize("point", InboxPoint)
def test_a_kill_anywhere_loses_nothing_and_doubles_nothing(store: SqliteStore, tmp_path: Path, point: str) -> None:
    """The process dies at each crash point; sent again and handled again,
    each delivery has one trace.
    """
    path = tmp_path / "inbox.db"
    pid = os.fork()
    if pid == 0:
        _die_at(point, str(path))
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    inbox = Inbox(store, write_audit, clock=ManualClock(now=0))
    inbox.accept([delivery(1), delivery(2)])
    inbox.run_once()
    assert sorted(traces(store)) == ["msg_1", "msg_2"]


def _die_at(point: str, path: str) -> None:
    """Accept and handle two deliveries, and be killed at a point; never returns."""
    sys.addaudithook(lambda event, _: os.kill(os.getpid(), signal.SIGKILL) if event == point else None)
    with open_store(path) as opened:
        inbox = Inbox(opened, write_audit, clock=ManualClock(now=0))
        inbox.accept([delivery(1), delivery(2)])
        inbox.run_once()
    os._exit(0)


def test_an_inbox_that_cannot_be_written_says_so(store: SqliteStore) -> None:
    """What meets every delivery is raised, not counted as a delivery's own fault."""

    def refuse(_: StoredDelivery) -> DeliveryChange:
        message = "the disk is gone"
        raise DatabaseReadOnly(message)

    inbox = Inbox(store, refuse)
    inbox.accept([delivery(1)])
    with pytest.raises(DatabaseReadOnly):
        inbox.run_once()
    assert store.deliveries(DeliveryStatus.PENDING) == 1
