"""What the core promises of leases, as a script: each promise at its very moment.

The agent does the steps on the core, and the model (``scenarios.model.Work``) says what has to come
of them. Names of the items: the order in which they were enqueued. Leases are named by their token.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import msgspec
from durable_agents import Heartbeat, Lease, TaskManager, TaskStatus, open_store

from scenarios.judging import NeverHeldError, Script, ScriptClock, Steps, perform
from scenarios.work.agents import made

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents import CheckpointManager, LeaseManager, RecoverySweep
    from pytest_chaos import Marks


def play_work(
    marks: Marks, database: str, parts: dict[str, str], steps: list[Any], known: list[dict[str, Any]]
) -> None:
    """Do steps with leases; ``known`` are the outcomes of earlier ones, with their leases."""
    clock = ScriptClock()
    with open_store(database) as store:
        perform(marks, clock, steps, WorkSteps(store, clock, parts, database, known).do)


class WorkSteps(Steps):
    """The steps of a script, by the managers of the core."""

    def __init__(
        self, store: Any, clock: ScriptClock, parts: dict[str, str], database: str, known: list[dict[str, Any]]
    ) -> None:
        """Make the managers, and remember the leases that were acknowledged."""
        self.database, self.clock = database, clock
        self.manager = TaskManager(store, clock=clock)
        self.leases: LeaseManager = made(parts["leases"], store, clock=clock)
        self.saver: CheckpointManager = made(parts["checkpoints"], store, clock=clock)
        self.sweeper: Callable[..., RecoverySweep] = lambda **kwargs: made(parts["sweep"], store, clock=clock, **kwargs)
        self.held: dict[int, Lease] = {}
        for outcome in known:
            for lease in outcome.get("leases", ()):
                self.held[lease["token"]] = msgspec.convert(lease, Lease)

    def lease(self, token: int) -> Lease:
        """Return the lease with this token, as its holder knows it."""
        if token not in self.held:
            raise NeverHeldError
        return self.held[token]

    def create(self, task_id: Any, tracker_key: str | None = None) -> dict[str, Any]:
        """Create a task."""
        return {"status": self.manager.create(task_id, tracker_key=tracker_key).status.value}

    def tasks(self, status: str | None = None, **page: Any) -> dict[str, Any]:
        """List tasks."""
        found = self.manager.list(status=None if status is None else TaskStatus(status), **page)
        return {"tasks": [task.task_id for task in found]}

    def trail(self, task_id: str, **page: Any) -> dict[str, Any]:
        """Return the audit trail of a task."""
        found = self.manager.audits(task_id, **page)
        return {"audits": [f"{audit.event}: {audit.before} to {audit.after}" for audit in found]}

    def item(self, number: Any) -> dict[str, Any]:
        """Return an item."""
        found = self.leases.get(number)
        return {"status": found.status.value, "retries": found.retries}

    def spoil(self, number: int) -> None:
        """Make an item one that no sweep can end, by a row that cannot be stored."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection, connection:
            connection.execute(
                "CREATE TRIGGER spoilt BEFORE INSERT ON task_audits WHEN NEW.event = 'lease_expired' AND "
                f"NEW.detail LIKE 'work item {number},%' BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed'); END"
            )

    def beat(self, token: int, times: int = 1) -> dict[str, Any]:
        """Renew by a heartbeat."""
        heartbeat = Heartbeat(self.lease(token), db_path=self.database, clock=self.clock)
        for _ in range(times):
            heartbeat.run_once()
        is_lost = heartbeat.is_lost
        if not is_lost:
            self.held[token] = heartbeat.lease
        assert heartbeat.is_lost == is_lost
        heartbeat.stop()
        leases = [] if is_lost else [msgspec.to_builtins(self.held[token])]
        expires_at = None if is_lost else self.held[token].expires_at
        return {"is_lost": is_lost, "expires_at": expires_at, "leases": leases}

    def latest(self, task_id: str, before: int = 0) -> dict[str, Any]:
        """Return the newest checkpoint."""
        found = self.saver.latest(task_id, before=before) if before else self.saver.latest(task_id)
        return {"number": 0 if found is None else found.sequence_number, "snapshot": found and found.snapshot}

    def checkpoints(self, task_id: str, **page: Any) -> dict[str, Any]:
        """List checkpoints."""
        return {"numbers": [saved.sequence_number for saved in self.saver.list(task_id, **page)]}

    def set_status(self, task_id: str, expected: str, status: str) -> None:
        """Change the status of a task."""
        self.manager.set_status(task_id, TaskStatus(status), expected=TaskStatus(expected))

    def enqueue(self, task_id: str, type: str = "work", **item: Any) -> dict[str, Any]:  # noqa: A002 - the field's name
        """Add an item."""
        return {"work_item_id": self.leases.enqueue(task_id, type, **item).work_item_id}

    def acquire(self, holder: str, ttl_s: float, limit: int = 1, **chosen: Any) -> dict[str, Any]:
        """Take items."""
        if limit == 1:
            lease = self.leases.acquire(holder, ttl_s=ttl_s, **chosen)
            taken = [] if lease is None else [lease]
        else:
            taken = self.leases.acquire_many(holder, limit=limit, ttl_s=ttl_s, **chosen)
        self.held |= {lease.token: lease for lease in taken}
        names = {"items": "work_item_id", "tokens": "token", "retries": "retries", "expires_at": "expires_at"}
        outcome = {name: [getattr(lease, each) for lease in taken] for name, each in names.items()}
        return outcome | {"leases": [msgspec.to_builtins(lease) for lease in taken]}

    def renew(self, token: int, ttl_s: float | None = None) -> dict[str, Any]:
        """Prolong a lease."""
        self.held[token] = lease = self.leases.renew(self.lease(token), ttl_s=ttl_s)
        outcome = {"expires_at": lease.expires_at, "trusted_until": lease.trusted_until}
        return outcome | {"leases": [msgspec.to_builtins(lease)]}

    def complete(self, token: int) -> None:
        """Complete an item."""
        self.leases.complete(self.lease(token))

    def release(self, token: int) -> None:
        """Release an item."""
        self.leases.release(self.lease(token))

    def fail(self, token: int, error: Any = "", error_text: Any = None) -> dict[str, Any]:
        """Fail an attempt."""
        return {"status": self.leases.fail(self.lease(token), error if error_text is None else error_text).value}

    def save(self, token: int, snapshot: Any, task_id: str | None = None) -> dict[str, Any]:
        """Save a checkpoint under a lease."""
        lease = self.lease(token)
        saved = self.saver.save(task_id or lease.task_id, snapshot, lease=lease)
        return {"sequence_number": saved.sequence_number}

    def sweep(self, **batch: Any) -> dict[str, Any]:
        """Sweep once."""
        found = self.sweeper(**batch).run_once()
        assert len(found.errors) == found.expired_found - found.recovered - found.failed
        return {"expired_found": found.expired_found, "recovered": found.recovered, "failed": found.failed}


