"""The promises about the sources of tasks, and about tasks that wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_agents.errors import UnknownTask
from durable_agents.store.conformance.base import PAGE, STRANGE_TEXTS, ConformanceBase, raised
from durable_agents.store.rows import JobStatus, OutboxEntry, OutboxKind, Task, TaskSource, TaskStatus, WaitingTask

if TYPE_CHECKING:
    from collections.abc import Iterable


class SourceConformance(ConformanceBase):
    """Sources and waiting tasks."""

    def test_a_store_without_sources_has_none(self) -> None:
        """Every read finds nothing and raises nothing; a source of an unknown task is refused."""
        assert self.store.source("t") is None
        assert self.store.tasks_of_branch("r", "b", limit=PAGE) == []
        assert self.store.tasks_of_commit("r", "c", limit=PAGE) == []
        assert self.store.tasks_of_repo("r", "s", limit=PAGE) == []
        assert self.store.waiting_tasks("s", entered_until=99, limit=PAGE) == []

        def insert() -> None:
            with self.store.transaction() as transaction:
                transaction.insert_source(TaskSource("nobody", "r", "b"))

        raised(insert, UnknownTask)

    def test_a_task_is_found_by_its_tracker_key(self) -> None:
        """A tracker key finds its task, even one that has ended.

        An unknown key finds nothing.
        """
        with self.store.transaction() as transaction:
            transaction.insert_task(Task("t", "A-1", TaskStatus.FAILED, "s", 1, 1, 1))
        assert self.store.task_with_tracker_key("A-1") == Task("t", "A-1", TaskStatus.FAILED, "s", 1, 1, 1)
        assert self.store.task_with_tracker_key("A-2") is None

    def test_a_source_is_recorded_once_and_found_by_its_names(self) -> None:
        """The names of a source may be any text, and the first source of a task stays.

        Other repositories and branches are not found.
        """
        for number, name in enumerate(STRANGE_TEXTS):
            self._open(f"t{number}", repo=f"r{name}", branch=name)
        for number, name in enumerate(STRANGE_TEXTS):
            assert self.store.source(f"t{number}") == TaskSource(f"t{number}", f"r{name}", name, "")
            assert self._ids(self.store.tasks_of_branch(f"r{name}", name, limit=PAGE)) == [f"t{number}"]
        assert self.store.tasks_of_branch(f"r{STRANGE_TEXTS[0]}", STRANGE_TEXTS[1], limit=PAGE) == []
        with self.store.transaction() as transaction:
            assert not transaction.insert_source(TaskSource("t0", "another", "another", "another"))
        assert self.store.source("t0") == TaskSource("t0", f"r{STRANGE_TEXTS[0]}", STRANGE_TEXTS[0], "")

    def test_a_commit_is_that_of_all_open_tasks_on_its_branch(self) -> None:
        """A new commit counts once, while it is the newest of its branch.

        An empty commit finds no branch.
        """
        for task_id, branch in (("t", "b"), ("u", "b"), ("v", "other")):
            self._open(task_id, branch=branch)
        assert self._set_sha("b", "c1") == 2
        assert self._set_sha("b", "c1") == 0
        assert self._set_sha("nothing", "c1") == 0
        assert self._ids(self.store.tasks_of_commit("r", "c1", limit=PAGE)) == ["t", "u"]
        assert self._ids(self.store.tasks_of_commit("r", "c1", limit=1)) == ["t"]
        assert self.store.tasks_of_commit("r", "", limit=PAGE) == []
        assert self.store.tasks_of_commit("another", "c1", limit=PAGE) == []
        self._cancel("t")
        assert self._set_sha("b", "c2") == 1
        assert self.store.tasks_of_commit("r", "c1", limit=PAGE) == []
        assert self._ids(self.store.tasks_of_commit("r", "c2", limit=PAGE)) == ["u"]

    def test_tasks_that_have_ended_are_not_found(self) -> None:
        """Ended tasks are found by no branch and no repository, and do not wait."""
        for task_id in ("t", "u"):
            self._open(task_id)
        self._cancel("t")
        assert self._ids(self.store.tasks_of_branch("r", "b", limit=PAGE)) == ["u"]
        assert self._ids(self.store.tasks_of_repo("r", "s", limit=PAGE)) == ["u"]
        assert self.store.tasks_of_repo("r", "another", limit=PAGE) == []
        assert self._ids(each.task for each in self.store.waiting_tasks("s", entered_until=99, limit=PAGE)) == ["u"]

    def test_tasks_wait_in_the_order_in_which_they_entered_the_stage(self) -> None:
        """Waiting tasks are ordered by their entry into the stage, then by id.

        Tasks of other stages, and those that entered later, are left out.
        """
        for task_id, entered_at in (("d", 5), ("a", 7), ("c", 5), ("b", 9)):
            self._open(task_id, entered_at=entered_at)
        self._open("other", stage="another")
        waiting = self.store.waiting_tasks("s", entered_until=8, limit=PAGE)
        assert self._ids(each.task for each in waiting) == ["c", "d", "a"]
        assert self._ids(each.task for each in self.store.waiting_tasks("s", entered_until=8, limit=2)) == ["c", "d"]
        behind = self.store.waiting_tasks("s", entered_until=8, after=(5, "c"), limit=PAGE)
        assert self._ids(each.task for each in behind) == ["d", "a"]

    def test_a_task_with_a_job_under_way_does_not_wait(self) -> None:
        """A task with a queued or running job does not wait.

        Ended jobs do not count. A task without a source waits, too.
        """
        self._open("t")
        with self.store.transaction() as transaction:
            transaction.insert_task(Task("lone", None, TaskStatus.RUNNING, "s", 2, 2, 2))
            transaction.insert_job(agent="a", repo="r", task_id="t", max_attempts=1, now=1)
        lone = WaitingTask(Task("lone", None, TaskStatus.RUNNING, "s", 2, 2, 2), "")
        assert self.store.waiting_tasks("s", entered_until=99, limit=PAGE) == [lone]
        with self.store.transaction() as transaction:
            job = transaction.claim_job(None, monitor_pid=1, monitor_start=None, now=1)
        assert job is not None
        assert self.store.waiting_tasks("s", entered_until=99, limit=PAGE) == [lone]
        with self.store.transaction() as transaction:
            transaction.end_claim(job.job_id, job.claim, status=JobStatus.FAILED, error="", now=1)
        waiting = self.store.waiting_tasks("s", entered_until=99, limit=PAGE)
        assert [(each.task.task_id, each.repo) for each in waiting] == [("t", "r"), ("lone", "")]

    def test_a_task_whose_advance_is_decided_does_not_wait(self) -> None:
        """A task whose advance is in the outbox does not wait.

        Its job has ended. An alert about a job is no advance.
        """
        for task_id, kind in (("t", OutboxKind.ADVANCE), ("u", OutboxKind.ALERT)):
            self._open(task_id)
            with self.store.transaction() as transaction:
                job = transaction.insert_job(agent="a", repo="r", task_id=task_id, max_attempts=1, now=1)
                assert transaction.claim_job(None, monitor_pid=1, monitor_start=None, now=1) is not None
                assert transaction.end_claim(job.job_id, 1, status=JobStatus.DONE, error="", now=1)
                entry = OutboxEntry(0, kind, job.job_id, 1, "a", "r", task_id, "s", 1, "", 0, None, 1)
                transaction.insert_outbox(entry)
        assert self._ids(each.task for each in self.store.waiting_tasks("s", entered_until=99, limit=PAGE)) == ["u"]

    def _open(self, task_id: str, *, repo: str = "r", branch: str = "b", stage: str = "s", entered_at: int = 1) -> None:
        with self.store.transaction() as transaction:
            transaction.insert_task(Task(task_id, None, TaskStatus.CREATED, stage, entered_at, 1, 1))
            assert transaction.insert_source(TaskSource(task_id, repo, branch))

    def _cancel(self, task_id: str) -> None:
        assert self._change_status(task_id, TaskStatus.CREATED, TaskStatus.CANCELLED)

    def _set_sha(self, branch: str, sha: str) -> int:
        with self.store.transaction() as transaction:
            return transaction.set_sha("r", branch, sha)

    @staticmethod
    def _ids(tasks: Iterable[Task]) -> list[str]:
        return [task.task_id for task in tasks]
