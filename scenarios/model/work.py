"""The model of work items, and of the leases on them: who may do what, until when."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scenarios.model.states import FOLLOWS, Holding, Model, Moment, Outcome, Refused, Tables, us

if TYPE_CHECKING:
    from collections.abc import Mapping

TTL_S: Final = (0.000_01, 7 * 24 * 3600.0)
"""The bounds of a lease's length."""

ENDED: Final = frozenset({"completed", "failed"})
"""The terminal statuses of a work item."""


class Held(NamedTuple):
    """A lease as its holder knows it. It is trusted until then by the holder's own clock."""

    work_item_id: int
    token: int
    ttl_s: float
    trusted_until: int


@dataclass
class Item:
    """A work item."""

    number: int
    task_id: str
    priority: int = 0
    max_retries: int = 3
    type: str = "work"
    status: str = "pending"
    retries: int = 0
    token: int = 0
    holder: str | None = None
    expires_at: int | None = None
    error: str = ""

    def end(self, status: str, error: str = "") -> None:
        """End its lease."""
        self.status, self.holder, self.expires_at, self.error = status, None, None, error

    def give_back(self, error: str = "") -> str:
        """End its lease after an attempt that failed: a retry, or the end without retries left."""
        remain = self.retries < self.max_retries
        self.retries += remain
        self.end("pending" if remain else "failed", error)
        return self.status


def trusted_until(began: int, ttl_s: float) -> int:
    """Return until when a holder trusts its lease: a tenth less than its length, 5 s at most."""
    return began + us(ttl_s - min(ttl_s * 0.1, 5.0))


