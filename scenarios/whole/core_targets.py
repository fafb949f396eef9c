"""The parts of the core as targets: a script is played, and the model says what may be left.

Each step is marked with what it was to do. After a crash the model does the acknowledged steps, and
the one that was under way both ways; the tables have to be those of one of them. So each target
asks for all of its part's promises at once: durable, whole or not at all, fenced, in order.

A step that an I/O error ends has no ack: it is in doubt, and the program ends there. What is drawn
elsewhere (tokens, places of locks, pids) is numbered, so that two runs write the same.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import sqlite3
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from unittest import mock

from durable_agents import open_store
from durable_agents.errors import RecoveryError, StoreError
from pytest_chaos import Finding, History

from scenarios.jobs.job_scripts import JobSteps, model as jobs_model
from scenarios.judging import SKIPPED, STEP, NeverHeldError, Script, ScriptClock, Steps, check_model, read_tables
from scenarios.model.inbox import Inbox
from scenarios.model.keys import Keys
from scenarios.model.states import Moment
from scenarios.model.work import Work
from scenarios.once.key_scripts import KeySteps
from scenarios.webhooks.inbox_scripts import InboxSteps
from scenarios.work.work_scripts import WorkSteps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

    from scenarios.model.states import Model, Outcome, Tables

DATABASE: Final = "core.db"
IN_DOUBT: Final = (StoreError, OSError)
"""What an I/O error of a step becomes: it may have happened or not."""
SOUND: Final = {
    "checkpoints": "durable_agents:CheckpointManager",
    "leases": "durable_agents:LeaseManager",
    "sweep": "durable_agents:RecoverySweep",
    "jobs": "durable_agents:JobQueue",
    "reaper": "durable_agents:JobReaper",
    "stages": "durable_agents:StageEngine",
    "reconciler": "durable_agents.pipeline.reconciler:Reconciler",
    "cache": "durable_agents:LLMOutputCache",
    "ledger": "durable_agents:ToolLedger",
    "inbox": "durable_agents.webhooks.inbox:Inbox",
}


class Calls(Keys):
    """Keys of which an execution may be cut off: a call is then in doubt, a key is free."""

    def parts(self, operation: str, arguments: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the call as a whole, and the one that has begun and has no end."""
        return [arguments, {**arguments, "how": "is interrupted"}] if operation == "call" else [arguments]


class Deliveries(Inbox):
    """An inbox of which a killed handler may have handled the first few."""

    def parts(self, operation: str, arguments: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return how many of the pending ones it may have come to."""
        counts = range(len(self.deliveries)) if operation == "run" else ()
        return [arguments, *({**arguments, "count": count} for count in counts)]

    def run(self, moment: Moment, failing: list[str], count: int | None = None) -> Outcome:
        """Handle the first ``count`` of what is pending, or all."""
        late = [name for name, each in self.deliveries.items() if each.status == "pending"][count:] if count else []
        later = {name: self.deliveries.pop(name) for name in late} if count != 0 else {}
        outcome = {} if count == 0 else super().run(moment, failing)
        self.deliveries |= later
        return outcome


class ExploredKeys(KeySteps):
    """Steps of keys. A failure that could not be recorded as one leaves its call in doubt."""

    def __init__(self, store: Any, clock: ScriptClock, parts: dict[str, str], database: str) -> None:
        """Make the stores."""
        super().__init__(store, clock, parts)
        self.database = database

    def call(self, key: str, how: str = "returns", policy: str = "raise") -> dict[str, Any]:
        """Call a tool, and see that a failure has freed its key."""
        outcome = super().call(key, how, policy)
        if "failed" in outcome and count_of(self.database, "idempotency_keys", f"key = 'tool/{key}'"):
            message = "the failure is not recorded, and the call is in doubt"
            raise OSError(message)
        return outcome


class ExploredJobs(JobSteps):
    """Steps of jobs. An end whose advance could not be delivered yet is in doubt for its caller."""

    def settle(self, job: int, claim: int) -> dict[str, Any]:
        """End a claim, and see that nothing waits in the outbox."""
        outcome = super().settle(job, claim)
        if count_of(self.database, "outbox"):
            message = "the advance waits in the outbox"
            raise OSError(message)
        return outcome


def count_of(database: str, table: str, condition: str = "true") -> int:
    """Count rows."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table} WHERE {condition}").fetchone()[0])  # noqa: S608 - names of our own tables


class Part(NamedTuple):
    """A part of the core: its script, its model, and what does the steps on the core.

    ``again`` is what a restart does besides opening the database.
    """

    script: Callable[[], Script]
    model: Callable[[], Model]
    steps: Callable[[Any, ScriptClock, dict[str, str], str], Steps]
    again: Callable[[Steps], object] = lambda _: None