def of_leases() -> Script:
    """Say who may renew until when, by either clock, and who changes nothing."""
    script = Script().then("create", task_id="t").then("create", task_id="u")
    for priority, task, retries in ((0, "t", 2), (5, "t", 0), (5, "u", 1), (0, "t", 1), (-1, "u", 3)):
        script.then("enqueue", task_id=task, priority=priority, max_retries=retries)
    script.then("enqueue", task_id="u", priority=9, type="other")
    for ttl_s in (0.0, -1.0, 0.000_009, 7 * 24 * 3600.1, "$nan", "$inf", True):
        script.then("bad", call="acquire", error="InvalidDuration", holder="a", ttl_s=ttl_s)
    for bad in ({"holder": ""}, {"holder": "\0"}, {"holder": "$surrogate"}, {"limit": 0}, {"limit": 1001}):
        script.then("bad", call="acquire", error="InvalidWorkItem", **{"holder": "a", "ttl_s": 10, **bad})
    script.then("acquire", holder="a", ttl_s=10, type="work")  # 1: item 2
    script.then("acquire", holder="b", ttl_s=100, limit=2, task_id="u")  # 2: item 6; 3: item 3
    script.then("acquire", holder="a", ttl_s=10, type="work", task_id="t")  # 4: item 1
    script.wait(9, but_us=1).then("renew", token=1)
    script.wait(0, but_us=-1)
    for operation in ({"do": "renew"}, {"do": "complete"}, {"do": "release"}, {"do": "fail", "error": "it broke"}):
        script.then(operation.pop("do"), token=4, **operation)  # by its own clock it is over, and not by the other
    script.then("save", token=4, snapshot="late")
    script.wait(1, but_us=1).then("sweep")
    script.wait(0, but_us=-1).then("sweep").then("sweep")  # item 1 is back
    script.then("acquire", holder="b", ttl_s=50, limit=9)  # 5: item 1, 6: item 4, 7: item 5
    refused_by_the_store(script, 5)
    return script


def refused_by_the_store(script: Script, token: int) -> None:
    """Go on: clocks differ, so that a holder trusts a lease that the store knows to be over."""
    script.then("bad", call="renew", error="InvalidDuration", token=token, ttl_s=0)
    script.then("bad", call="fail", error="InvalidWorkItem", token=token, error_text="$bytes")
    script.then("save", token=token, snapshot={"one": 1}).then("save", token=token, snapshot="no", task_id="u")
    script.set_clock(50, but_us=1).then("renew", token=6).then("beat", token=6).then("beat", token=6, times=2)
    script.then("save", token=token, snapshot={"two": 2})
    script.set_clock(0, but_us=-1)
    for operation in ("renew", "complete", "release"):
        script.then(operation, token=token)
    script.then("save", token=token, snapshot="expired").then("fail", token=token, error="expired")
    script.then("beat", token=token, times=2).then("item", number=1)
    script.then("sweep", batch=1)  # items 1 and 5, not 4
    script.then("acquire", holder="c", ttl_s=600, limit=2)  # 8, 9: items 1 and 5
    for old in (token, 7):
        for operation in ("renew", "complete", "release"):
            script.then(operation, token=old)
        script.then("save", token=old, snapshot="lost").then("fail", token=old, error="lost").then("beat", token=old)
    script.then("release", token=9).then("renew", token=9).then("save", token=9, snapshot="released")
    script.then("renew", token=8, ttl_s=20).then("complete", token=8)
    for operation in ("renew", "complete", "release"):
        script.then(operation, token=8)
    script.then("fail", token=8, error="over").then("save", token=8, snapshot="over")
    script.then("sweep").then("acquire", holder="d", ttl_s=7 * 24 * 3600, limit=9, type="work")


