"""What the core promises of the sync queue, as a script: when a push is due, and which one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from durable_agents import Roots, StateStore, SyncQueue
from durable_agents.errors import PushFailed
from durable_agents.state.sync_queue import SYNC_QUEUE_FILE, SYNC_QUEUE_KEY

from scenarios.judging import Script, ScriptClock, Steps, perform
from scenarios.model.pushes import BACKOFF_S, Queue
from scenarios.work.agents import made

if TYPE_CHECKING:
    from durable_agents.state.sync_queue import SyncEntry
    from pytest_chaos import Marks


def play_pushes(marks: Marks, root: str, parts: dict[str, str], steps: list[Any], known: list[dict[str, Any]]) -> None:
    """Do steps with a sync queue."""
    assert isinstance(known, list)
    roots, clock = Roots(root), ScriptClock()
    roots.make()
    with StateStore(db_path=roots.database) as state:
        perform(marks, clock, steps, QueueSteps(roots, state, clock, parts).do)


class QueueSteps(Steps):
    """The steps of a script, by the core's queue and a receiver that refuses some keys."""

    def __init__(self, roots: Roots, state: StateStore, clock: ScriptClock, parts: dict[str, str]) -> None:
        """Make the queue."""
        self.roots, self.state = roots, state
        self.failing: list[str] = []
        self.how = ""
        self.tried: list[str] = []
        self.queue: SyncQueue = made(parts["sync_queue"], roots, state, self.push, clock=clock, entries_max=ENTRIES_MAX)

    def push(self, entry: SyncEntry) -> None:
        """Receive a push, or refuse it."""
        self.tried.append(entry.key)
        if entry.key in self.failing and self.how == "raises":
            raise ZeroDivisionError
        if entry.key in self.failing:
            message = "refused"
            raise PushFailed(message)

    def enqueue(self, key: Any, agent: str = "agent", dispatch: Any = None) -> dict[str, Any]:
        """Append a push."""
        entry = self.queue.enqueue(agent, [dispatch or {"key": key}], key=key)
        assert (entry.key, entry.agent_id) == (key, agent)
        return {"attempts": entry.attempts}

    def drop(self, key: str) -> dict[str, Any]:
        """Remove an entry."""
        return {"was_there": self.queue.drop(key)}

    def run(self, failing: list[str], how: str = "refused") -> dict[str, Any]:
        """Push what is due."""
        self.failing, self.tried, self.how = failing, [], how
        found = self.queue.run_once()
        due_at = next((entry.next_attempt_at for entry in self.queue.entries()), None)
        return {"tried": self.tried, "pushed": found.pushed, "waiting": found.waiting, "due_at": due_at}

    def lose(self, copy: str) -> None:
        """Lose a copy: the file, or the row."""
        if copy == "file":
            (self.roots.state / SYNC_QUEUE_FILE).unlink()
            return
        store = self.state.store
        assert store is not None
        with store.transaction() as transaction:
            assert transaction.delete_state("sync_queue", SYNC_QUEUE_KEY)

    def waiting(self) -> dict[str, Any]:
        """Return what waits."""
        entries = self.queue.entries()
        return {"keys": [entry.key for entry in entries], "attempts": [entry.attempts for entry in entries]}


ENTRIES_MAX = 4


def model() -> Queue:
    """Return the model, with the bound that the agent gives the core."""
    return Queue(ENTRIES_MAX)


def of_pushes() -> Script:
    """Say when a push is due again, to the moment, and that no other overtakes it."""
    script = Script().then("run", failing=[])
    for key in ("a", "b", "c", "b"):
        script.then("enqueue", key=key)
    for bad in ({"key": "k" * 201}, {"key": "\u00e9"}, {"key": "\0"}, {"agent": ""}, {"agent": "a" * 201}):
        script.then("bad", call="enqueue", error="InvalidSyncEntry", **{"key": "z", **bad})
    for dispatch in ("text", "$nan"):
        script.then("bad", call="enqueue", error="InvalidSyncEntry", key="z", dispatch=dispatch)
    script.then("run", failing=["a"], how="raises")
    for pause_s in (*BACKOFF_S, BACKOFF_S[-1]):
        script.then("run", failing=[]).wait(pause_s, but_us=1).then("run", failing=[]).wait(0, but_us=-1)
        script.then("run", failing=["a"]).then("enqueue", key="a").then("waiting")
    script.then("lose", copy="file").then("waiting").then("enqueue", key="d").then("lose", copy="row").then("waiting")
    script.then("enqueue", key="e").then("enqueue", key="d").then("waiting")
    script.then("drop", key="c").then("drop", key="c").then("lose", copy="file").then("waiting")
    script.set_clock(-1000).then("run", failing=["a"]).then("run", failing=[])  # longer than any pause: it is due
    script.set_clock(BACKOFF_S[-1]).then("run", failing=["b"]).then("waiting").then("run", failing=[])
    return script.wait(1).then("run", failing=["d"]).wait(1).then("run", failing=[]).then("waiting")
