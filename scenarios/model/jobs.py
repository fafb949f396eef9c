"""The model of jobs, of stages, of a reaper and a reconciler: what each makes of what it sees."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from scenarios.model.states import FOLLOWS, Model, Moment, Outcome, Refused, Tables, us

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Way:
    """A stage: what follows, who may leave it, and who gets a job in it."""

    next: str | None = None
    starts: str | None = None
    leavers: tuple[str, ...] = ()
    has_gate: bool = True
    is_human_gated: bool = False


@dataclass
class Job:
    """A job, and what is true of the processes of its newest claim."""

    number: int
    agent: str
    task_id: str | None
    max_attempts: int
    status: str = "queued"
    attempts: int = 0
    claim: int = 0
    started_at: int = 0
    exit_code: int | None = None
    finished_at: int = 0
    dead_ticks: int = 0
    executor: str = "dead"
    monitor: str = "alive"
    is_told: bool = False
    runs: dict[int, int | None] = field(default_factory=dict)

    def after_failure(self) -> str:
        """Return what an attempt that came to nothing makes of it."""
        return "queued" if self.attempts < self.max_attempts else "failed"


@dataclass
class Place:
    """Where a task is, and since when."""

    stage: str
    entered_at: int
    status: str = "created"
    left: list[str] = field(default_factory=list)
    ended: int = 0


class End(NamedTuple):
    """What a look makes of a running job; ``leaves`` is the stage that its task leaves."""

    status: str
    leaves: str | None = None


class Jobs(Model):
    """Jobs of tasks in stages, a reaper that looks at them, and a reconciler."""

    def __init__(
        self, ways: Mapping[str, Way], *, grace_s: float, ceiling_s: float, stage_grace_s: float, max_attempts: int
    ) -> None:
        """Begin with nothing; the graces are those of the reaper and of a stage."""
        self.ways = ways
        self.grace, self.ceiling, self.stage_grace = us(grace_s), us(ceiling_s), us(stage_grace_s)
        self.max_attempts = max_attempts
        self.jobs: dict[int, Job] = {}
        self.places: dict[str, Place] = {}
        self.seen: dict[tuple[int, int, str], int] = {}
        self.is_green = True

    def create(self, moment: Moment, task_id: str, stage: str) -> None:
        """Create a task in a stage."""
        self.places[task_id] = Place(stage, moment.now)

    def cancel(self, _: Moment, task_id: str) -> None:
        """Cancel a task: its queued jobs are not begun."""
        self.places[task_id].status = "cancelled"

    def turn(self, _: Moment, is_green: bool) -> None:  # noqa: FBT001 - an argument of a step
        """Turn all gates."""
        self.is_green = is_green

    def restart(self, _: Moment) -> None:
        """Let another reaper take its place: dead ticks are stored, times that it saw are not."""
        self.seen = {}

    def enqueue(self, _: Moment, agent: str, task_id: str | None = None, max_attempts: int = 2) -> Outcome:
        """Add a job; ``max_attempts`` bounds its starts."""
        number = len(self.jobs) + 1
        self.jobs[number] = Job(number, agent, task_id, max_attempts)
        return {"job": number}

    def claim(self, moment: Moment, agents: list[str] | None = None) -> Outcome:
        """Claim the oldest job; one of a cancelled task fails at its turn, without an alert."""
        for job in self.jobs.values():
            if job.status != "queued" or (agents is not None and job.agent not in agents):
                continue
            place = self.places.get(job.task_id or "")
            if place is not None and place.status == "cancelled":
                job.status, job.is_told, place.ended = "failed", True, place.ended + 1
                continue
            job.status, job.attempts, job.claim = "running", job.attempts + 1, job.claim + 1
            job.started_at, job.exit_code, job.dead_ticks = moment.now, None, 0
            job.executor, job.monitor = "dead", "alive"
            job.runs[job.claim] = None
            return {"job": job.number, "claim": job.claim, "attempts": job.attempts}
        return {"job": None}

    def start(self, _: Moment, job: int, claim: int) -> None:
        """Record the executor, which lives."""
        self._require(job, claim).executor = "alive"

    def executor_ends(self, _: Moment, job: int) -> None:
        """Let the executor end."""
        self.jobs[job].executor = "dead"

    def monitor_dies(self, _: Moment, job: int) -> None:
        """Let the monitor die."""
        self.jobs[job].monitor = "dead"

    def record_exit(self, moment: Moment, job: int, claim: int, exit_code: int) -> None:
        """Record an exit code, once for a run."""
        held = self._require(job, claim)
        if held.exit_code is not None:
            raise Refused("JobLost")
        held.exit_code, held.finished_at = exit_code, moment.now
        held.runs[claim] = exit_code

    def held(self, _: Moment, job: int, claim: int) -> None:
        """Tell whether a claim is held."""
        self._require(job, claim)

    def counts(self, _: Moment) -> Outcome:
        """Count what is queued, and what runs."""
        statuses = Counter(job.status for job in self.jobs.values())
        return {"queued": statuses["queued"], "running": statuses["running"]}

    def runs(self, _: Moment, job: int) -> Outcome:
        """Return the runs of a job: their claims and exit codes."""
        if job not in self.jobs:
            raise Refused("UnknownJob")
        return {"runs": [[claim, code] for claim, code in self.jobs[job].runs.items()]}

    def settle(self, moment: Moment, job: int, claim: int) -> Outcome:
        """End a claim by its exit code, and advance."""
        held = self._require(job, claim)
        end = self.end_of_exit(held)
        self._end(held, end)
        return {"status": end.status, "moved": self._deliver(moment, [(held, end)])}

    def reap(self, _: Moment, job: int, status: str) -> Outcome:
        """End a job by hand, if it is running."""
        if job not in self.jobs:
            return {"is_reaped": False}
        held = self.jobs[job]
        is_running = held.status == "running"
        if is_running:
            self._end(held, End(status))
            held.is_told |= status == "failed"
        return {"is_reaped": is_running}

    def look(self, moment: Moment) -> Outcome:
        """Look once, as a reaper does."""
        running = [job for job in self.jobs.values() if job.status == "running"]
        found = self.judged(moment)
        for job in running:
            job.dead_ticks = found[job.number][1]
        ends = [(job, end) for job in running if (end := found[job.number][0]) is not None]
        for job, end in ends:
            if self._is_too_long(job, moment) and job.exit_code is None:
                job.claim, job.executor = job.claim + 1, "dead"  # fenced off, killed, and seen dead
            self._end(job, end)
        moved = self._deliver(moment, ends)
        after = Counter(end.status for _, end in ends)
        untold = [job for job in self.jobs.values() if job.status == "failed" and not job.is_told]
        for job in untold:
            job.is_told = True
        return {
            "running": len(running),
            "dead": sum(ticks > 0 for _, ticks in found.values()),
            **{status: after[status] for status in ("queued", "done", "failed")},
            "advanced": moved,
            "alerted": len(untold),
        }

    def judged(self, moment: Moment) -> dict[int, tuple[End | None, int]]:
        """Return what a look makes of each running job, and its dead ticks.

        Exited: the exit code was recorded a grace ago, and the monitor is dead, or all took too
        long. Too long without an exit code: it is ended. Dead in two looks, one after the other.
        """
        running = [job for job in self.jobs.values() if job.status == "running"]
        keys = [(job.number, job.started_at, "runs") for job in running]
        keys += [(job.number, job.finished_at, "exited") for job in running if job.exit_code is not None]
        self.seen = {key: self.seen.get(key, moment.monotonic) for key in keys}
        return {job.number: self._judge(job, moment) for job in running}

    def _judge(self, job: Job, moment: Moment) -> tuple[End | None, int]:
        is_too_long = self._is_too_long(job, moment)
        if job.exit_code is not None:
            is_over = self._age(job, "exited", job.finished_at, moment) >= self.grace
            is_left = is_over and (is_too_long or self.state_of(job, "monitor") == "dead")
            return (self.end_of_exit(job) if is_left else None), 0
        if is_too_long:
            return End(job.after_failure()), job.dead_ticks
        is_dead = self.state_of(job, "executor") == "dead" and self.state_of(job, "monitor") != "stopped"
        ticks = job.dead_ticks + 1 if is_dead else 0
        return (End(job.after_failure()) if ticks >= 2 else None), ticks

    def state_of(self, job: Job, whose: str) -> str:
        """Return the state of a job's executor or monitor: alive, stopped or dead."""
        return str(getattr(job, whose))

    def end_of_exit(self, job: Job) -> End:
        """Return what the exit code of a job makes of it."""
        if job.exit_code != 0:
            return End(job.after_failure())
        place = self.places.get(job.task_id or "")
        if place is None or self._refusal(place, place.stage, job.agent) is not None:
            return End("done")
        return End("done", place.stage) if self._is_open(place.stage) else End(job.after_failure())

    def advance(self, moment: Moment, task_id: str, stage: str, agent: str | None = None) -> Outcome:
        """Advance a task from this stage, as a webhook or the end of an agent's job does."""
        place = self.places[task_id]
        result = self._refusal(place, stage, agent)
        if result is None and not self._is_open(stage):
            result = "gate_red"
        if result is None:
            self._move(task_id, moment)
        return {"result": result or "moved", "stage": place.stage}

    def approve(self, moment: Moment, task_id: str, stage: str) -> Outcome:
        """Leave a human gate, in the name of a human."""
        if not self.ways[stage].is_human_gated:
            raise Refused("InvalidSetting")
        place = self.places[task_id]
        result = self._refusal(place, stage, None)
        if result == "human_gated":
            self._move(task_id, moment)
        return {"result": "moved" if result == "human_gated" else result, "stage": place.stage}

    def reconcile(self, moment: Moment) -> Outcome:
        """Move what waits for nothing but a webhook: green, over the grace, nobody there."""
        overdue = [task_id for task_id, place in self.places.items() if self.waits(task_id, place, moment)]
        moved = [self.advance(moment, task_id, self.places[task_id].stage)["result"] for task_id in overdue]
        return {"looked": len(overdue), "unblocked": moved.count("moved")}

    def waits(self, task_id: str, place: Place, moment: Moment) -> bool:
        """Tell whether a task waits in its stage: its age is the stage's, queued is active."""
        way = self.ways[place.stage]
        is_active = any(job.task_id == task_id and job.status in {"queued", "running"} for job in self.jobs.values())
        is_asked = place.status in FOLLOWS and way.has_gate and not way.is_human_gated and way.next is not None
        return is_asked and not is_active and moment.now - place.entered_at >= self.stage_grace

    def _refusal(self, place: Place, stage: str, agent: str | None) -> str | None:
        way = self.ways[stage]
        reasons = {
            "stale": place.stage != stage,
            "task_ended": place.status not in FOLLOWS,
            "final": way.next is None,
            "human_gated": way.is_human_gated,
            "not_theirs": agent is not None and agent not in way.leavers,
        }
        return next((reason for reason, applies in reasons.items() if applies), None)

    def _is_open(self, stage: str) -> bool:
        return self.is_green or not self.ways[stage].has_gate

    def _move(self, task_id: str, moment: Moment) -> None:
        place = self.places[task_id]
        place.left.append(place.stage)
        place.stage, place.entered_at = self.ways[place.stage].next or "", moment.now
        if (agent := self.ways[place.stage].starts) is not None:
            self.enqueue(moment, agent, task_id, self.max_attempts)

    def _end(self, job: Job, end: End) -> None:
        job.status, job.dead_ticks = end.status, 0
        if place := self.places.get(job.task_id or ""):
            place.ended += 1

    def _deliver(self, moment: Moment, ends: list[tuple[Job, End]]) -> int:
        """Do the advances that ends intended: one each, unless the task has left its stage."""
        moved = 0
        for job, end in ends:
            if end.leaves is not None and job.task_id is not None and self.places[job.task_id].stage == end.leaves:
                self._move(job.task_id, moment)
                moved += 1
        return moved

    def _is_too_long(self, job: Job, moment: Moment) -> bool:
        return self._age(job, "runs", job.started_at, moment) > self.ceiling

    def _age(self, job: Job, what: str, since: int, moment: Moment) -> int:
        """Return for how long a job has been so: by the wall clock or as seen, the longer."""
        return max(moment.now - since, moment.monotonic - self.seen[job.number, since, what])

    def _require(self, job: int, claim: int) -> Job:
        held = self.jobs[job]
        if (held.status, held.claim) != ("running", claim):
            raise Refused("JobLost")
        return held

    def tables(self) -> Tables:
        """Return jobs with their dead ticks, runs that ended, and the stages of tasks."""
        columns = ("agent", "status", "attempts", "claim", "dead_ticks")
        return {
            "jobs": {number: {name: getattr(job, name) for name in columns} for number, job in self.jobs.items()},
            "stages": {
                task: {"stage": place.stage, "entered_at": place.entered_at, "left": ",".join(place.left)}
                for task, place in self.places.items()
            },
            "ends": {task: {"count": place.ended} for task, place in self.places.items()},
            "runs": {
                f"{job.number} {claim}": {"exit_code": code}
                for job in self.jobs.values()
                for claim, code in job.runs.items()
            },
            "outbox": {},
        }
