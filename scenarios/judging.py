"""Judge a run by the model: what its history and its tables say, and what the model allows.

An agent marks each step that it does with what it was to do and when, and what came of it
(``perform``). The model does the same steps. A step without an ack may have happened or not, so
both ways are followed, and the tables have to be those of one of them.

A finding is named by the promise that is broken, such as ``model:lease-renewed-after-expiry``.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import sqlite3
from typing import TYPE_CHECKING, Any, Final, TypeVar

from durable_agents.errors import RecoveryError
from pytest_chaos import Finding

from scenarios.model.states import SECOND, Moment, Outcome, Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_chaos import History, Marks, Run
    from pytest_chaos.model.values import Mark

    from scenarios.model.states import Model

AnyModel = TypeVar("AnyModel", bound="Model")

BEGINNING: Final = 1_700_000_000 * SECOND
STEP: Final = "step"
SKIPPED: Final = {"skipped": True}

ACCEPTED: Final = {
    "renew": "lease-renewed",
    "complete": "lease-completed",
    "fail": "lease-failed",
    "release": "lease-released",
    "save": "checkpoint-saved",
    "acquire": "lease-granted",
}
"""What was done though it had to be refused, by operation."""

WHY: Final = {
    "LeaseExpired": "after-expiry",
    "LeaseLost": "after-loss",
    "AlreadyFinished": "after-the-end",
    "InvalidDuration": "for-no-time",
    "JobLost": "after-loss",
    "RequestConflict": "for-another-request",
}
"""Why it had to be refused, by error."""

BROKEN: Final = {
    "acquire.items": "order-not-by-priority-and-age",
    "acquire.tokens": "token-not-risen",
    "acquire.retries": "retry-not-counted",
    "sweep.expired_found": "expiry-not-at-its-moment",
    "sweep.recovered": "retries-not-as-promised",
    "sweep.failed": "retries-not-as-promised",
    "fail.status": "retries-not-as-promised",
    "work_items.retries": "retry-not-counted",
    "work_items.error": "error-does-not-say-it",
    "work_items.token": "token-not-risen",
    "checkpoints.row": "checkpoints-are-others",
    "expiries.count": "expiries-not-audited-once",
    "change.is_done": "statement-not-fenced",
    "change.rows": "statement-not-fenced",
    "ask.answer": "query-finds-others",
    "cost.grows": "cost-grows-with-what-has-ended",
    "look.dead": "dead-streak-not-as-promised",
    "look.queued": "job-reaped-otherwise",
    "look.done": "job-reaped-otherwise",
    "look.failed": "job-reaped-otherwise",
    "jobs.dead_ticks": "dead-streak-not-as-promised",
    "reconcile.looked": "task-not-due-as-promised",
    "ask.output": "key-covers-otherwise",
    "ask.is_hit": "key-covers-otherwise",
    "run.due_at": "back-off-not-as-promised",
}
"""The promise that is broken where an outcome or a column differs; else it is named by both."""


class Script:
    """Steps in their order, each at a moment of a clock that stands still between them."""

    def __init__(self) -> None:
        """Begin at a fixed moment."""
        self.steps: list[list[Any]] = []
        self.moment = Moment(BEGINNING, 0)

    def then(self, operation: str, /, **arguments: Any) -> Script:
        """Add a step, at this moment."""
        self.steps.append([operation, self.moment, arguments])
        return self

    def wait(self, duration_s: float, *, but_us: int = 0) -> Script:
        """Let time pass, for both clocks."""
        step = round(duration_s * SECOND) - but_us
        self.moment = Moment(self.moment.now + step, self.moment.monotonic + step)
        return self

    def set_clock(self, by_s: float, *, but_us: int = 0) -> Script:
        """Set the wall clock forward or back; the monotonic one stays."""
        self.moment = Moment(self.moment.now + round(by_s * SECOND) - but_us, self.moment.monotonic)
        return self

    def states(self, model: AnyModel) -> AnyModel:
        """Return what the model is after all steps, each of which happened."""
        for operation, moment, arguments in self.steps:
            model.do(operation, Moment(*moment), arguments)
        return model


class ScriptClock:
    """The clock of an agent that does steps: it stands at the moment of the step."""

    moment = Moment(BEGINNING, 0)

    def now(self) -> int:
        """Return the wall clock's time."""
        return self.moment.now

    def monotonic(self) -> int:
        """Return the monotonic clock's reading."""
        return self.moment.monotonic


class NeverHeldError(Exception):
    """The step is passed over: who was granted what it needs was killed before it knew, say."""


