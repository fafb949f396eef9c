"""Jobs, monitors, reapers and stages against the model of the scenarios:
any order of steps, crashes within, and rivals between.

The store is the real one, on a file. Processes are a table that the machine keeps: they are born,
stop, end, become zombies, and leave their number to others. Time is a clock that is moved, and set
back. A crash is an exception out of a named crash point; a rival acts between two transactions of a
reaper.

A look that nothing disturbed has to do exactly what the model says. One that was cut short, or met
a rival, may have done part of it, and nothing else. After every step: no claim ended twice, no
stage left twice, each entered stage with one job, no end without its intended advance. In the end
everything is healed, and every job ends within a few looks.

It is long because a world of processes, clocks, gates and rivals is of use as a whole only.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pytest
from durable_agents import (
    JobClaim,
    JobCrashPoint,
    JobQueue,
    JobReaper,
    ManualClock,
    Pipeline,
    ReaperSettings,
    Stage,
    StageEngine,
    TaskManager,
    Tick,
)
from durable_agents.errors import JobLost
from durable_agents.jobs import queue as outcomes
from durable_agents.processes import Liveness, ProcessLine, ProcessTable
from durable_agents.store import init_factory
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from scenarios.model.jobs import End, Job, Jobs, Way
from scenarios.model.states import Moment
from tests.planted.jobs import jobs as planted_jobs, reaper as planted_reapers, stages as planted_stages
from tests.recovery.crashes import CrashError, Crashes, Intruding, bounded, new_folder, rarely, require_failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents.store.rows import RunningJob

Result = TypeVar("Result")

PIPELINE = Pipeline(
    (
        Stage(name="build", next="check", gate="open", starts="builder", leavers=("builder",)),
        Stage(name="check", next="end", gate="open", starts="checker", leavers=("checker",)),
        Stage(name="end"),
    )
)
TASKS = ("t", "u")
AGENTS = ("builder", "checker")
FOLLOWING = {"build": "check", "check": "end"}
WAYS = {
    "build": Way("check", "builder", ("builder",)),
    "check": Way("end", "checker", ("checker",)),
    "end": Way(has_gate=False),
}
STAGE_ATTEMPTS = 9
GRACE, CEILING = 300_000_000, 3600_000_000
JOBS_MAX = 12
JOB_POINTS, REAPER_POINTS, STAGE_POINTS = (JobCrashPoint.of(name) for name in ("job", "reaper", "stage"))
CLAIM_POINTS, EXIT_POINTS, SETTLE_POINTS = JOB_POINTS[:3], JOB_POINTS[3:6], JOB_POINTS[6:]
FIRST_PID = 50_000_000  # larger than any number of a process of this machine


class World:
    """The processes: by number, when each was started, and its state."""

    def __init__(self) -> None:
        self.processes: dict[int, tuple[str, str]] = {}
        self.born = 0

    def start(self, pid: int | None = None) -> tuple[int, str]:
        """Start a process, under a number that is free or under a new one."""
        self.born += 1
        number = FIRST_PID + self.born if pid is None else pid
        self.processes[number] = (f"world:{self.born}", "S")
        return number, f"world:{self.born}"

    def set_state(self, process: tuple[int, str] | None, state: str) -> None:
        """Stop, continue or end a process, if it is there; "" removes it."""
        if process is not None and self.state(process):
            if state:
                self.processes[process[0]] = (process[1], state)
            else:
                del self.processes[process[0]]

    def state(self, process: tuple[int, str] | None) -> str:
        """Return the state of exactly this process, "" when it is gone."""
        start, state = self.processes.get(process[0], ("", "")) if process is not None else ("", "")
        return state if process is not None and start == process[1] else ""

    def lives(self, process: tuple[int, str] | None) -> bool:
        """Tell whether it could still do something."""
        return self.state(process) in {"S", "T"}

    def table(self) -> ProcessTable:
        """Return what a reaper would read."""
        return ProcessTable(ProcessLine(pid, start, state, pid) for pid, (start, state) in self.processes.items())


class WorldReaper(JobReaper):
    """A reaper that looks at, and ends, the processes of the world."""

    world: World

    def _processes(self) -> ProcessTable:
        return self.world.table()

    def _end_rest(self, job: RunningJob, errors: list[str]) -> bool:
        assert errors is not None
        if job.pid is not None and job.process_start:
            self.world.set_state((job.pid, job.process_start), "")
        return True


@dataclasses.dataclass
class Attempt:
    """One claim, as the monitor that has it believes."""

    job_id: int
    claim: int
    monitor: tuple[int, str]
    executor: tuple[int, str] | None = None
    ended_with: int | None = None
    has_recorded: bool = False


class WorldJobs(Jobs):
    """The model, whose executors and monitors are processes of the world."""

    def __init__(self, world: World) -> None:
        """Begin with the settings of the machine's parts."""
        super().__init__(
            WAYS, grace_s=GRACE / 1e6, ceiling_s=CEILING / 1e6, stage_grace_s=600.0, max_attempts=STAGE_ATTEMPTS
        )
        self.world = world
        self.processes: dict[tuple[int, str], tuple[int, str] | None] = {}

    def process(self, job: Job, whose: str) -> tuple[int, str] | None:
        """Return the executor or the monitor of a job's newest claim."""
        return self.processes.get((job.number, whose))

    def state_of(self, job: Job, whose: str) -> str:
        """Ask the world."""
        return {"S": "alive", "T": "stopped"}.get(self.world.state(self.process(job, whose)), "dead")


