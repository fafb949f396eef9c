"""The promises about jobs, runs, dead ticks, the outbox and stages."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec

from durable_agents.errors import UnknownTask
from durable_agents.store.conformance.base import PAGE, ConformanceBase, raised
from durable_agents.store.rows import (
    AgentRun,
    DeadTicks,
    Job,
    JobStatus,
    OutboxEntry,
    OutboxKind,
    RunningJob,
    Task,
    TaskStatus,
)


class JobConformance(ConformanceBase):
    """Jobs, runs, dead ticks, the outbox and stages."""

    def test_a_store_without_jobs_has_none(self) -> None:
        """Every read finds nothing and raises nothing."""
        assert self.store.job(1) is None
        assert self.store.running_jobs("r", limit=PAGE) == []
        assert self.store.active_jobs("t") == []
        assert self.store.runs(1) == []
        assert self.store.outbox(OutboxKind.ADVANCE, limit=PAGE) == []
        with self.store.transaction() as transaction:
            assert transaction.job(1) is None
            assert transaction.claim_job(None, monitor_pid=1, monitor_start=None, now=1) is None

    def test_a_job_comes_back_as_it_was_put_in(self) -> None:
        """All fields of a job survive, with any text.

        A job without a task has None for it. A job of an unknown task is refused.
        """
        job = self._insert_job(agent="агент 'x'", task_id="t")
        nothing = (None, None, None, None, None, None)
        assert job == Job(job.job_id, "агент 'x'", "repo", "t", JobStatus.QUEUED, 0, 2, 0, *nothing, "", 10, 10)
        assert self.store.job(job.job_id) == job
        assert self._insert_job(agent="a", task_id=None).task_id is None
        raised(lambda: self._insert_job_of("nobody"), UnknownTask)

    def test_jobs_are_claimed_oldest_first_and_once(self) -> None:
        """A claim takes the oldest job, of all agents or of those given.

        It counts an attempt, raises the claim's number and begins a run.
        """
        first, second, third = (self._insert_job(agent=agent).job_id for agent in ("a", "b", "a"))
        assert [self._claim(("b", "c")), self._claim(), self._claim(("a",)), self._claim()] == [
            second,
            first,
            third,
            None,
        ]
        job = self._job(first)
        assert (job.status, job.attempts, job.claim, job.started_at) == (JobStatus.RUNNING, 1, 1, 20)
        assert (job.monitor_pid, job.monitor_start, job.pid) == (7, "m", None)
        assert job.run_id is not None
        assert self.store.runs(first) == [AgentRun(job.run_id, first, 1, None, "a", 20, None, None)]

    def test_a_job_of_a_cancelled_task_is_not_begun(self) -> None:
        """A job whose task was cancelled fails at its turn, without a run, and says why.

        The next job is claimed, and other jobs stay as they are.
        """
        late = self._insert_job(task_id="t").job_id
        with self.store.transaction() as transaction:
            transaction.insert_task(Task("u", None, TaskStatus.CREATED, "", 1, 1, 1))
            bystander = transaction.insert_job(agent="a", repo="", task_id="u", max_attempts=2, now=10).job_id
            alone = transaction.insert_job(agent="a", repo="", task_id=None, max_attempts=2, now=10).job_id
            assert transaction.change_status("t", expected=TaskStatus.CREATED, status=TaskStatus.CANCELLED, now=15)
        assert [self._claim(), self._claim(), self._claim()] == [bystander, alone, None]
        job = self._job(late)
        assert (job.status, job.attempts, job.claim, job.updated_at) == (JobStatus.FAILED, 0, 0, 20)
        assert "cancelled" in job.error
        assert self.store.runs(late) == []
        (audit,) = self.store.audits("t", limit=PAGE)
        assert (audit.event, audit.before, audit.after) == ("job_ended", "queued", "failed")

    def test_a_running_job_changes_under_its_claim_only(self) -> None:
        """Executor, exit code, fence and end need the newest claim of a running job.

        An exit code is recorded once.
        """
        number, bystander = self._insert_job().job_id, self._insert_job().job_id
        self._claim()
        self._claim()
        untouched = self._job(bystander)
        with self.store.transaction() as transaction:
            for claim in (0, 2):
                assert not transaction.holds_job(number, claim)
                assert not transaction.set_executor(number, claim, pid=5, process_start="s", now=30)
                assert not transaction.record_exit(number, claim, exit_code=0, now=30)
                assert not transaction.fence_job(number, claim, now=30)
                assert not transaction.end_claim(number, claim, status=JobStatus.DONE, error="", now=30)
            assert transaction.holds_job(number, 1)
            assert transaction.set_executor(number, 1, pid=5, process_start="s", now=30)
            assert transaction.record_exit(number, 1, exit_code=-9, now=31)
            assert not transaction.record_exit(number, 1, exit_code=0, now=32)
            assert transaction.fence_job(number, 1, now=33)
            assert not transaction.end_claim(number, 1, status=JobStatus.DONE, error="", now=34)
            assert transaction.end_claim(number, 2, status=JobStatus.QUEUED, error="again", now=35)
            assert not transaction.end_claim(number, 2, status=JobStatus.DONE, error="", now=36)
            assert not transaction.holds_job(number, 2)
        job = self._job(number)
        assert (job.status, job.error, job.pid, job.process_start) == (JobStatus.QUEUED, "again", 5, "s")
        assert [(run.exit_code, run.finished_at) for run in self.store.runs(number)] == [(-9, 31)]
        assert self._job(bystander) == untouched
        assert self._claim() == number
        assert (self._job(number).attempts, self._job(number).claim, self._job(number).pid) == (2, 3, None)
        assert [run.claim for run in self.store.runs(number)] == [1, 3]

    def test_running_jobs_are_listed_with_their_run_and_this_reapers_count(self) -> None:
        """Running jobs come in order and by page, with the dead ticks of one reaper.

        Dead ticks belong to one claim, and need a running job.
        """
        numbers = [self._insert_job().job_id for _ in range(3)]
        for _ in numbers:
            self._claim()
        with self.store.transaction() as transaction:
            transaction.record_exit(numbers[1], 1, exit_code=3, now=40)
            transaction.set_dead_ticks("r", [DeadTicks(numbers[0], 1, 2), DeadTicks(numbers[2], 9, 4)])
            transaction.set_dead_ticks("other", [DeadTicks(numbers[0], 1, 7)])
        listed = self.store.running_jobs("r", limit=PAGE)
        first = RunningJob(numbers[0], "a", "repo", None, 1, 2, 1, None, None, 7, "m", 20, None, None, 2, 1)
        assert listed[0] == first
        assert [(job.job_id, job.exit_code, job.finished_at, job.dead_ticks) for job in listed] == [
            (numbers[0], None, None, 2),
            (numbers[1], 3, 40, 0),
            (numbers[2], None, None, 0),
        ]
        assert self.store.running_jobs("r", after=numbers[0], limit=1) == listed[1:2]
        with self.store.transaction() as transaction:
            transaction.set_dead_ticks("r", [DeadTicks(numbers[0], 1, 0)])
        assert [job.dead_ticks for job in self.store.running_jobs("r", limit=1)] == [0]
        with self.store.transaction() as transaction:
            transaction.end_claim(numbers[0], 1, status=JobStatus.QUEUED, error="", now=50)
        self._claim()
        assert [job.dead_ticks for job in self.store.running_jobs("other", limit=1)] == [0]

    def test_a_running_job_that_was_fenced_off_is_listed_so(self) -> None:
        """A fenced job keeps the run of the claim before; the next claim has a run of its own."""
        number = self._insert_job().job_id
        self._claim()
        assert [job.is_fenced for job in self.store.running_jobs("r", limit=PAGE)] == [False]
        with self.store.transaction() as transaction:
            assert transaction.fence_job(number, 1, now=30)
        (job,) = self.store.running_jobs("r", limit=PAGE)
        assert (job.run_claim, job.claim, job.is_fenced) == (1, 2, True)
        with self.store.transaction() as transaction:
            transaction.end_claim(number, 2, status=JobStatus.QUEUED, error="", now=40)
        self._claim()
        (job,) = self.store.running_jobs("r", limit=PAGE)
        assert (job.run_claim, job.claim, job.is_fenced) == (3, 3, False)

    def test_active_jobs_are_those_of_a_task_that_have_not_ended(self) -> None:
        """Active jobs are the queued and running ones of this task, oldest first."""
        first, second, third = (self._insert_job(task_id="t").job_id for _ in range(3))
        self._insert_job(task_id="u")
        self._claim()
        self._claim()
        with self.store.transaction() as transaction:
            transaction.end_claim(first, 1, status=JobStatus.FAILED, error="", now=50)
        assert [(job.job_id, job.status) for job in self.store.active_jobs("t")] == [
            (second, JobStatus.RUNNING),
            (third, JobStatus.QUEUED),
        ]
        assert self.store.active_job_counts() == {JobStatus.QUEUED: 2, JobStatus.RUNNING: 1}

    def test_the_outbox_keeps_what_is_to_be_done_until_it_is(self) -> None:
        """Outbox entries of a kind come in order and by page.

        An entry is taken by compare-and-set, and deleted once.
        """
        number = self._insert_job(task_id="t").job_id
        with self.store.transaction() as transaction:
            alert, later, _ = (
                transaction.insert_outbox(self._entry(number, claim, kind))
                for claim, kind in ((1, OutboxKind.ALERT), (2, OutboxKind.ALERT), (1, OutboxKind.ADVANCE))
            )
        first = self.store.outbox(OutboxKind.ALERT, limit=PAGE)[0]
        with self.store.transaction() as transaction:
            assert transaction.take_outbox(first, expected=None, taken_by="me")
            assert not transaction.take_outbox(first, expected=None, taken_by="you")
        alerts = self.store.outbox(OutboxKind.ALERT, limit=PAGE)
        assert [(entry.outbox_id, entry.claim, entry.tries, entry.taken_by) for entry in alerts] == [
            (alert, 1, 1, "me"),
            (later, 2, 0, None),
        ]
        (entry,) = self.store.outbox(OutboxKind.ADVANCE, limit=PAGE)
        expected = self._entry(number, 1, OutboxKind.ADVANCE)
        assert entry == msgspec.structs.replace(expected, outbox_id=entry.outbox_id)
        assert self.store.outbox(OutboxKind.ALERT, after=alert, limit=1) == alerts[1:]
        with self.store.transaction() as transaction:
            assert transaction.take_outbox(first, expected="me", taken_by=None)
            assert transaction.delete_outbox(first)
            assert not transaction.delete_outbox(first)
            assert transaction.delete_outbox(entry)
        assert [entry.outbox_id for entry in self.store.outbox(OutboxKind.ALERT, limit=PAGE)] == [later]

    def test_an_entry_that_was_read_is_never_taken_for_a_later_one(self) -> None:
        """A late sender of an old outbox entry removes nothing of a new entry with its number."""
        number = self._insert_job(task_id="t").job_id
        old = self._outboxed(self._entry(number, 1, OutboxKind.ALERT))
        with self.store.transaction() as transaction:
            assert transaction.delete_outbox(old)
        new = self._outboxed(self._entry(number, 2, OutboxKind.ALERT))
        with self.store.transaction() as transaction:
            late = msgspec.structs.replace(old, outbox_id=new.outbox_id)
            assert not transaction.take_outbox(late, expected=None, taken_by="late")
            assert not transaction.delete_outbox(late)
        assert self.store.outbox(OutboxKind.ALERT, limit=PAGE) == [new]

    def test_a_stage_changes_only_from_the_one_that_was_entered(self) -> None:
        """A stage changes by compare-and-set on the stage and the moment of its entry.

        Other tasks stay as they are.
        """
        for task_id in ("t", "u"):
            self._insert_task(task_id, stage="a")
        with self.store.transaction() as transaction:
            assert not transaction.change_stage("t", expected="b", entered_at=1, stage="c", now=9)
            assert not transaction.change_stage("t", expected="a", entered_at=2, stage="c", now=9)
            assert not transaction.change_stage("nobody", expected="a", entered_at=1, stage="c", now=9)
            assert transaction.change_stage("t", expected="a", entered_at=1, stage="c", now=9)
        assert self.store.task("t") == Task("t", None, TaskStatus.CREATED, "c", 9, 1, 9)
        assert self.store.task("u") == Task("u", None, TaskStatus.CREATED, "a", 1, 1, 1)

    def test_of_many_rivals_each_job_goes_to_one(self) -> None:
        """Of eight threads, one claims each job, and one ends each claim."""
        numbers = [self._insert_job().job_id for _ in range(40)]
        start = threading.Barrier(8)

        def claim() -> list[int]:
            start.wait()
            return [number for number in iter(self._claim, None) if number is not None]

        def end() -> int:
            start.wait()
            return sum(self._end(number) for number in numbers)

        with ThreadPoolExecutor(8) as pool:
            claimed = [number for future in [pool.submit(claim) for _ in range(8)] for number in future.result()]
        assert sorted(claimed) == numbers
        with ThreadPoolExecutor(8) as pool:
            assert sum(future.result() for future in [pool.submit(end) for _ in range(8)]) == len(numbers)

    def _insert_job(self, *, agent: str = "a", task_id: str | None = None) -> Job:
        with self.store.transaction() as transaction:
            if task_id is not None and transaction.task(task_id) is None:
                transaction.insert_task(Task(task_id, None, TaskStatus.CREATED, "a", 1, 1, 1))
            return transaction.insert_job(agent=agent, repo="repo", task_id=task_id, max_attempts=2, now=10)

    def _insert_job_of(self, task_id: str) -> None:
        with self.store.transaction() as transaction:
            transaction.insert_job(agent="a", repo="", task_id=task_id, max_attempts=1, now=1)

    def _outboxed(self, entry: OutboxEntry) -> OutboxEntry:
        with self.store.transaction() as transaction:
            number = transaction.insert_outbox(entry)
        return msgspec.structs.replace(entry, outbox_id=number)

    def _claim(self, agents: tuple[str, ...] | None = None) -> int | None:
        with self.store.transaction() as transaction:
            job = transaction.claim_job(agents, monitor_pid=7, monitor_start="m", now=20)
        return None if job is None else job.job_id

    def _end(self, job_id: int) -> bool:
        with self.store.transaction() as transaction:
            return transaction.end_claim(job_id, 1, status=JobStatus.DONE, error="", now=60)

    def _job(self, job_id: int) -> Job:
        job = self.store.job(job_id)
        assert job is not None
        return job

    @staticmethod
    def _entry(job_id: int, claim: int, kind: OutboxKind) -> OutboxEntry:
        return OutboxEntry(0, kind, job_id, claim, "a", "repo", "t", "стадия", 3, "текст", 0, None, 5)
