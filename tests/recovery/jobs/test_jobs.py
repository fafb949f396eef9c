"""The job queue: claims, the fence, exit codes, and the end of a job with what follows from it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents import JobClaim, JobCrashPoint, JobQueue, JobStatus, ManualClock, TaskManager
from durable_agents.errors import InvalidJob, InvalidSetting, JobLost, UnknownJob, UnknownTask
from durable_agents.jobs.queue import JobOutcome, require
from durable_agents.store.rows import Job, OutboxKind
from durable_agents.store.sqlite import jobs as sqlite_jobs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(name="queue")
def _queue(tmp_path: Path) -> Iterator[JobQueue]:
    with JobQueue(db_path=tmp_path / "store.db", clock=ManualClock()) as queue:
        TaskManager(queue.store).create("t", stage="build")
        yield queue


def claimed(queue: JobQueue, **keywords: Any) -> Job:
    """Return a job that is claimed."""
    queue.enqueue("builder", "repo", **keywords)
    job = queue.claim()
    assert job is not None
    return job


def claim_of(job: Job) -> JobClaim:
    """Return the claim of a job as it was read."""
    return JobClaim(job.job_id, job.claim)


def outcome(job: Job, status: JobStatus = JobStatus.DONE, **others: Any) -> JobOutcome:
    """Return an end of this claim."""
    return JobOutcome(
        job_id=job.job_id,
        claim=job.claim,
        agent=job.agent,
        repo=job.repo,
        task_id=job.task_id,
        status=status,
        **others,
    )


def test_a_job_goes_from_queued_to_done(queue: JobQueue) -> None:
    """Each step is in the row, and the run has its exit code."""
    queued = queue.enqueue("builder", "repo", task_id="t", max_attempts=3)
    assert (queued.status, queued.attempts, queued.max_attempts) == (JobStatus.QUEUED, 0, 3)
    job = queue.claim(agents=["builder"])
    assert job is not None
    assert (job.job_id, job.status, job.attempts, job.claim) == (queued.job_id, JobStatus.RUNNING, 1, 1)
    with subprocess.Popen(["sleep", "60"]) as process:
        queue.started(claim_of(job), process.pid)
        process.kill()
    queue.record_exit(claim_of(job), 0)
    queue.settle(outcome(job))
    done = queue.get(job.job_id)
    assert (done.status, done.pid) == (JobStatus.DONE, process.pid)
    assert done.process_start
    assert [(run.claim, run.exit_code) for run in queue.runs(job.job_id)] == [(1, 0)]
    assert queue.claim() is None


def test_the_end_of_a_job_is_one_transaction(queue: JobQueue) -> None:
    """Status, audit row, intended advance and alert are there together;
    without a claim none of them is.
    """
    job = claimed(queue, task_id="t")
    end = outcome(job, JobStatus.FAILED, error="why", leaves="build", entered_at=5, alert="told")
    queue.settle(end)
    assert (queue.get(job.job_id).status, queue.get(job.job_id).error) == (JobStatus.FAILED, "why")
    (advance,) = queue.store.outbox(OutboxKind.ADVANCE, limit=9)
    (alert,) = queue.store.outbox(OutboxKind.ALERT, limit=9)
    assert (advance.task_id, advance.stage, advance.entered_at, advance.repo) == ("t", "build", 5, "repo")
    assert (alert.text, alert.claim) == ("told", 1)
    assert queue.store.audits("t")[-1].detail == f"job {job.job_id} of builder, claim 1: why"
    with pytest.raises(JobLost):
        queue.settle(end)
    assert len(queue.store.audits("t")) == 2
    assert len(queue.store.outbox(OutboxKind.ALERT, limit=9)) == 1


def test_a_stale_claim_is_refused_everywhere(queue: JobQueue) -> None:
    """Who lost a job changes nothing any more, whatever he tries, and is told who has it."""
    stale = claimed(queue, task_id="t", max_attempts=5)
    queue.settle(outcome(stale, JobStatus.QUEUED))
    owner = queue.claim()
    assert owner is not None
    before = queue.get(stale.job_id)
    said = f"Job {stale.job_id} with claim 1 must be held; got running, with claim 2"
    with pytest.raises(JobLost, match=said):
        queue.started(claim_of(stale), 1)
    with pytest.raises(JobLost, match=said):
        queue.record_exit(claim_of(stale), 0)
    with pytest.raises(JobLost, match=said):
        queue.settle(outcome(stale))
    with pytest.raises(JobLost, match=said):
        queue.check(claim_of(stale))
    with queue.store.transaction() as transaction, pytest.raises(JobLost, match=said):
        require(transaction, claim_of(stale))
    assert queue.get(stale.job_id) == before
    queue.check(claim_of(owner))
    with queue.store.transaction() as transaction:
        require(transaction, claim_of(owner))


def test_an_exit_code_is_recorded_once(queue: JobQueue) -> None:
    """The first one stands; the second recorder is told."""
    job = claimed(queue)
    queue.record_exit(claim_of(job), 3)
    with pytest.raises(JobLost, match="has an exit code already"):
        queue.record_exit(claim_of(job), 0)
    assert [run.exit_code for run in queue.runs(job.job_id)] == [3]


@pytest.mark.parametrize("exit_code", [256, -65, 2**40, 1.0, None, True, "0"])
def test_an_exit_code_that_is_none_is_refused(queue: JobQueue, exit_code: Any) -> None:
    """Nothing is recorded, and the job goes on as it was."""
    job = claimed(queue)
    with pytest.raises(InvalidJob, match="exit code from 0 to 255"):
        queue.record_exit(claim_of(job), exit_code)
    assert [run.exit_code for run in queue.runs(job.job_id)] == [None]
    assert queue.get(job.job_id) == job


@pytest.mark.parametrize("pid", [0, -1, 2**31, True, None])
def test_a_pid_that_is_none_is_refused(queue: JobQueue, pid: Any) -> None:
    """Pid 0 would be our own process group."""
    job = claimed(queue)
    with pytest.raises(InvalidJob, match="number of a process"):
        queue.started(claim_of(job), pid)
    assert queue.get(job.job_id).pid is None


@pytest.mark.parametrize(
    ("agent", "keywords"),
    [
        ("", {}),
        ("a\0b", {}),
        ("\ud800", {}),
        (None, {}),
        ("a", {"max_attempts": 0}),
        ("a", {"max_attempts": True}),
        ("a", {"max_attempts": 1.5}),
        ("a", {"repo": "\0"}),
    ],
)
def test_a_job_that_cannot_be_meant_is_refused(queue: JobQueue, agent: Any, keywords: dict[str, Any]) -> None:
    """No agent, no attempts, and text that a column cannot hold."""
    with pytest.raises(InvalidJob):
        queue.enqueue(agent, **keywords)
    assert queue.claim() is None


def test_unknown_jobs_and_tasks_are_errors(queue: JobQueue) -> None:
    """They are told apart from jobs that were lost."""
    for call in (queue.get, queue.runs, lambda number: queue.check(JobClaim(number, 1))):
        with pytest.raises((UnknownJob, JobLost), match="99"):
            call(99)
    with pytest.raises(UnknownJob):
        queue.settle(JobOutcome(job_id=99, claim=1, agent="a", repo="", task_id=None, status=JobStatus.DONE))
    with pytest.raises(UnknownTask):
        queue.enqueue("a", task_id="nobody")
    with pytest.raises(InvalidSetting):
        JobQueue()


def test_a_job_is_reaped_by_hand_only_while_it_runs(queue: JobQueue) -> None:
    """The answer is False for a queued job, an ended one, and none at all."""
    queued = queue.enqueue("a")
    assert not queue.reap_running_job(queued.job_id, JobStatus.DONE)
    assert queue.get(queued.job_id).status is JobStatus.QUEUED
    job = queue.claim()
    assert job is not None
    assert queue.reap_running_job(job.job_id, JobStatus.FAILED, error="by hand")
    assert not queue.reap_running_job(job.job_id, JobStatus.QUEUED)
    assert (queue.get(job.job_id).status, queue.get(job.job_id).error) == (JobStatus.FAILED, "by hand")
    assert not queue.reap_running_job(99, JobStatus.DONE)


@pytest.mark.parametrize("status", [JobStatus.RUNNING, "weird"])
def test_a_job_is_not_reaped_to_what_is_no_end(queue: JobQueue, status: Any) -> None:
    """The mistake is told, and the job runs on."""
    queue.enqueue("a")
    job = queue.claim()
    assert job is not None
    with pytest.raises(InvalidJob, match="queued, done, failed; got"):
        queue.reap_running_job(job.job_id, status)
    assert queue.get(job.job_id) == job


@pytest.mark.parametrize("job_id", [2**70, -1, 0, "1", None])
def test_what_can_be_no_id_is_that_of_no_job(queue: JobQueue, job_id: Any) -> None:
    """Whatever is asked for, the answer is the same as for a number that no job has."""
    queue.enqueue("a")
    queue.claim()
    with pytest.raises(UnknownJob):
        queue.get(job_id)
    with pytest.raises(UnknownJob):
        queue.runs(job_id)
    assert not queue.reap_running_job(job_id, JobStatus.DONE)


def test_an_executor_finds_its_claim_in_its_environment() -> None:
    """What is put in comes out; a program that nobody started as one is told so."""
    claim = JobClaim(7, 3)
    assert JobClaim.from_environment(claim.environment()) == claim
    for environment in ({}, {"RECOVERY_JOB_ID": "7"}, {"RECOVERY_JOB_ID": "7", "RECOVERY_JOB_CLAIM": "x"}):
        with pytest.raises(InvalidJob, match="RECOVERY_JOB_CLAIM in the environment"):
            JobClaim.from_environment(environment)


_KILLED = """
import os, signal, sys
from durable_agents import JobClaim, JobQueue, JobStatus
from durable_agents.jobs.queue import JobOutcome
path, point = sys.argv[1:]
queue = JobQueue(db_path=path)
queue.enqueue("a", task_id="t")
def hook(event, arguments):
    if event == point:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