def of_retries() -> Script:
    """Say what counts as a retry, how many there are, and that the end is the end."""
    script = Script().then("create", task_id="t")
    for retries in (0, 1, 2, 2):
        script.then("enqueue", task_id="t", max_retries=retries)
    script.then("enqueue", task_id="no such task")
    for bad in ({"max_retries": -1}, {"max_retries": 2**31 + 1}, {"priority": 2**31 + 1}, {"priority": True}):
        script.then("bad", call="enqueue", error="InvalidWorkItem", task_id="t", **bad)
    script.then("bad", call="enqueue", error="InvalidWorkItem", task_id="t", type="")
    script.then("bad", call="enqueue", error="InvalidTask", task_id=7)
    for number in (0, 99, -1, "1"):
        script.then("bad", call="item", error="UnknownWorkItem", number=number)
    for batch in (0, 10_001, "x"):
        script.then("bad", call="sweep", error="InvalidSetting", batch=batch)
    script.then("acquire", holder="a", ttl_s=10, limit=9).wait(11).then("sweep", batch=2).then("sweep")
    script.then("acquire", holder="b", ttl_s=10, limit=9)  # 5 to 7: items 2 to 4
    script.then("fail", token=5, error="it broke").then("fail", token=6, error="it broke")
    script.then("acquire", holder="c", ttl_s=10).then("release", token=8)  # item 3
    script.then("acquire", holder="c", ttl_s=10).then("fail", token=9, error="it broke again")
    for _ in range(3):
        script.wait(11).then("sweep", batch=2).then("acquire", holder="d", ttl_s=10, limit=9)
    for expected, status in (("created", "running"), ("created", "failed"), ("running", "created")):
        script.then("set_status", task_id="t", expected=expected, status=status)
    for expected, status in (("running", "succeeded"), ("succeeded", "running"), ("running", "failed")):
        script.then("set_status", task_id="t", expected=expected, status=status)
    script.then("create", task_id="t").then("acquire", holder="z", ttl_s=10)
    for _ in range(3):
        script.then("enqueue", task_id="t", max_retries=1)
    script.then("acquire", holder="y", ttl_s=10, limit=9).wait(11).then("spoil", number=6).then("sweep").then("sweep")
    return script.then("acquire", holder="x", ttl_s=10, limit=9).then("item", number=6)


def of_tasks() -> Script:
    """Say whose tasks and checkpoints are whose: each beside others, with ids around it."""
    script = Script()
    for task, key in (("b", "K-2"), ("a", None), ("c", "K-3"), ("b", "K-2"), ("d", None)):
        script.then("create", task_id=task, tracker_key=key)
    for task, key in (("b", "K-3"), ("b", None), ("e", "K-2"), ("a", "K-9")):
        script.then("create", task_id=task, tracker_key=key)
    for bad in ({"task_id": ""}, {"task_id": "$surrogate"}, {"task_id": "f", "tracker_key": "\0"}):
        script.then("bad", call="create", error="InvalidTask", **bad)
    for task in ("b", "c"):
        script.then("set_status", task_id=task, expected="created", status="running")
    script.then("set_status", task_id="c", expected="running", status="failed")
    for status in (None, "created", "running", "failed", "cancelled"):
        script.then("tasks", status=status).then("tasks", status=status, after="a").then(
            "tasks", status=status, limit=1
        )
    for task in ("b", "a", "c"):
        script.then("enqueue", task_id=task).then("acquire", holder=task, ttl_s=60, task_id=task)
    for token in (1, 2, 3, 1, 1, 2):
        script.then("save", token=token, snapshot=f"of {token}, at {len(script.steps)}")
    for task in ("a", "b", "c", "d"):
        script.then("latest", task_id=task).then("latest", task_id=task, before=2).then("checkpoints", task_id=task)
        script.then("checkpoints", task_id=task, after=1, limit=1).then("trail", task_id=task)
        script.then("trail", task_id=task, limit=1)
    script.then("latest", task_id="no such task").wait(61).then("sweep").then("trail", task_id="b", limit=2)
    for snapshot in ("$nan", "$object", "$tuple", "$bytes"):
        script.then("bad", call="save", error="InvalidSnapshot", token=1, snapshot=snapshot)
    return script.then("checkpoints", task_id="b").then("tasks")