class Scripted:
    """A script of a part that is played as a target. ``parts`` may have a planted defect."""

    def __init__(self, name: str, parts: dict[str, str]) -> None:
        self.name = name
        self._part = PARTS[name]
        self._parts = SOUND | {part: planted for part, planted in parts.items() if part in SOUND}

    def setup(self, directory: Path) -> None:
        """Make the database with its schema, as an earlier start has."""
        open_store(str(directory / DATABASE)).close()

    def run(self, directory: Path, marks: Marks) -> None:
        """Do the steps, each between its intent and its ack."""
        clock = ScriptClock()
        with numbered(), open_store(str(directory / DATABASE)) as store:
            steps = self._part.steps(store, clock, self._parts, str(directory / DATABASE))
            for number, (operation, moment, arguments) in enumerate(self._part.script().steps):
                clock.moment = Moment(*moment)
                marks.intent(STEP, number, value={"do": operation, "at": list(moment), "with": arguments})
                try:
                    outcome = steps.do(operation, arguments) or {}
                except IN_DOUBT:
                    raise
                except RecoveryError as error:
                    outcome = {"refused": type(error).__name__}
                except NeverHeldError:
                    outcome = SKIPPED
                marks.ack(STEP, number, value=outcome)

    def recover(self, directory: Path) -> None:
        """Open the database again, and deliver what was decided and not yet sent."""
        with numbered(), open_store(str(directory / DATABASE)) as store:
            self._part.again(self._part.steps(store, ScriptClock(), self._parts, str(directory / DATABASE)))

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Compare outcomes and tables with what the model allows."""
        model = self._part.model()
        yield from check_model(History(tuple(marks)), model, lambda: tables_in(directory / DATABASE, model))


def tables_in(database: Path, model: Model) -> Tables:
    """Read the tables of a model; what a dead caller executed is free, or in doubt for a tool."""
    found = read_tables(database, model.tables())
    for name, row in list(found.get("keys", {}).items()):
        if row["status"] == "executing" and name.startswith("tool/"):
            row["status"] = "in_doubt"
        elif row["status"] == "executing":
            del found["keys"][name]
    return found


@contextlib.contextmanager
def numbered() -> Iterator[None]:
    """Number what is drawn: the same in each run."""
    numbers = itertools.count(1)
    with (
        mock.patch.object(secrets, "token_hex", lambda size: f"{next(numbers):0{2 * size}x}"),
        mock.patch.object(secrets, "randbits", side_effect=numbers),
        mock.patch.object(os, "getpid", return_value=4_194_305),
    ):
        yield


def of_leases() -> Script:
    """Grants, a renewal, a fenced write, an expiry with its sweep, a takeover, the ends."""
    script = Script().then("create", task_id="t")
    for retries in (2, 0, 1):
        script.then("enqueue", task_id="t", max_retries=retries)
    script.then("acquire", holder="a", ttl_s=10).then("acquire", holder="b", ttl_s=10, limit=2)
    script.wait(5).then("renew", token=1).then("save", token=1, snapshot={"one": 1})
    script.wait(6).then("sweep")  # of b's two one is back, and one has failed
    script.then("acquire", holder="c", ttl_s=10).then("save", token=2, snapshot="late").then("complete", token=2)
    script.then("save", token=4, snapshot={"two": 2}).then("complete", token=4)
    script.then("fail", token=1, error="it broke").then("acquire", holder="d", ttl_s=10).then("release", token=5)
    return script.then("set_status", task_id="t", expected="created", status="running")


def of_keys() -> Script:
    """Results, a failure, a conflict, an expiry; outputs of a cache, and their eviction."""
    script = Script().then("execute", key="k", request={"n": 1}).then("execute", key="k", request={"n": 1})
    script.then("execute", key="l", how="raises").then("execute", key="l").then("forget", key="l")
    script.then("execute", key="k", request={"n": 2}).then("ask", model="m", messages=[]).then(
        "ask", model="n", messages=[]
    )
    return script.wait(1).then("ask", model="m", messages=[]).then("evict", bytes_max=0)


def of_tools() -> Script:
    """A call and its replay, a failure, a doubt, and what its caller decides."""
    script = Script().then("call", key="k").then("call", key="k").then("call", key="f", how="raises")
    script.then("call", key="d", how="is interrupted").then("call", key="d").then("call", key="d", policy="again")
    return script.then("call", key="d").then("in_doubt")


def of_jobs() -> Script:
    """A job that fails and comes again, is done and moves its task; dead ticks, and the reaper."""
    script = Script().then("create", task_id="a", stage="build").then("create", task_id="w", stage="build")
    script.then("enqueue", agent="builder", task_id="a", max_attempts=3).then("claim")
    script.then("record_exit", job=1, claim=1, exit_code=1).then("settle", job=1, claim=1).then("claim")
    script.then("record_exit", job=1, claim=2, exit_code=0).then("settle", job=1, claim=2).then("claim")
    script.then("look").then("look").then("advance", task_id="w", stage="build", agent="builder")
    return script.then("reap", job=3, status="failed").then("counts")


def of_deliveries() -> Script:
    """Deliveries in one commit, known ones again, one that fails, and its next attempt."""
    script = Script().then("accept", identities=["b", "a", "b"]).then("accept", identities=["a"])
    script.wait(1).then("run", failing=["forge a"]).then("accept", identities=["c"], source="tracker")
    return script.wait(1).then("run", failing=[]).then("accept", identities=["a", "d"])


def deliver(steps: Steps) -> None:
    """Deliver the advances that were decided."""
    assert isinstance(steps, JobSteps)
    steps.engine.deliver()


PARTS: Final[dict[str, Part]] = {
    "leases": Part(of_leases, Work, lambda store, clock, parts, path: WorkSteps(store, clock, parts, path, [])),
    "keys": Part(of_keys, Calls, ExploredKeys),
    "tools": Part(of_tools, Calls, ExploredKeys),
    "jobs": Part(of_jobs, jobs_model, ExploredJobs, deliver),
    "inbox": Part(of_deliveries, Deliveries, lambda store, clock, parts, _: InboxSteps(store, clock, parts)),
}