class JobsMachine(RuleBasedStateMachine):
    """Monitors, reapers and webhooks on one store."""

    queue_kind: ClassVar[type[JobQueue]] = JobQueue
    reaper_kind: ClassVar[type[JobReaper]] = JobReaper
    engine_kind: ClassVar[type[StageEngine]] = StageEngine

    def __init__(self) -> None:
        super().__init__()
        Crashes.install()
        self.folder = new_folder()
        self.store = Intruding(init_factory(Path(self.folder.name) / "store.db"))
        self.clock = ManualClock()
        self.world = World()
        self.is_green = True
        self.told: list[str] = []
        self.queue = self.queue_kind(self.store, clock=self.clock)
        gates = {"open": lambda _: self.is_green}
        self.engine = self.engine_kind(
            self.store, pipeline=PIPELINE, gates=gates, clock=self.clock, max_attempts=STAGE_ATTEMPTS
        )
        self.model = WorldJobs(self.world)
        self.attempts: list[Attempt] = []
        self.executors: dict[int, list[tuple[int, str]]] = {}
        self.reaper = self.new_reaper()

    def new_reaper(self) -> JobReaper:
        """Return a reaper that remembers nothing, as after a restart."""
        self.model.restart(self.moment)
        return self.reaper_of(self.reaper_kind)

    def reaper_of(self, kind: type[JobReaper]) -> JobReaper:
        """Return a reaper of this kind, in this world."""
        bases = (WorldReaper,) if kind is JobReaper else (kind, WorldReaper)
        worldly: type[JobReaper] = type("Reaper", bases, {"world": self.world})
        found = ReaperSettings(reaper_max_running_s=CEILING / 1e6)
        return worldly(self.queue, self.engine, settings=found, notifier=lambda alert: self.told.append(alert.key))

    def teardown(self) -> None:
        """Heal everything, see it come to an end, and remove the file."""
        Crashes.armed = None
        self.store.intruder = None
        try:
            if self.model.jobs:
                self.heal()
        finally:
            self.store.close()
            self.folder.cleanup()

    def heal(self) -> None:
        """Liveness: all processes gone, the gate green, nothing cut short:
        within three looks nothing runs.
        """
        self.world.processes.clear()
        self.attempts.clear()
        self.is_green = True
        for _ in range(3):
            self.clock.advance(GRACE / 1e6)
            self.look(None)
        running = [job for job in self.model.jobs.values() if job.status == "running"]
        assert running == []
        assert self.rows("SELECT * FROM outbox") == []
        self.no_claim_ends_twice()
        self.stages_are_left_one_after_the_other()
        self.failures_are_told_once()

    @initialize()
    def begin(self) -> None:
        """Begin with two tasks, and a builder's job of each."""
        for task in TASKS:
            TaskManager(self.store, clock=self.clock).create(task, stage="build")
            self.model.create(self.moment, task, "build")
            for max_attempts in (3, 2):
                self.enqueue("builder", task, max_attempts)

    @property
    def moment(self) -> Moment:
        """The moment, by both clocks."""
        return Moment(self.clock.now(), self.clock.monotonic())

    # What happens to the world.

    @rule(duration_s=st.sampled_from([1.0, 300.0, 300.0, 4000.0]))
    def time_passes(self, duration_s: float) -> None:
        """Let time pass."""
        self.clock.advance(duration_s)

    @rule(by_s=st.sampled_from([10, 100_000]))
    def the_clock_is_set_back(self, by_s: int) -> None:
        """Set the wall clock back; the monotonic one goes on."""
        self.clock.jump(self.clock.now() - by_s * 1_000_000)

    @rule()
    def the_gate_turns(self) -> None:
        """Turn the gate from green to red, or back."""
        self.is_green = not self.is_green

    @rule()
    def the_reaper_restarts(self) -> None:
        """Let a new one take its place."""
        self.reaper = self.new_reaper()

    @precondition(lambda self: self.attempts)
    @rule(which=st.integers(0, 9), whose=st.sampled_from(["monitor", "executor"]), state=st.sampled_from(["S", "T"]))
    def a_process_stops_or_goes_on(self, which: int, whose: str, state: str) -> None:
        """Stop or continue a living process."""
        process = getattr(self.attempt_of(which), whose)
        if self.world.lives(process):
            self.world.set_state(process, state)

    @precondition(lambda self: self.attempts)
    @rule(which=st.integers(0, 9), exit_code=st.sampled_from([0, 0, 0, 1, -9]))
    def an_executor_ends(self, which: int, exit_code: int) -> None:
        """End it: a zombie while its monitor lives, gone otherwise."""
        attempt = self.attempt_of(which)
        if self.world.lives(attempt.executor):
            attempt.ended_with = exit_code
            self.world.set_state(attempt.executor, "Z" if self.world.lives(attempt.monitor) else "")

    @precondition(lambda self: self.attempts)
    @rule(which=st.integers(0, 9))
    def a_monitor_dies(self, which: int) -> None:
        """Let it forget what it had; its zombie goes with it, its living executor stays."""
        attempt = self.attempt_of(which)
        self.forget(attempt)
        self.world.set_state(attempt.monitor, "")

    @rule(which=st.integers(0, 9))
    def a_number_is_used_again(self, which: int) -> None:
        """Give the number of an executor that is gone to another process."""
        gone = [each for known in self.executors.values() for each in known if each[0] not in self.world.processes]
        if gone:
            self.world.start(gone[which % len(gone)][0])

    # What monitors do.

    @rule(agent=st.sampled_from(AGENTS), task=st.sampled_from(TASKS), max_attempts=st.integers(1, 3))
    def enqueue(self, agent: str, task: str, max_attempts: int) -> None:
        """Add a job, up to a number of them."""
        if len(self.model.jobs) < JOBS_MAX:
            job = self.queue.enqueue(agent, task_id=task, max_attempts=max_attempts)
            assert self.model.enqueue(self.moment, agent, task, max_attempts) == {"job": job.job_id}

    @rule(crash=rarely(CLAIM_POINTS))
    def claim(self, crash: str | None) -> None:
        """Claim the oldest queued job; no earlier executor of it lives."""
        queued = [job for job in self.model.jobs.values() if job.status == "queued"]
        done = self.call(lambda: [self.queue.claim()], crash)
        if not queued:
            assert done in ([None], None)
            return
        if done is None and crash != CLAIM_POINTS[-1]:
            return
        claimed = self.model.claim(self.moment)
        if done is not None:
            assert done[0] is not None
            assert claimed == {"job": done[0].job_id, "claim": done[0].claim, "attempts": done[0].attempts}
        known, monitor = self.model.jobs[claimed["job"]], self.world.start()
        assert not any(self.world.lives(each) for each in self.executors.get(known.number, ())), "two executors"
        self.model.processes[known.number, "monitor"] = monitor
        self.model.processes[known.number, "executor"] = None
        self.store_monitor(known, monitor)
        if done is None:
            self.world.set_state(monitor, "")
        else:
            self.attempts.append(Attempt(known.number, known.claim, monitor))

    @precondition(lambda self: self.attempts)
    @rule(which=st.integers(0, 9))
    def start_executor(self, which: int) -> None:
        """Start an executor behind its gate, which opens if the claim is still held."""
        attempt = self.attempt_of(which)
        if attempt.executor is None and self.world.state(attempt.monitor) == "S":
            process = self.world.start()
            with self.store.transaction() as transaction:
                pid, start = process
                now = self.clock.now()
                is_held = transaction.set_executor(attempt.job_id, attempt.claim, pid=pid, process_start=start, now=now)
            assert is_held == self.holds(attempt)
            if is_held:
                attempt.executor = self.model.processes[attempt.job_id, "executor"] = process
                self.executors.setdefault(attempt.job_id, []).append(process)
            else:
                self.world.set_state(process, "")
                self.forget(attempt)

    @rule(
        steps=st.integers(2, 4),
        exit_code=st.sampled_from([0, 0, 0, 1]),
        then=st.sampled_from(["", "time passes", "it dies", "it dies and time passes", "it dies and time passes"]),
    )
    def work(self, steps: int, exit_code: int, then: str) -> None:
        """Let a monitor claim a job and see it so far through, without a crash:
        what the others then find.
        """
        known = len(self.attempts)
        self.claim(None)
        if len(self.attempts) > known:
            self.start_executor(known)
            if steps > 2:
                self.an_executor_ends(known, exit_code)
            if steps > 3:
                self.record_exit(known, None, only=self.attempts[known])
            if "dies" in then and len(self.attempts) > known:
                self.a_monitor_dies(known)
            if "time passes" in then:
                self.clock.advance(GRACE / 1e6)

    @precondition(lambda self: any(attempt.ended_with is not None for attempt in self.attempts))
    @rule(which=st.integers(0, 9), crash=rarely(EXIT_POINTS))
    def record_exit(self, which: int, crash: str | None, only: Attempt | None = None) -> None:
        """Record how an executor ended, or be told that the job is lost."""
        attempt = only or self.awake(which, lambda each: each.ended_with is not None and not each.has_recorded)
        if attempt is None or attempt.ended_with is None:
            return
        self.world.set_state(attempt.executor, "")
        code, held = attempt.ended_with, self.holds(attempt)
        done = self.call(lambda: self.told_lost(lambda: self.queue.record_exit(claim_of(attempt), code), held), crash)
        if held and (done is not None or crash == EXIT_POINTS[-1]):
            self.model.record_exit(self.moment, attempt.job_id, attempt.claim, code)
        attempt.has_recorded = True
        if done is None or not held:
            self.a_monitor_dies(self.attempts.index(attempt))

    @precondition(lambda self: any(attempt.has_recorded for attempt in self.attempts))
    @rule(which=st.integers(0, 9), crash=rarely(SETTLE_POINTS + STAGE_POINTS))
    def settle(self, which: int, crash: str | None) -> None:
        """End a job whose exit code is recorded, and do the advance,
        or be told that the job is lost.
        """
        attempt = self.awake(which, lambda each: each.has_recorded)
        if attempt is None:
            return
        known, held = self.model.jobs[attempt.job_id], self.holds(attempt)
        self.look_at_stages()
        end = self.model.end_of_exit(known)
        job = self.queue.get(attempt.job_id)
        code = attempt.ended_with or 0

        def do() -> list[object]:
            self.told_lost(
                lambda: self.queue.settle(outcomes.of_exit(job, code, self.engine, claim=attempt.claim)), held
            )
            return [self.engine.deliver()]

        done = self.call(do, crash)
        self.adopt({known.number: end} if held else {}, is_whole=done is not None)
        self.forget(attempt)
        self.world.set_state(attempt.monitor, "")

    @rule(task=st.sampled_from(TASKS), crash=rarely(STAGE_POINTS))
    def webhook(self, task: str, crash: str | None) -> None:
        """Advance a task from where it is, if its gate is green."""
        before = self.stage(task)
        if before == "end":
            return
        done = self.call(lambda: [self.engine.advance_stage(task, before, finished_agent=None).is_moved], crash)
        assert done in ([self.is_green], None)
        is_moved = done == [True] or (done is None and crash == STAGE_POINTS[-1])
        assert self.stage(task) == (FOLLOWING[before] if is_moved else before)
        self.learn_jobs()

    # What reapers do.

    @rule(crash=rarely(REAPER_POINTS + STAGE_POINTS))
    def look(self, crash: str | None) -> None:
        """Look once: exactly as the model says, or part of it after a crash."""
        self.deliver_first(crash)
        ends, ticks = self.predicted()
        done = self.call(lambda: [self.reaper.run_once()], crash)
        self.adopt(ends, is_whole=done is not None, ticks=ticks)
        if done is not None:
            self.agree(done[0], ends)
        else:
            self.the_reaper_restarts()

    @rule()
    def look_undisturbed(self) -> None:
        """Look once, without a crash."""
        self.look(None)

    @rule(crash=st.sampled_from([*REAPER_POINTS[-4:-1], STAGE_POINTS[0]]))
    def look_and_die(self, crash: str) -> None:
        """Look, and die about a claim, or between it and the advance."""
        self.look(crash)

    @rule(act=st.sampled_from(["webhook", "webhook", "reaper", "settle"]), at=st.integers(1, 3))
    def look_while_another_acts(self, act: str, at: int) -> None:
        """Look, and let a rival act between two transactions;
        what both did is part of what either might.
        """
        self.deliver_first(None)
        ends, ticks = self.predicted()
        acted: list[str] = []

        def rival() -> None:
            acted.append(act)
            self.rivals()[act]()

        self.store.passed, self.store.intruder = at - 1, rival
        self.reaper.run_once()
        self.store.intruder = None
        if acted and act != "webhook":
            for known in self.model.jobs.values():
                if known.status == "running" and known.number not in ends:
                    ends[known.number] = self.model.end_of_exit(known) if known.exit_code is not None else End("any")
        self.adopt(ends, is_whole=False, ticks=ticks, is_rivalled=bool(acted))

    def rivals(self) -> dict[str, Callable[[], object]]:
        """Return what may act beside a reaper."""

        def webhook() -> None:
            for task in TASKS:
                if self.stage(task) != "end":
                    self.engine.advance_stage(task, self.stage(task), finished_agent=None)

        def reaper() -> None:
            self.reaper_of(JobReaper).run_once()

        def settle() -> None:
            for attempt in self.attempts:
                if attempt.has_recorded and self.world.state(attempt.monitor) == "S":
                    self.told_lost(self.settling(attempt), None)

        return {"webhook": webhook, "reaper": reaper, "settle": settle}

    def settling(self, attempt: Attempt) -> Callable[[], object]:
        """Return the end of an attempt by its monitor."""
        job, code = self.queue.get(attempt.job_id), attempt.ended_with or 0
        return lambda: self.queue.settle(outcomes.of_exit(job, code, self.engine, claim=attempt.claim))

    # The model.

    def deliver_first(self, crash: str | None) -> None:
        """Do what an earlier crash left, so that a look begins with an empty outbox;
        or leave it to one that dies.
        """
        if crash is None:
            self.engine.deliver()
            self.learn_jobs()

    def predicted(self) -> tuple[dict[int, End], dict[int, int]]:
        """Return what a look makes of which running job, and the dead ticks of all of them."""
        self.look_at_stages()
        found = self.model.judged(self.moment)
        ends = {number: end for number, (end, _) in found.items() if end is not None}
        return ends, {number: ticks for number, (_, ticks) in found.items()}

    def look_at_stages(self) -> None:
        """Let the model know where tasks are, and whether the gate is green."""
        self.model.is_green = self.is_green
        for task, place in self.model.places.items():
            place.stage = self.stage(task)

    def adopt(
        self,
        ends: dict[int, End],
        *,
        is_whole: bool,
        ticks: dict[int, int] | None = None,
        is_rivalled: bool = False,
    ) -> None:
        """Take over what is stored, which must be what was predicted, or, unless it is whole,
        part of it.
        """
        rows: dict[int, tuple[Any, ...]] = {
            row[0]: row[1:] for row in self.rows("SELECT job_id, status, claim FROM jobs")
        }
        counts: dict[int, int] = dict(
            self.rows("SELECT job_id, ticks FROM job_dead_ticks JOIN jobs USING (job_id, claim)")
        )
        for known in self.model.jobs.values():
            status, claim = rows[known.number]
            end = ends.get(known.number)
            expected = {known.status} if end is None else {end.status} if is_whole else {known.status, end.status}
            if end is not None and end.status == "any":
                expected = {known.status, known.after_failure(), "done"}
            assert status in expected, (known, status, expected)
            if known.status == "running" and status == "queued":
                assert self.model.state_of(known, "executor") == "dead", "requeued while its executor lives"
            if claim != known.claim:  # a reaper has fenced it off: the new claim begins a new count
                assert claim == known.claim + 1
                known.claim, known.dead_ticks = claim, 0
            if status != known.status:
                self.check_intention(known, end, status)
            if status == "running":
                counted = (ticks or {}).get(known.number, known.dead_ticks)
                found = counts.get(known.number, 0)
                allowed = {counted} if is_whole else {counted, known.dead_ticks}
                assert is_rivalled or found in allowed, (known, found, allowed)
                known.dead_ticks = found
            known.status = status
        self.learn_jobs()

    def check_intention(self, known: Job, end: End | None, status: str) -> None:
        """D16: a job that was done to leave a stage has left it, or its intention is stored."""
        if end is not None and end.leaves is not None and status == "done":
            is_intended = self.rows("SELECT 1 FROM outbox WHERE kind = 'advance' AND job_id = ?", known.number)
            is_left = self.rows(
                "SELECT 1 FROM task_audits WHERE task_id = ? AND event = 'stage_changed' AND before = ?",
                str(known.task_id),
                end.leaves,
            )
            assert is_intended or is_left, "the advance is lost"

    def agree(self, tick: Tick, ends: dict[int, End]) -> None:
        """Assert that a look reports what it did itself."""
        counts = Counter(end.status for end in ends.values())
        assert (tick.queued, tick.done, tick.failed, tick.errors) == (
            counts["queued"],
            counts["done"],
            counts["failed"],
            (),
        )

    def learn_jobs(self) -> None:
        """Take over the jobs that stages wrote."""
        for job_id, agent, task_id, max_attempts in self.rows("SELECT job_id, agent, task_id, max_attempts FROM jobs"):
            self.model.jobs.setdefault(job_id, Job(job_id, agent, task_id, max_attempts))

    def holds(self, attempt: Attempt) -> bool:
        """Tell whether a monitor still holds its job."""
        known = self.model.jobs[attempt.job_id]
        return known.status == "running" and known.claim == attempt.claim

    def told_lost(self, call: Callable[[], object], held: bool | None) -> list[object]:  # noqa: FBT001 - what is expected
        """Call, and assert that who lost the job is told so, and nobody else;
        None asserts nothing.
        """
        try:
            call()
        except JobLost:
            assert held is not True
        else:
            assert held is not False, "a lost claim was accepted"
        return []

    def call(self, do: Callable[[], list[Result]], crash: str | None) -> list[Result] | None:
        """Call with a crash armed; None after one."""
        Crashes.armed = crash
        try:
            return do()
        except CrashError:
            Crashes.is_dead = False
            return None
        finally:
            Crashes.armed = None

    def attempt_of(self, which: int) -> Attempt:
        """Return one of the attempts that some monitor believes in."""
        return self.attempts[which % len(self.attempts)]

    def awake(self, which: int, is_ready: Callable[[Attempt], bool]) -> Attempt | None:
        """Return an attempt that is ready and whose monitor is not stopped, or None."""
        ready = [each for each in self.attempts if is_ready(each) and self.world.state(each.monitor) == "S"]
        return ready[which % len(ready)] if ready else None

    def forget(self, attempt: Attempt) -> None:
        """Let nobody believe in an attempt any more; its zombie is gone with it."""
        self.attempts.remove(attempt)
        if self.world.state(attempt.executor) == "Z":
            self.world.set_state(attempt.executor, "")

    def store_monitor(self, known: Job, monitor: tuple[int, str]) -> None:
        """Write the world's process where the queue wrote this one."""
        with self.store.transaction() as transaction:
            statement = "UPDATE jobs SET monitor_pid = ?, monitor_start = ? WHERE job_id = ?"
            transaction.execute(statement, (*monitor, known.number))

    def stage(self, task_id: str) -> str:
        """Return where a task is."""
        task = self.store.task(task_id)
        assert task is not None
        return task.stage

    def rows(self, statement: str, *parameters: str | int) -> list[tuple[Any, ...]]:
        """Return what a statement finds."""
        return self.store._read(statement, parameters)

    # What must hold after every step.

    @invariant()
    def no_claim_ends_twice(self) -> None:
        """Each end has an audit row, and no two are of one claim."""
        rows = self.rows("SELECT detail FROM task_audits WHERE event = 'job_ended'")
        ends = Counter(str(detail).partition(":")[0] for (detail,) in rows)
        assert set(ends.values()) <= {1}, ends

    @invariant()
    def stages_are_left_one_after_the_other(self) -> None:
        """Each change begins where the one before ended,
        and each entered stage has had one job written.
        """
        for task in TASKS:
            audits = self.store.audits(task) if self.store.task(task) else []
            changes = [(audit.before, audit.after) for audit in audits if audit.event == "stage_changed"]
            assert changes == [("build", "check"), ("check", "end")][: len(changes)]
            assert not audits or self.stage(task) == (["build", "check", "end"][len(changes)])
            written = self.rows(
                "SELECT count(*) FROM jobs WHERE task_id = ? AND max_attempts = ?", task, STAGE_ATTEMPTS
            )
            assert written == [(int(bool(changes)),)]

    @invariant()
    def failures_are_told_once(self) -> None:
        """An alert is told for each failure, once, or is still to be sent."""
        assert set(Counter(self.told).values()) <= {1}
        failed = {job.number for job in self.model.jobs.values() if job.status == "failed"}
        waiting = {row[0] for row in self.rows("SELECT job_id FROM outbox WHERE kind = 'alert'")}
        told = {int(key.split("-")[1]) for key in self.told}
        assert told | waiting == failed