job = queue.claim()
queue.record_exit(JobClaim(job.job_id, job.claim), 0)
end = dict(agent="a", repo="", task_id="t", status=JobStatus.DONE, leaves="build", alert="x")
queue.settle(JobOutcome(job_id=job.job_id, claim=job.claim, **end))
"""


@pytest.mark.parametrize("point", JobCrashPoint.of("job"))
def test_a_kill_leaves_each_step_whole_or_not_there(queue: JobQueue, tmp_path: Path, point: str) -> None:
    """Up to a COMMIT there is nothing of a step, after it everything."""
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "store.db"), point]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    points = JobCrashPoint.of("job")
    place = points.index(JobCrashPoint(point))
    commits = (JobCrashPoint.JOB_AFTER_CLAIM, JobCrashPoint.JOB_AFTER_EXIT_CODE, JobCrashPoint.JOB_AFTER_SETTLE)
    is_claimed, is_recorded, is_settled = (place >= points.index(commit) for commit in commits)
    job = queue.get(1)
    status = JobStatus.DONE if is_settled else JobStatus.RUNNING if is_claimed else JobStatus.QUEUED
    assert (job.status, job.attempts, job.claim) == (status, is_claimed, is_claimed)
    assert [run.exit_code for run in queue.runs(1)] == ([0 if is_recorded else None] if is_claimed else [])
    for kind in OutboxKind:
        assert len(queue.store.outbox(kind, limit=9)) == is_settled


def test_the_declared_crash_points_are_those_that_are_passed(queue: JobQueue) -> None:
    """A job passes exactly the declared points, in order."""
    passed: list[str] = []
    listening = [True]

    def hook(event: str, _: object) -> None:
        if listening and event.startswith("recovery.job."):
            passed.append(event)

    sys.addaudithook(hook)
    job = claimed(queue)
    queue.record_exit(claim_of(job), 0)
    queue.settle(outcome(job))
    listening.clear()
    assert tuple(passed) == JobCrashPoint.of("job")


@pytest.mark.parametrize(
    ("statement", "parameters", "index"),
    [
        (sqlite_jobs.RUNNING, ("r", 0, 9), "jobs_running"),
        (sqlite_jobs.OLDEST, (), "jobs_queued"),
        (sqlite_jobs.OLDEST_OF_AGENT, ("a",), "jobs_queued_by_agent"),
        (sqlite_jobs.ACTIVE, ("t",), "jobs_active"),
        (sqlite_jobs.RUNS, (1,), "agent_runs_by_job"),
        (sqlite_jobs.OUTBOX, ("alert", 0, 9), "outbox_by_kind"),
    ],
)
def test_no_look_reads_jobs_that_have_ended(
    queue: JobQueue, statement: str, parameters: tuple[Any, ...], index: str
) -> None:
    """Each listing walks an index of what is under way, in order, and sorts nothing."""
    with closing(sqlite3.connect(queue.store.path)) as reader:  # type: ignore[attr-defined]
        plan = [str(row[3]) for row in reader.execute("EXPLAIN QUERY PLAN " + statement, parameters)]
    assert index in plan[0]
    assert all("PRIMARY KEY" in step for step in plan[1:])
    assert not any("TEMP B-TREE" in step for step in plan)