SPECIAL: Final[Mapping[str, Any]] = {
    "$nan": float("nan"),
    "$inf": float("inf"),
    "$surrogate": "\ud800",
    "$bytes": b"bytes",
    "$object": object(),
    "$tuple": (1,),
}
"""Values that no JSON can hold, by their names in a script."""


class Steps:
    """The steps of a script, done on the core: a method for each operation of the model."""

    def do(self, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        """Do one step; return its outcome."""
        outcome: dict[str, Any] | None = getattr(self, operation)(**arguments)
        return outcome

    def bad(self, call: str, error: str, **arguments: Any) -> dict[str, Any] | None:
        """Do what must be refused with this error, and change nothing."""
        given = {
            name: SPECIAL.get(value, value) if isinstance(value, str) else value for name, value in arguments.items()
        }
        outcome = self.do(call, given)
        return {"accepted": repr(outcome), "not": error}


def perform(marks: Marks, clock: ScriptClock, steps: Sequence[Any], do: Callable[[str, dict[str, Any]], Any]) -> None:
    """Do the steps that no earlier agent has begun, each between its intent and its ack.

    A refusal is an outcome, too: the name of its error.
    """
    for number, (operation, moment, arguments) in steps:
        clock.moment = Moment(*moment)
        value = {"do": operation, "at": moment, "with": arguments}
        marks.intent(STEP, number, value=value)
        try:
            outcome = do(operation, arguments) or {}
        except RecoveryError as error:
            outcome = {"refused": type(error).__name__}
        except NeverHeldError:
            outcome = SKIPPED
        except Exception as error:  # noqa: BLE001 - whatever the core raises: the model says what it may
            outcome = {"raised": f"{type(error).__name__}: {error}"}
        marks.ack(STEP, number, value=outcome)
    marks.ack("played")


def play(chaos: Run, target: str, script: Script, name: str = "player", **kwargs: Any) -> None:
    """Let an agent play a script; if it is killed, another goes on behind the last begun.

    Each is told what the others before it have acknowledged.
    A signal that no fault has sent is a fault of the core.
    """
    for incarnation in itertools.count():
        begun = len(chaos.history.select("intent", STEP))
        known = [mark.value for mark in chaos.history.acknowledged(STEP)]
        steps = list(enumerate(script.steps))[begun:]
        agent = chaos.spawn(target, kwargs={**kwargs, "steps": steps, "known": known}, name=f"{name}-{incarnation}")
        if agent.wait_exit(timeout_s=60).signal is None:
            break
        if not agent.ended_by_fault:
            chaos.expect("only planned signals end the one who plays", observed=agent.state, holds=False)
            break


def judge(chaos: Run, model: Model, database: Path) -> None:
    """Expect outcomes and tables that the model allows, of a script that was played to its end."""
    if not chaos.history.acknowledged("played"):
        chaos.inconclusive("the script was not played to its end")
    chaos.check(
        check_model(chaos.history, model, lambda: read_tables(database, model.tables())),
        expect="what the model allows",
    )


def check_model(history: History, model: Model, read: Callable[[], Tables]) -> Iterator[Finding]:
    """Find the first outcome that the model does not allow, and tables that are none of its own."""
    states = [model]
    for step in history.operations(STEP):
        value = step.intent.value
        operation, arguments = value["do"], value["with"]
        if step.ack is not None and step.ack.value == SKIPPED:
            continue
        moment = Moment(*value["at"])
        if step.ack is None:
            for state in list(states):
                for part in state.parts(operation, arguments):
                    states.append(copy.deepcopy(state))
                    states[-1].do(operation, moment, part)
            continue
        after = copy.deepcopy(states)
        outcomes = [state.do(operation, moment, arguments) for state in after]
        allowed = [state for state, outcome in zip(after, outcomes, strict=True) if outcome == outcome_in(step.ack)]
        if not allowed:
            text = f"{operation} {arguments} at {value['at']} gave {outcome_in(step.ack)}; the model: {outcomes[0]}"
            signature = f"model:{broken(operation, outcomes[0], outcome_in(step.ack))}"
            yield Finding(signature=signature, text=text, checker="check_model", orders=(step.ack.order,))
        states = allowed or after
    yield from check_tables(read(), [state.tables() for state in states])


def outcome_in(ack: Mark) -> Outcome:
    """Return what a step gave, without the leases that go to the next agent."""
    return {name: value for name, value in ack.value.items() if name != "leases"}


def broken(operation: str, expected: Outcome, seen: Outcome) -> str:
    """Return the promise that is broken when this was seen and not that."""
    if "raised" in seen:
        return f"{operation}-raised"
    if "refused" in expected and "refused" not in seen:
        done = ACCEPTED.get(operation, f"{operation}-accepted")
        return f"{done}-{WHY.get(expected['refused'], 'though-refused')}"
    if operation == "bad" and seen.get("refused") != expected.get("refused"):
        return "bad-input-accepted" if "accepted" in seen else "bad-input-refused-otherwise"
    if "refused" in seen:
        return f"{operation}-refused-otherwise" if "refused" in expected else f"{operation}-refused-without-reason"
    name = next(name for name in (*expected, *seen) if expected.get(name) != seen.get(name))
    return BROKEN.get(f"{operation}.{name}", f"{operation}-{name.replace('_', '-')}")


def check_tables(seen: Tables, allowed: Sequence[Tables]) -> Iterator[Finding]:
    """Find rows that are not those of the state that is nearest to them."""
    found = [list(differences(seen, tables)) for tables in allowed]
    for signature, text in min(found, key=len)[:5]:
        yield Finding(signature=f"model:{signature}", text=text, checker="check_tables")


def differences(seen: Tables, allowed: Tables) -> Iterator[tuple[str, str]]:
    """Yield the promise and a sentence for each row that differs, of the tables that were seen."""
    for table in seen:
        rows = allowed[table]
        for key in sorted({*rows, *seen[table]}, key=repr):
            row, wanted = seen[table].get(key), rows.get(key)
            if row is None or wanted is None:
                signature = BROKEN.get(f"{table}.row", f"{table}-{'missing' if row is None else 'invented'}")
                yield signature, f"{table} {key} is {row}; the model: {wanted}"
                continue
            for name, value in wanted.items():
                if name in row and value != row[name]:
                    signature = BROKEN.get(f"{table}.{name}", f"{table}-{name.replace('_', '-')}")
                    yield signature, f"{name} of {table} {key} is {row[name]!r}; the model: {value!r}"


ROWS: Final[Mapping[str, str]] = {
    "tasks": "SELECT task_id, status FROM tasks",
    "work_items": (
        "SELECT work_item_id, status, retries, lease_token AS token, lease_holder AS holder, "
        "lease_expires_at AS expires_at, error FROM work_items"
    ),
    "checkpoints": "SELECT task_id || ' ' || sequence_number, snapshot FROM checkpoints",
    "jobs": (
        "SELECT job_id, agent, status, attempts, claim, coalesce((SELECT max(ticks) FROM job_dead_ticks AS d "
        "WHERE d.job_id = j.job_id AND d.claim = j.claim), 0) AS dead_ticks FROM jobs AS j"
    ),
    "stages": (
        "SELECT task_id, stage, stage_entered_at AS entered_at, coalesce((SELECT group_concat(before) FROM "
        "(SELECT before FROM task_audits AS a WHERE a.task_id = t.task_id AND event = 'stage_changed' "
        "ORDER BY audit_id)), '') AS left FROM tasks AS t"
    ),
    "ends": (
        "SELECT task_id, (SELECT count(*) FROM task_audits AS a WHERE a.task_id = t.task_id "
        "AND event = 'job_ended') AS count FROM tasks AS t"
    ),
    "keys": (
        "SELECT key, status, CAST(result AS TEXT) AS result, expires_at FROM idempotency_keys "
        "WHERE scope IN ('idempotency', 'tool')"
    ),
    "outputs": (
        "SELECT 'all', count(*) AS count FROM idempotency_keys WHERE scope NOT IN ('idempotency', 'tool') "
        "AND result IS NOT NULL"
    ),
    "runs": "SELECT job_id || ' ' || claim, exit_code FROM agent_runs",
    "inbox": "SELECT source || ' ' || identity, status, attempts FROM webhook_inbox",
    "outbox": "SELECT outbox_id, kind, job_id FROM outbox",
    "expiries": "SELECT 'all', count(*) AS count FROM task_audits WHERE event = 'lease_expired'",
}
"""How each table of the model is read: the first column is the key."""


def read_tables(database: Path, names: Iterable[str]) -> Tables:
    """Read these tables of the model with nothing but sqlite3."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return {name: dict(_rows(connection, ROWS[name])) for name in names}


def _rows(connection: sqlite3.Connection, statement: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    cursor = connection.execute(statement)
    names = [column[0] for column in cursor.description]
    for row in cursor:
        values = dict(zip(names, row, strict=True))
        yield row[0], {name: json.loads(value) if name == "snapshot" else value for name, value in values.items()}