def claim_of(attempt: Attempt) -> JobClaim:
    """Return what an attempt is fenced by."""
    return JobClaim(attempt.job_id, attempt.claim)


def test_any_order_of_steps_and_crashes_is_that_of_the_model() -> None:
    """Several thousand steps, each followed by a comparison of every row,
    and each run by its end.
    """
    run_state_machine_as_test(JobsMachine, settings=bounded(40, 300))


def test_dead_ticks_are_of_one_claim() -> None:
    """A reaper dies after it fenced off a job past the ceiling, and the clock is set back.

    Two consecutive dead ticks are needed again: the tick that fenced it off asked how long it ran,
    not whether its executor was dead.
    """
    machine = JobsMachine()
    try:
        machine.begin()
        machine.work(exit_code=0, steps=3, then="it dies")
        machine.look(None)
        job = machine.model.jobs[1]
        assert (job.claim, job.dead_ticks) == (1, 1)
        machine.time_passes(4000.0)
        machine.look(JobCrashPoint.REAPER_BEFORE_CLAIM)
        machine.the_clock_is_set_back(100_000)
        for expected in [(2, "running", 1), (2, "queued", 1)]:
            machine.look(None)
            assert (job.claim, job.status, job.dead_ticks) == expected
    finally:
        machine.teardown()


