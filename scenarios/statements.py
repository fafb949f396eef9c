"""What each statement of the store promises: it changes the one row that it names, or nothing.

Every change of a row names what its caller has read: a token, a claim, an owner, a status, a
moment. Here each of these is wrong once, with rows around that have it. The statement has to say so
and to change nothing; then all of them are right, and one row changes. Each is asked in a
transaction of its own, which is undone. Queries are asked for rows of which the neighbours differ
in one column.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from durable_agents import JobQueue, LeaseManager, TaskStatus, WorkStatus, open_store
from durable_agents.store.rows import (
    Cycle,
    DeadTicks,
    DeliveryStatus,
    Expiry,
    JobStatus,
    KeyStatus,
    StateEntry,
    Task,
    TaskSource,
    Usage,
)

from scenarios.judging import Script, ScriptClock, Steps, perform
from scenarios.model.states import Model, Moment, Outcome, Tables
from scenarios.statement_costs import COSTS
from scenarios.statement_queries import QUERIES
from scenarios.statement_rows import EXPIRY, NOW, delivery_of, entry_of, expected_key, fill, key_of, rows_in
from scenarios.work.agents import made

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos import Marks

    Statement: TypeAlias = Callable[[Any, dict[str, Any]], object]


class Statements(Model):
    """The promise: what is wrong is refused and changes nothing, what is right changes its rows."""

    def fill(self, _: Moment) -> Outcome:
        """Fill the store."""
        return {}

    def change(self, _: Moment, name: str, wrong: str, rows: int) -> Outcome:
        """Ask for a change."""
        assert name
        return {"is_done": not wrong, "rows": 0 if wrong else rows}

    def ask(self, _: Moment, name: str) -> Outcome:
        """Ask a query: its answer is in the table of queries."""
        return {"answer": QUERIES[name][1]}

    def cost(self, _: Moment, name: str) -> Outcome:
        """Ask what a statement costs among many rows that do not concern it."""
        assert name
        return {"grows": False}

    def tables(self) -> Tables:
        """Return nothing: all is undone."""
        return {}


STEPS_MORE: Final = 150
"""Steps of SQLite's machine that a statement may take more, among 200 rows of others."""


class Change:
    """A change of rows: the statement, its right arguments, and wrong ones in their place."""

    def __init__(self, statement: Statement, right: dict[str, Any], rows: int = 1, **wrong: tuple[Any, ...]) -> None:
        """Keep them; ``rows`` differ after the right one."""
        self.statement, self.right, self.rows, self.wrong = statement, right, rows, wrong

    def cases(self) -> dict[str, dict[str, Any]]:
        """Return the arguments, by the name of what is wrong; the right ones come last."""
        found = {
            f"{name} {place}": {**self.right, name: value}
            for name, values in self.wrong.items()
            for place, value in enumerate(values)
        }
        return {**found, "": self.right}


def of_lease(statement: str) -> Change:
    """Return a change of the second item, which is held by the second token."""
    arguments: dict[str, Any] = {"id": 2, "token": 2, "now": EXPIRY - 1}
    calls: dict[str, Statement] = {
        "renew_lease": lambda t, a: t.renew_lease(a["id"], a["token"], expires_at=EXPIRY + 9, now=a["now"]),
        "end_lease": lambda t, a: t.end_lease(
            a["id"], a["token"], status=WorkStatus.PENDING, retries=1, error="", now=a["now"]
        ),
        "holds_lease": lambda t, a: t.holds_lease(a["id"], a["token"], now=a["now"]),
    }
    rows = 0 if statement == "holds_lease" else 1
    return Change(calls[statement], arguments, rows, id=(1, 3, 4), token=(1, 3), now=(EXPIRY, EXPIRY + 1))


def of_job(call: Statement, rows: int = 1) -> Change:
    """Return a change of the second job, which runs under its second claim."""
    return Change(call, {"job": 2, "claim": 2}, rows, job=(1, 3, 4), claim=(1, 3))


def of_key(call: Statement, **right: Any) -> Change:
    """Return a change of the second key."""
    found = {"key": "s/2", "token": 7, "owner": "owner 2", **right}
    return Change(call, found, key=("s/1", "s/3", "u/2"), token=(6, 8), owner=("owner 1", "owner 3"))