class Work(Model):
    """Tasks, their checkpoints, their work items and the leases on them."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.statuses: dict[str, str] = {}
        self.trackers: dict[str, str] = {}
        self.audits: dict[str, list[str]] = {}
        self.bad_items: set[int] = set()
        self.items: dict[int, Item] = {}
        self.held: dict[int, Held] = {}
        self.saved: dict[str, list[Any]] = {}
        self.newest_token = 0
        self.swept = 0

    def create(self, _: Moment, task_id: str, tracker_key: str | None = None) -> Outcome:
        """Create a task; one that exists is returned as it is. A tracker key is of one task."""
        of_key = next((task for task, key in self.trackers.items() if key == tracker_key), task_id)
        if (task_id in self.statuses and self.trackers.get(task_id) != tracker_key) or of_key != task_id:
            raise Refused("TaskConflict")
        if task_id not in self.statuses:
            self.statuses[task_id] = "created"
            self.saved[task_id], self.audits[task_id] = [], ["created: None to created"]
            if tracker_key is not None:
                self.trackers[task_id] = tracker_key
        return {"status": self.statuses[task_id]}

    def tasks(self, _: Moment, status: str | None = None, after: str = "", limit: int = 100) -> Outcome:
        """List tasks in the order of their ids."""
        found = sorted(task for task, each in self.statuses.items() if status in {None, each} and task > after)
        return {"tasks": found[:limit]}

    def trail(self, _: Moment, task_id: str, limit: int = 100) -> Outcome:
        """Return the newest rows of a task's audit trail, oldest first."""
        return {"audits": self.audits[task_id][-limit:]}

    def item(self, _: Moment, number: int) -> Outcome:
        """Return the status of an item."""
        if number not in self.items:
            raise Refused("UnknownWorkItem")
        return {"status": self.items[number].status, "retries": self.items[number].retries}

    def set_status(self, _: Moment, task_id: str, expected: str, status: str) -> None:
        """Change the status of a task, if that may follow and it has the expected one."""
        if status not in FOLLOWS.get(expected, ()):
            raise Refused("InvalidTransition")
        if self.statuses[task_id] != expected:
            raise Refused("StatusConflict")
        self.statuses[task_id] = status
        self.audits[task_id].append(f"status_changed: {expected} to {status}")

    def enqueue(self, _: Moment, task_id: str, **item: Any) -> Outcome:
        """Add a pending item. ``max_retries`` counts retries, not attempts."""
        if task_id not in self.statuses:
            raise Refused("UnknownTask")
        number = len(self.items) + 1
        self.items[number] = Item(number, task_id, **item)
        return {"work_item_id": number}

    def acquire(
        self,
        moment: Moment,
        holder: str,
        ttl_s: float,
        limit: int = 1,
        task_id: str | None = None,
        type: str | None = None,  # noqa: A002 - the field's name
    ) -> Outcome:
        """Grant the pending items that come first: by priority, then by age; tokens rise."""
        self._require_length(ttl_s)
        pending = [item for item in self.items.values() if item.status == "pending"]
        wanted = [item for item in pending if task_id in {None, item.task_id} and type in {None, item.type}]
        wanted.sort(key=lambda item: (-item.priority, item.number))
        for item in wanted[:limit]:
            self.newest_token += 1
            item.status, item.token, item.holder = "in_progress", self.newest_token, holder
            item.expires_at = moment.now + us(ttl_s)
            until = trusted_until(moment.monotonic, ttl_s)
            self.held[item.token] = Held(item.number, item.token, ttl_s, until)
        return {
            "items": [item.number for item in wanted[:limit]],
            "tokens": [item.token for item in wanted[:limit]],
            "retries": [item.retries for item in wanted[:limit]],
            "expires_at": [item.expires_at for item in wanted[:limit]],
        }

    def renew(self, moment: Moment, token: int, ttl_s: float | None = None) -> Outcome:
        """Prolong a lease that is held; nobody renews one that has expired or was lost."""
        length_s = self._held(token).ttl_s if ttl_s is None else ttl_s
        self._require_length(length_s)
        item = self._require(moment, token)
        item.expires_at = moment.now + us(length_s)
        until = trusted_until(moment.monotonic, length_s)
        self.held[token] = Held(item.number, token, length_s, until)
        return {"expires_at": item.expires_at, "trusted_until": until}

    def complete(self, moment: Moment, token: int) -> None:
        """End an item as completed, for ever."""
        self._require(moment, token).end("completed")

    def release(self, moment: Moment, token: int) -> None:
        """Return an item to pending, which counts no retry."""
        self._require(moment, token).end("pending")

    def fail(self, moment: Moment, token: int, error: str) -> Outcome:
        """Return an item to pending, which counts a retry, or fail it without retries left."""
        return {"status": self._require(moment, token).give_back(error)}

    def save(self, moment: Moment, token: int, snapshot: Any, task_id: str | None = None) -> Outcome:
        """Save a checkpoint under a lease of an item of this task."""
        of_task = self.items[self._held(token).work_item_id].task_id
        if task_id not in {None, of_task}:
            raise Refused("InvalidWorkItem")
        self._require(moment, token)
        self.saved[of_task].append(snapshot)
        return {"sequence_number": len(self.saved[of_task])}

    def spoil(self, _: Moment, number: int) -> None:
        """Let an item be one that no sweep can end: it stops no other."""
        self.bad_items.add(number)

    def sweep(self, moment: Moment, batch: int = 0, batches: int = 0) -> Outcome:
        """Return every lease that has expired, oldest first; ``batches`` of ``batch``, or all.

        Each leaves one boundary checkpoint and one audit row, with holder, expiry and n/m.
        """
        expired = [item for item in self.items.values() if item.expires_at is not None]
        expired = [item for item in expired if (item.expires_at or 0) <= moment.now]
        expired.sort(key=lambda item: (item.expires_at, item.number))
        after = Counter[str]()
        for item in expired[: batches * batch or None]:
            if item.number in self.bad_items:
                after["bad"] += 1
                continue
            retry = item.retries + (item.retries < item.max_retries)
            error = Holding(repr(item.holder), item.expires_at, f" {retry}/{item.max_retries}")
            boundary = {"work_item_id": item.number, "lease_holder": item.holder, "lease_token": item.token}
            boundary |= {"lease_expires_at": item.expires_at, "retries": item.retries}
            holder = item.holder
            after[item.give_back(error)] += 1
            self.audits[item.task_id].append(f"lease_expired: {holder} to {item.status}")
            self.saved[item.task_id].append({**boundary, "status": item.status})
        self.swept += after["pending"] + after["failed"]
        return {"expired_found": after.total(), "recovered": after["pending"], "failed": after["failed"]}

    def parts(self, operation: str, arguments: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the batches that a killed sweep may have left: whole ones."""
        if operation != "sweep" or not (batch := arguments.get("batch", 0)):
            return [arguments]
        return [{"batch": batch, "batches": batches} for batches in range(1, 1 + len(self.items))]

    def beat(self, moment: Moment, token: int, times: int = 1) -> Outcome:
        """Renew by a heartbeat, which tells a loss, and goes on telling it."""
        is_lost = self._refusal_of(moment, token) is not None
        for _ in range(0 if is_lost else times):
            self.renew(moment, token)
        return {"is_lost": is_lost, "expires_at": None if is_lost else self._held_item(token).expires_at}

    def latest(self, _: Moment, task_id: str, before: int = 0) -> Outcome:
        """Return the newest checkpoint, or the newest with a smaller number."""
        if task_id not in self.saved:
            raise Refused("UnknownTask")
        saved = self.saved[task_id][: before - 1 if before else None]
        return {"number": len(saved), "snapshot": saved[-1] if saved else None}

    def checkpoints(self, _: Moment, task_id: str, after: int = 0, limit: int = 100) -> Outcome:
        """List checkpoints in the order of their numbers."""
        return {"numbers": list(range(after + 1, len(self.saved[task_id]) + 1))[:limit]}

    def refusal(self, moment: Moment, held: Held | Any) -> str | None:
        """Return the error that a holder must be given, or None: who may renew until when."""
        if moment.monotonic >= held.trusted_until:
            return "LeaseExpired"
        return self.refusal_by_the_store(moment, held)

    def refusal_by_the_store(self, moment: Moment, held: Held | Any) -> str | None:
        """Return the error of a holder that trusts its lease by its own clock, or None."""
        item = self.items[held.work_item_id]
        if item.token != held.token or item.expires_at is None:
            return "AlreadyFinished" if item.status in ENDED else "LeaseLost"
        return "LeaseExpired" if item.expires_at <= moment.now else None

    def _refusal_of(self, moment: Moment, token: int) -> str | None:
        return self.refusal(moment, self._held(token))

    def _held_item(self, token: int) -> Item:
        return self.items[self._held(token).work_item_id]

    def _require(self, moment: Moment, token: int) -> Item:
        if refusal := self.refusal(moment, self._held(token)):
            raise Refused(refusal)
        return self.items[self.held[token].work_item_id]

    def _held(self, token: int) -> Held:
        if token not in self.held:
            raise Refused("NeverGranted")
        return self.held[token]

    def _require_length(self, ttl_s: float) -> None:
        if not TTL_S[0] <= ttl_s <= TTL_S[1]:
            raise Refused("InvalidDuration")

    def tables(self) -> Tables:
        """Return tasks, work items, checkpoints, and the audit rows of expiries."""
        columns = ("status", "retries", "token", "holder", "expires_at", "error")
        numbered = [(task, place) for task, saved in self.saved.items() for place in range(1, len(saved) + 1)]
        return {
            "tasks": {task: {"status": status} for task, status in self.statuses.items()},
            "work_items": {
                number: {name: getattr(item, name) for name in columns} for number, item in self.items.items()
            },
            "checkpoints": {f"{task} {place}": {"snapshot": self.saved[task][place - 1]} for task, place in numbered},
            "expiries": {"all": {"count": self.swept}},
        }