@pytest.mark.parametrize(
    ("part", "variant"),
    [
        pytest.param("reaper_kind", planted_reapers.AdvancesAfterwards, marks=pytest.mark.nightly),
        ("reaper_kind", planted_reapers.RequeuesTheLiving),
        ("reaper_kind", planted_reapers.AsksSignalZero),
        ("reaper_kind", planted_reapers.AdvancesBeforeClaim),
        ("reaper_kind", planted_reapers.ForgetsStreaks),
        ("reaper_kind", planted_reapers.ReapsFinalising),
        ("reaper_kind", planted_reapers.CountsLostClaims),
        pytest.param("engine_kind", planted_stages.AdvancesBlindly, marks=pytest.mark.nightly),
        ("engine_kind", planted_stages.AdvancesFirst),
        ("engine_kind", planted_stages.IgnoresTheGate),
        pytest.param("queue_kind", planted_jobs.UnfencedEnd, marks=pytest.mark.nightly),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_each_planted_defect_makes_it_fail(part: str, variant: type) -> None:
    """With one part replaced by a variant, the same machine finds a difference."""
    require_failure(JobsMachine, part, variant, bounded(40, 5000))  # what is drawn depends on the modules loaded


def test_a_table_by_hand_is_a_table() -> None:
    """The world's processes are judged as real ones are."""
    world = World()
    process = world.start()
    assert world.table().look(*process) is Liveness.ALIVE
    world.set_state(process, "T")
    assert world.table().look(*process) is Liveness.STOPPED
    world.set_state(process, "Z")
    assert world.table().look(*process) is Liveness.DEAD
    world.set_state(process, "")
    assert world.table().look(*process) is Liveness.DEAD
    world.start(process[0])
    assert world.table().look(*process) is Liveness.DEAD