OF_JOBS: Final[dict[str, tuple[Statement, int]]] = {
    "set_executor": (lambda t, a: t.set_executor(a["job"], a["claim"], pid=7, process_start="7", now=NOW), 1),
    "record_exit": (lambda t, a: t.record_exit(a["job"], a["claim"], exit_code=3, now=NOW), 1),
    "holds_job": (lambda t, a: t.holds_job(a["job"], a["claim"]), 0),
    "fence_job": (lambda t, a: t.fence_job(a["job"], a["claim"], now=NOW), 1),
    "end_claim": (lambda t, a: t.end_claim(a["job"], a["claim"], status=JobStatus.DONE, error="", now=NOW), 3),
}
"""What only the claim of a running job may do, and how many rows differ then."""

CHANGES: Final[dict[str, Change]] = {
    "renew_lease": of_lease("renew_lease"),
    "end_lease": of_lease("end_lease"),
    "holds_lease": of_lease("holds_lease"),
    "expire_leases": Change(
        lambda t, a: t.expire_leases(
            [Expiry(a["id"], a["token"], a["expires_at"], WorkStatus.PENDING, 1, "")], now=EXPIRY
        ),
        {"id": 2, "token": 2, "expires_at": EXPIRY},
        id=(1, 3, 4),
        token=(1, 3),
        expires_at=(EXPIRY - 1, EXPIRY + 1),
    ),
    "change_status": Change(
        lambda t, a: t.change_status(a["task"], expected=a["expected"], status=TaskStatus.FAILED, now=NOW),
        {"task": "b", "expected": TaskStatus.CREATED},
        task=("c", "no such task"),
        expected=(TaskStatus.RUNNING, TaskStatus.CANCELLED),
    ),
    "change_stage": Change(
        lambda t, a: t.change_stage(
            a["task"], expected=a["expected"], entered_at=a["entered_at"], stage="ship", now=NOW + 9
        ),
        {"task": "b", "expected": "build", "entered_at": NOW + 2},
        task=("a", "c", "d"),
        expected=("check", "aaa"),
        entered_at=(NOW + 1, NOW + 3),
    ),
    "insert_task": Change(
        lambda t, a: t.insert_task(Task(a["task"], a["key"], TaskStatus.CREATED, "", NOW, NOW, NOW)),
        {"task": "z", "key": "K-z"},
        task=("b",),
        key=("K-b",),
    ),
    **{name: of_job(call, rows) for name, (call, rows) in OF_JOBS.items()},
    **{
        f"{name} of what has ended": Change(call, {"job": 1, "claim": 1}, rows, job=(5,))
        for name, (call, rows) in OF_JOBS.items()
    },
    "record_exit twice": Change(lambda t, a: t.record_exit(a["job"], 1, exit_code=3, now=NOW), {"job": 1}, job=(3,)),
    "set_dead_ticks": of_job(
        lambda t, a: t.set_dead_ticks("r", [DeadTicks(a["job"], a["claim"], 7)]) or a["claim"] == 2 == a["job"]
    ),
    "forget_dead_ticks": Change(
        lambda t, a: t.set_dead_ticks(a["reaper"], [DeadTicks(a["job"], 2, 0)]) or a == {"job": 2, "reaper": "r"},
        {"job": 2, "reaper": "r"},
        job=(4,),
        reaper=("q", "t"),
    ),
    "claim_job of a cancelled task": Change(
        lambda t, a: t.claim_job([a["agent"]], monitor_pid=1, monitor_start="1", now=NOW) is None,
        {"agent": "late 1"},
        2,  # the job, and the row of the audit trail
    ),
    "delete_outbox": Change(
        lambda t, a: t.delete_outbox(entry_of(a["id"], job_id=a["job"], claim=a["claim"])),
        {"id": 2, "job": 2, "claim": 1},
        id=(1, 3, 9),
        job=(1, 3),
        claim=(0, 2),
    ),
    "take_outbox": Change(
        lambda t, a: t.take_outbox(
            entry_of(a["id"], job_id=a["job"], claim=a["claim"]), expected=a["expected"], taken_by="me"
        ),
        {"id": 2, "job": 2, "claim": 1, "expected": "sender"},
        id=(1, 3, 9),
        job=(1, 3),
        claim=(0, 2),
        expected=(None, "other", "zzz"),
    ),
    "claim_key": Change(
        lambda t, a: t.claim_key(key_of(2, KeyStatus.IN_DOUBT), expected=expected_key(**a)),
        {"token": 7, "owner": "owner 2", "status": KeyStatus.EXECUTING, "claim_expires_at": EXPIRY + 2},
        token=(6, 8),
        owner=("owner 1", "owner 3"),
        status=(KeyStatus.IN_DOUBT, KeyStatus.DONE),
        claim_expires_at=(EXPIRY + 1, EXPIRY + 3, None),
    ),
    "insert_key": Change(lambda t, a: t.claim_key(key_of(a["place"]), expected=None), {"place": 9}, place=(1, 2, 4)),
    "renew_claim": of_key(lambda t, a: t.renew_claim(a["key"], a["token"], a["owner"], expires_at=EXPIRY + 99)),
    "end_key": of_key(
        lambda t, a: t.end_key(
            a["key"], a["token"], a["owner"], status=KeyStatus.DONE, result=b"new", expires_at=EXPIRY
        )
    ),
    "delete_key": of_key(
        lambda t, a: t.delete_key(a["key"], a["token"], a["owner"], status=a["status"]), status=KeyStatus.EXECUTING
    ),
    "delete_key of another status": Change(
        lambda t, a: t.delete_key("s/4", 9, "owner 4", status=a["status"]),
        {"status": KeyStatus.DONE},
        status=(KeyStatus.EXECUTING, KeyStatus.FAILED, KeyStatus.IN_DOUBT),
    ),
    "renew_claim of what has ended": Change(
        lambda t, a: t.renew_claim(f"s/{a['place']}", 5 + a["place"], f"owner {a['place']}", expires_at=EXPIRY + 9),
        {"place": 3},
        place=(4, 5),
    ),
    "delete_key of what is executed": Change(
        lambda t, a: t.delete_key("s/2", 7, "owner 2", status=a["status"]),
        {"status": KeyStatus.EXECUTING},
        status=(KeyStatus.DONE, KeyStatus.FAILED),
    ),
    "delete_expired_keys": Change(
        lambda t, a: t.delete_expired_keys(a["scope"], now=a["now"], after=a["after"], limit=99)[0],
        {"scope": "s", "now": EXPIRY + 4, "after": 0},
        scope=("r", "v"),
        now=(EXPIRY + 3,),
        after=(4, 99),
    ),
    "end_delivery": Change(
        lambda t, a: t.end_delivery(a["number"], status=DeliveryStatus.HANDLED, error=""),
        {"number": 2},
        number=(1, 4, 9),
    ),
    "accept_delivery": Change(
        lambda t, a: t.accept_delivery(delivery_of(9, **a)),
        {"source": "forge", "identity": "new"},
        identity=("1", "2"),
    ),
    "delete_deliveries": Change(
        lambda t, a: t.delete_deliveries(before=a["before"], limit=99),
        {"before": NOW + 2},
        before=(NOW + 1, NOW),
    ),
    "delete_deliveries, all that are old": Change(lambda t, _: t.delete_deliveries(before=NOW + 9, limit=99), {}),
    "insert_source": Change(
        lambda t, a: t.insert_source(TaskSource(a["task"], "r", "z")), {"task": "f"}, task=("a", "b")
    ),
    "set_sha": Change(
        lambda t, a: t.set_sha(a["repo"], a["branch"], a["sha"]),
        {"repo": "r", "branch": "y", "sha": "new"},
        repo=("q", "s"),
        branch=("w", "z", "cancelled"),
        sha=("s2",),
    ),
    "delete_state": Change(
        lambda t, a: t.delete_state(a["group"], a["key"]), {"group": "g", "key": "a"}, group=("f", "i"), key=("0", "d")
    ),
    "delete_states": Change(
        lambda t, a: t.delete_states(a["group"], below=a["below"], limit=a["limit"]),
        {"group": "g", "below": "b", "limit": 9},
        group=("f", "i"),
        below=("a",),
        limit=(0,),
    ),
    "delete_states, one": Change(lambda t, _: t.delete_states("g", below="z", limit=1), {}),
    "put_state": Change(lambda t, a: t.put_state(StateEntry("g", a["key"], b"9")) or True, {"key": "b"}),
    "put_states": Change(
        lambda t, a: t.put_states([StateEntry("g", key, b"9") for key in a["keys"]]) or True, {"keys": ("a", "b")}, 2
    ),
    "insert_cycle": Change(lambda t, a: t.insert_cycle(Cycle(a["id"], "n", NOW)), {"id": "9"}, id=("2",)),
    "delete_checkpoints": Change(
        lambda t, a: t.delete_checkpoints(a["task"], a["below"], a["limit"]),
        {"task": "b", "below": 2, "limit": 9},
        2,  # a checkpoint, and its evidence
        task=("d", "e"),
        below=(1,),
        limit=(0,),
    ),
    "delete_checkpoints, one": Change(lambda t, _: t.delete_checkpoints("b", 3, 1), {}, 2),
    "add_usage": Change(lambda t, a: t.add_usage(a["scope"], Usage(1, 1, 1, 1)) or True, {"scope": "s"}),
    "touch_keys": Change(
        lambda t, a: t.touch_keys({a["key"]: a["now"]}) or a == {"key": "s/4", "now": NOW + 5},
        {"key": "s/4", "now": NOW + 5},
        key=("s/9", "s/1"),
        now=(NOW + 4, NOW + 3),
    ),
}
"""The changes, by name."""


