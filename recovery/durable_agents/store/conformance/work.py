"""The promises about tasks, checkpoints, work items, transactions and the store as a whole."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from durable_agents.errors import QueryRefused, StoreClosed, UnknownTask
from durable_agents.store.conformance.base import STRANGE_TEXTS, ConformanceBase, UndoneError, a_task, raised
from durable_agents.store.rows import (
    Audit,
    Expiry,
    StoredCheckpoint,
    StoredEvidence,
    Task,
    TaskStatus,
    WorkItem,
    WorkStatus,
)

_HASH: Final = "0" * 64


class WorkConformance(ConformanceBase):
    """Tasks, checkpoints, work items and transactions."""

    def test_an_empty_store_has_nothing(self) -> None:
        """Every read of a new store finds nothing and raises nothing."""
        assert self.store.task("t") is None
        assert self.store.tasks() == []
        assert self.store.audits("t") == []
        assert self.store.latest_checkpoint("t") is None
        assert self.store.checkpoints("t") == []

    def test_a_task_comes_back_as_it_was_put_in(self) -> None:
        """All fields of a task survive, with any text for an id."""
        for number, task_id in enumerate(STRANGE_TEXTS):
            task = Task(task_id, f"ключ'{number}", TaskStatus.CREATED, "stage \n'x'", 1, 2**53 + number, 3)
            with self.store.transaction() as transaction:
                assert transaction.insert_task(task)
            assert self.store.task(task_id) == task
        assert [task.task_id for task in self.store.tasks()] == sorted(STRANGE_TEXTS)

    def test_an_id_is_taken_once(self) -> None:
        """A second task with the same id is refused and the first one stays."""
        self._insert_task("t", tracker_key="A-1")
        with self.store.transaction() as transaction:
            assert not transaction.insert_task(a_task("t", tracker_key="A-2"))
        assert self.store.tasks() == [a_task("t", tracker_key="A-1")]

    def test_a_tracker_key_is_taken_once(self) -> None:
        """A second task with the same tracker key is refused.

        The key finds the first one.
        """
        self._insert_task("t", tracker_key="A-1")
        with self.store.transaction() as transaction:
            assert not transaction.insert_task(a_task("u", tracker_key="A-1"))
            assert transaction.task_with_tracker_key("A-1") == a_task("t", tracker_key="A-1")
            assert transaction.task_with_tracker_key("A-2") is None
        assert self.store.task("u") is None

    def test_many_tasks_may_lack_a_tracker_key(self) -> None:
        """Having no tracker key is not a key that two tasks could share."""
        for task_id in ("t", "u"):
            self._insert_task(task_id)
        assert len(self.store.tasks()) == 2

    def test_tasks_are_listed_by_id_status_and_page(self) -> None:
        """A page begins behind the given id, and ends at the limit.

        A status limits it to tasks with that status.
        """
        for task_id in ("c", "a", "d", "b"):
            self._insert_task(task_id)
        self._change_status("b", TaskStatus.CREATED, TaskStatus.RUNNING)
        assert [task.task_id for task in self.store.tasks(after="a", limit=2)] == ["b", "c"]
        assert [task.task_id for task in self.store.tasks(status=TaskStatus.CREATED, after="a")] == ["c", "d"]
        assert [task.task_id for task in self.store.tasks(status=TaskStatus.RUNNING)] == ["b"]
        assert self.store.tasks(status=TaskStatus.FAILED) == []

    def test_a_status_changes_only_from_the_expected_one(self) -> None:
        """A wrong expected status, or an unknown task, changes nothing.

        Other tasks stay as they are.
        """
        self._insert_task("t")
        self._insert_task("bystander")
        assert not self._change_status("t", TaskStatus.RUNNING, TaskStatus.FAILED)
        assert not self._change_status("nobody", TaskStatus.CREATED, TaskStatus.RUNNING)
        assert self.store.task("t") == a_task("t")
        assert self._change_status("t", TaskStatus.CREATED, TaskStatus.RUNNING)
        assert self.store.task("t") == Task("t", None, TaskStatus.RUNNING, "", 1, 1, 9)
        assert self.store.task("bystander") == a_task("bystander")

    def test_audit_rows_come_back_in_order(self) -> None:
        """The newest rows of one task are returned, oldest first, with all fields."""
        for task_id in ("t", "u"):
            self._insert_task(task_id)
        rows = [Audit("t", "event", None if number else "was", f"ist '{number}'", "ß\n", 5) for number in range(4)]
        with self.store.transaction() as transaction:
            for row in rows:
                transaction.insert_audit(row)
            transaction.insert_audit(Audit("u", "other", None, None, "", 6))
        assert self.store.audits("t") == rows
        assert self.store.audits("t", limit=2) == rows[2:]

    def test_checkpoints_come_back_byte_for_byte(self) -> None:
        """What was stored is what is read, for any JSON text, up to some megabytes."""
        self._insert_task("t")
        contents = [b"null", '{"ключ": "🙂\\u0000"}'.encode(), b" [1,\n2] ", b'"' + b"x" * 3_000_000 + b'"']
        for content in contents:
            self._append("t", content)
        assert [row.snapshot for row in self.store.checkpoints("t")] == contents
        newest = StoredCheckpoint("t", 4, "own type", contents[-1], _HASH, 7)
        assert self.store.latest_checkpoint("t") == newest

    def test_checkpoints_are_listed_by_number_and_page(self) -> None:
        """Pages and steps back go by number, and stay within one task."""
        for task_id in ("t", "u"):
            self._insert_task(task_id)
        for number in range(12):
            self._append("t", b"%d" % number)
        assert [row.sequence_number for row in self.store.checkpoints("t", after=9)] == [10, 11, 12]
        assert [row.sequence_number for row in self.store.checkpoints("t", after=9, limit=2)] == [10, 11]
        before = self.store.latest_checkpoint("t", 10)
        assert before is not None
        assert (before.sequence_number, before.snapshot) == (9, b"8")
        assert self.store.latest_checkpoint("t", 1) is None
        assert self.store.latest_checkpoint("u") is None

    def test_numbers_count_per_task_from_one(self) -> None:
        """The numbers of each task count from 1."""
        for task_id in ("t", "u"):
            self._insert_task(task_id)
        assert [self._append(task_id, b"0") for task_id in ("t", "u", "t", "t", "u")] == [1, 1, 2, 3, 2]

    def test_evidence_comes_back_with_its_checkpoint(self) -> None:
        """Evidence comes newest first and by page.

        A checkpoint without evidence has an empty row.
        """
        self._insert_task("t")
        self._append("t", b"1")
        second = StoredEvidence("t", 2, required=3, verified=True, verdicts='["ключ"]'.encode())
        with self.store.transaction() as transaction:
            transaction.insert_checkpoint(StoredCheckpoint("t", 2, "x", b"2", _HASH, 7))
            transaction.insert_evidence(second)
        first = StoredEvidence("t", 1, required=0, verified=False, verdicts=b"")
        assert self.store.evidence("t") == [second, first]
        assert self.store.evidence("t", limit=1) == [second]
        assert self.store.evidence("t", before=2) == [first]
        assert self.store.evidence("nobody") == []

    def test_the_oldest_checkpoints_are_deleted_with_their_evidence(self) -> None:
        """Checkpoints below the number are deleted, oldest first, up to the limit.

        Other checkpoints and other tasks stay, and numbers go on.
        """
        for task_id in ("t", "u"):
            self._insert_task(task_id)
            for number in (1, 2, 3, 4):
                with self.store.transaction() as transaction:
                    transaction.insert_checkpoint(StoredCheckpoint(task_id, number, "x", b"0", _HASH, 7))
                    transaction.insert_evidence(
                        StoredEvidence(task_id, number, required=1, verified=True, verdicts=b"[]")
                    )
        with self.store.transaction() as transaction:
            assert transaction.delete_checkpoints("t", 4, 2) == 2
            assert transaction.delete_checkpoints("t", 4, 2) == 1
            assert transaction.delete_checkpoints("t", 4, 2) == 0
            assert transaction.next_checkpoint_number("t") == 5
        assert [row.sequence_number for row in self.store.checkpoints("t")] == [4]
        assert [row.required for row in self.store.evidence("t")] == [1]
        assert len(self.store.checkpoints("u")) == len(self.store.evidence("u")) == 4

    def test_work_items_are_granted_best_first_and_once(self) -> None:
        """Items are granted by priority, then by age, within the filters.

        Tokens rise over all items. A held item is granted to nobody else.
        """
        self._insert_task("t")
        self._insert_task("u")
        low, high, other, last = (
            self._enqueue(*item) for item in (("t", "a", 0), ("t", "b", 5), ("u", "a", 5), ("t", "a", 0))
        )
        assert self._grant("h", type="b") == [high]
        assert self._grant("h", task_id="u", type="b") == []
        assert self._grant("h", task_id="u") == [other]
        assert self._grant("i", limit=9) == [low, last]
        assert self._grant("i", limit=9) == []
        items = [self._item(number) for number in (high, other, low, last)]
        assert [item.lease_token for item in items] == sorted({item.lease_token for item in items})
        assert {(item.status, item.lease_expires_at, item.heartbeat_at) for item in items} == {
            (WorkStatus.IN_PROGRESS, 100, 50)
        }

    def test_a_lease_is_held_by_its_token_until_it_expires(self) -> None:
        """Renewing, fencing and ending need the token and a moment before the expiry.

        Otherwise nothing changes.
        """
        self._insert_task("t")
        number, bystander = self._enqueue("t", "a", 0), self._enqueue("t", "a", 0)
        self._grant("h", limit=2)
        token = self._item(number).lease_token
        untouched = self._item(bystander)
        end = {"status": WorkStatus.COMPLETED, "retries": 0, "error": "", "now": 99}
        with self.store.transaction() as transaction:
            assert transaction.holds_lease(number, token, now=99)
            assert not transaction.holds_lease(number, token, now=100)
            assert not transaction.holds_lease(number, token + 7, now=99)
            assert not transaction.renew_lease(number, token, expires_at=200, now=100)
            assert not transaction.renew_lease(number, untouched.lease_token, expires_at=200, now=99)
            assert transaction.renew_lease(number, token, expires_at=200, now=99)
            assert not transaction.end_lease(number, untouched.lease_token, **end)  # type: ignore[arg-type]
            assert transaction.end_lease(number, token, **end)  # type: ignore[arg-type]
            assert not transaction.end_lease(number, token, **end)  # type: ignore[arg-type]
        ended = self._item(number)
        assert (ended.status, ended.lease_holder, ended.lease_expires_at) == (WorkStatus.COMPLETED, None, None)
        assert self._item(bystander) == untouched

    def test_leases_expire_by_compare_and_set(self) -> None:
        """Expired leases are found in order and by page.

        A lease is ended only with the token and the expiry that were read.
        """
        self._insert_task("t")
        numbers = [self._enqueue("t", "a", 0) for _ in range(4)]
        for expires_at in (90, 80, 90, 110):
            self._grant("h", expires_at=expires_at)
        with self.store.transaction() as transaction:
            found = transaction.expired_leases(now=90, after=(0, 0), limit=9)
            assert [item.work_item_id for item in found] == [numbers[1], numbers[0], numbers[2]]
            rest = transaction.expired_leases(now=90, after=(90, numbers[0]), limit=9)
            assert [item.work_item_id for item in rest] == [numbers[2]]
            assert transaction.expired_leases(now=90, after=(0, 0), limit=1) == found[:1]
            pending = WorkStatus.PENDING
            looks = [
                Expiry(numbers[1], found[0].lease_token, 80, pending, 1, "late"),
                Expiry(numbers[0], found[1].lease_token + 9, 90, pending, 1, "another token"),
                Expiry(numbers[2], found[2].lease_token, 89, pending, 1, "another expiry"),
            ]
            assert transaction.expire_leases(looks, now=95) == 1
        assert [self._item(number).status for number in numbers] == [
            WorkStatus.IN_PROGRESS,
            pending,
            WorkStatus.IN_PROGRESS,
            WorkStatus.IN_PROGRESS,
        ]
        swept = self._item(numbers[1])
        assert (swept.retries, swept.error, swept.lease_holder) == (1, "late", None)

    def test_many_rows_are_inserted_together_or_not_at_all(self) -> None:
        """Audit rows and checkpoints are inserted in bulk.

        One row of an unknown task refuses them all, and the error names the task.
        """
        self._insert_task("t")
        rows = [StoredCheckpoint("t", number, "x", b"0", _HASH, 7) for number in (1, 2, 3)]
        audits = [Audit("t", f"event {number}", None, None, "", 1) for number in range(3)]
        with self.store.transaction() as transaction:
            transaction.insert_checkpoints(rows)
            transaction.insert_audits(audits)
        assert self.store.checkpoints("t") == rows
        assert self.store.audits("t") == audits

        def insert() -> None:
            with self.store.transaction() as transaction:
                transaction.insert_audits([*audits, Audit("nobody", "event", None, None, "", 1)])

        assert "nobody" in str(raised(insert, UnknownTask))
        assert self.store.audits("t") == audits

    def test_a_row_is_found_by_its_values(self) -> None:
        """A row is found if all values match; None matches NULL.

        The name of a missing column is not taken for a text.
        """
        self._insert_task("t", tracker_key="A-1")
        self._insert_task("u")
        assert self.store.has_row("tasks", {"task_id": "t", "tracker_key": "A-1"}, timeout_s=10)
        assert self.store.has_row("tasks", {"task_id": "u", "tracker_key": None}, timeout_s=10)
        assert not self.store.has_row("tasks", {"task_id": "t", "tracker_key": None}, timeout_s=10)
        for table, column in (("tasks", "colour"), ("nothing", "task_id")):
            raised(lambda t=table, c=column: self.store.has_row(t, {c: c}, timeout_s=10), QueryRefused)  # type: ignore[misc]

    def test_rows_of_a_task_that_does_not_exist_are_refused(self) -> None:
        """A checkpoint or an audit row without its task raises UnknownTask and leaves nothing."""
        assert raised(lambda: self._append("nobody", b"0"), UnknownTask)
        assert raised(lambda: self._audit("nobody"), UnknownTask)
        assert self.store.checkpoints("nobody") == []
        assert self.store.audits("nobody") == []

    def test_a_block_that_raises_changes_nothing(self) -> None:
        """All writes of a transaction are undone together, and the next one works."""
        self._insert_task("t")

        def fail() -> None:
            with self.store.transaction() as transaction:
                transaction.insert_task(a_task("u"))
                transaction.insert_audit(Audit("t", "event", None, None, "", 1))
                transaction.insert_checkpoint(StoredCheckpoint("t", 1, "x", b"0", _HASH, 1))
                transaction.change_status("t", expected=TaskStatus.CREATED, status=TaskStatus.RUNNING, now=9)
                raise UndoneError

        assert raised(fail, UndoneError)
        assert self.store.tasks() == [a_task("t")]
        assert self.store.audits("t") == []
        assert self.store.checkpoints("t") == []
        assert self._append("t", b"0") == 1

    def test_a_transaction_sees_its_own_writes(self) -> None:
        """Inside the block, what it wrote is there; the number after an insert is the next one."""
        with self.store.transaction() as transaction:
            transaction.insert_task(a_task("t", tracker_key="A-1"))
            assert transaction.task("t") == transaction.task_with_tracker_key("A-1") == a_task("t", tracker_key="A-1")
            transaction.insert_checkpoint(StoredCheckpoint("t", 1, "x", b"0", _HASH, 1))
            assert transaction.next_checkpoint_number("t") == 2

    def test_others_see_nothing_before_the_commit(self) -> None:
        """A read while a transaction is open sees the state from before it."""
        self._insert_task("t")
        with self.store.transaction() as transaction:
            transaction.change_status("t", expected=TaskStatus.CREATED, status=TaskStatus.RUNNING, now=9)
            assert self.store.task("t") == a_task("t")
        assert self.store.task("t") != a_task("t")

    def test_what_was_committed_is_there_for_a_store_opened_later(self) -> None:
        """A store that is opened later finds everything: the store object keeps nothing."""
        self._insert_task("t")
        self._append("t", b"[1]")
        self.store.close()
        self.store = self.reopened()
        assert self.store.task("t") == a_task("t")
        assert [row.snapshot for row in self.store.checkpoints("t")] == [b"[1]"]

    def test_threads_take_different_numbers(self) -> None:
        """Eight threads on one store and one task: every number once, none left out."""
        self._insert_task("t")
        start = threading.Barrier(8)

        def work() -> list[int]:
            start.wait()
            return [self._append("t", b"0") for _ in range(10)]

        with ThreadPoolExecutor(8) as pool:
            numbers = [future.result() for future in [pool.submit(work) for _ in range(8)]]
        assert sorted(number for taken in numbers for number in taken) == list(range(1, 81))
        assert all(taken == sorted(taken) for taken in numbers)

    def test_a_block_that_raises_among_threads_undoes_nobody_else(self) -> None:
        """Each block is all or nothing by itself, in whatever group the store commits it."""
        self._insert_task("t")

        def write(number: int) -> None:
            with self.store.transaction() as transaction:
                transaction.insert_audit(Audit("t", f"event {number}", None, None, "", 1))
                if number % 3 == 0:
                    raise UndoneError

        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(write, number) for number in range(120)]
        wanted = {f"event {number}" for number in range(120) if number % 3}
        assert sum(call.exception() is None for call in calls) == len(wanted)
        assert {audit.event for audit in self.store.audits("t")} == wanted

    def test_of_many_rivals_one_changes_the_status(self) -> None:
        """Eight threads that expect the same status: one of them wins."""
        self._insert_task("t")
        start = threading.Barrier(8)

        def work() -> bool:
            start.wait()
            return self._change_status("t", TaskStatus.CREATED, TaskStatus.RUNNING)

        with ThreadPoolExecutor(8) as pool:
            wins = [future.result() for future in [pool.submit(work) for _ in range(8)]]
        assert sorted(wins) == [False] * 7 + [True]

    def test_a_closed_store_says_so(self) -> None:
        """After close, reads and writes raise StoreClosed, and closing again is fine."""
        was_closed = self.store.is_closed
        self.store.close()
        self.store.close()
        assert (was_closed, self.store.is_closed) == (False, True)
        assert raised(lambda: self.store.task("t"), StoreClosed)
        assert raised(lambda: self._insert_task("t"), StoreClosed)

    def test_a_place_names_the_database_and_opens_it_again(self) -> None:
        """All stores on one database have equal places.

        A store opened from a place sees what another store has written.
        """
        self._insert_task("t")
        place = self.store.place
        other = self.reopened()
        assert {place} == {other.place}
        other.close()
        again = place.reopened(1.0)
        assert again.task("t") == a_task("t")
        again.close()

    def test_it_tells_whether_a_transaction_could_begin(self) -> None:
        """A store tells whether a transaction could begin, and begins none."""
        assert self.store.can_write_now()
        self._insert_task("t")
        assert self.store.can_write_now()

    def _enqueue(self, task_id: str, type_: str, priority: int) -> int:
        with self.store.transaction() as transaction:
            item = transaction.insert_work_item(task_id=task_id, type=type_, priority=priority, max_retries=3, now=10)
        assert item == WorkItem(
            item.work_item_id, task_id, type_, priority, WorkStatus.PENDING, 0, 3, 0, None, None, None, "", 10, 10
        )
        return item.work_item_id

    def _grant(
        self,
        holder: str,
        *,
        type: str | None = None,  # noqa: A002 - the field's name
        task_id: str | None = None,
        limit: int = 1,
        expires_at: int = 100,
    ) -> list[int]:
        with self.store.transaction() as transaction:
            granted = transaction.grant_leases(
                holder=holder, type=type, task_id=task_id, limit=limit, expires_at=expires_at, now=50
            )
        assert {item.lease_holder for item in granted} <= {holder}
        return [item.work_item_id for item in granted]

    def _item(self, work_item_id: int) -> WorkItem:
        item = self.store.work_item(work_item_id)
        assert item is not None
        return item

    def _append(self, task_id: str, content: bytes) -> int:
        with self.store.transaction() as transaction:
            number = transaction.next_checkpoint_number(task_id)
            transaction.insert_checkpoint(StoredCheckpoint(task_id, number, "own type", content, _HASH, 7))
        return number

    def _audit(self, task_id: str) -> None:
        with self.store.transaction() as transaction:
            transaction.insert_audit(Audit(task_id, "event", None, None, "", 1))