def plain(answer: Any) -> Any:
    """Return an answer that JSON can hold, or what it looks like."""
    try:
        return json.loads(json.dumps(answer))
    except TypeError:
        return repr(answer)


class Within:
    """All that a store can be asked, within a transaction: queries see what is not committed."""

    def __init__(self, store: Any, transaction: Any) -> None:
        """Keep both."""
        self._store, self._transaction = store, transaction

    def __getattr__(self, name: str) -> Any:
        """Return what the transaction has, or a query of the store on the same connection."""
        if hasattr(self._transaction, name):
            return getattr(self._transaction, name)
        return functools.partial(getattr(type(self._store), name), self._transaction)


class UndoneError(Exception):
    """The transaction is to be undone."""


def play_statements(
    marks: Marks, database: str, parts: dict[str, str], steps: list[Any], known: list[dict[str, Any]]
) -> None:
    """Ask for each change and each query, among rows that others have."""
    assert isinstance(known, list)
    clock = ScriptClock()
    with open_store(database) as store:
        leases: LeaseManager = made(parts["leases"], store, clock=clock)
        queue: JobQueue = made(parts["jobs"], store, clock=clock)
        perform(marks, clock, steps, StatementSteps(store, lambda: fill(store, leases, queue, clock)).do)


class StatementSteps(Steps):
    """The steps: a change that is undone, or a query."""

    def __init__(self, store: Any, fill_it: Callable[[], None]) -> None:
        """Keep the store, and how it is filled."""
        self.store, self.fill_it = store, fill_it

    def fill(self) -> None:
        """Fill the store."""
        self.fill_it()

    def change(self, name: str, wrong: str, rows: int) -> dict[str, Any]:
        """Ask for a change; return whether it was done, and how many rows differ."""
        asked, outcome = CHANGES[name], dict[str, Any](rows=rows)
        try:
            with self.store.transaction() as transaction:
                before = rows_in(transaction)
                outcome["is_done"] = bool(asked.statement(transaction, asked.cases()[wrong]))
                after = rows_in(transaction)
                outcome["rows"] = max((before - after).total(), (after - before).total())
                raise UndoneError  # noqa: TRY301 - whatever was done is undone
        except UndoneError:
            return outcome

    def ask(self, name: str) -> dict[str, Any]:
        """Ask a query."""
        answer = None
        try:
            with self.store.transaction() as transaction:
                answer = QUERIES[name][0](Within(self.store, transaction))
                raise UndoneError  # noqa: TRY301 - as above
        except UndoneError:
            return {"answer": plain(answer)}

    def cost(self, name: str) -> dict[str, Any]:
        """Count the steps of SQLite's machine for a statement, alone and among many other rows."""
        counted: list[int] = []
        try:
            with self.store.transaction() as transaction:
                asked, within = COSTS[name], Within(self.store, transaction)
                counted.append(asked.steps(within))
                asked.add_rows(transaction)
                counted.append(asked.steps(within))
                raise UndoneError  # noqa: TRY301 - as above
        except UndoneError:
            return {"grows": counted if counted[1] > counted[0] + STEPS_MORE else False}


def of_statements() -> Script:
    """Say of each statement: what names another row changes nothing."""
    script = Script().then("fill")
    for name, change in CHANGES.items():
        for wrong in change.cases():
            script.then("change", name=name, wrong=wrong, rows=change.rows)
    for name in QUERIES:
        script.then("ask", name=name)
    for name in COSTS:
        script.then("cost", name=name)
    return script
