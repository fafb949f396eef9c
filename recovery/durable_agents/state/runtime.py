"""Runtime state: the back-off deadline of each agent type, and its consecutive failures.

It survives a restart, so that a service which said "too many requests" a second ago is not asked
again at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from durable_agents.clock import Microseconds
from durable_agents.errors import CorruptState, InvalidState
from durable_agents.state.groups import StateGroup, StateStore, checked_entry, decoded

if TYPE_CHECKING:
    from durable_agents.store.rows import StateEntry

BACKOFF_KEY: Final = "backoff"
FAIL_COUNT_KEY: Final = "fail_count"


class RuntimeState(msgspec.Struct, frozen=True):
    """By agent type: the moment before which it is not asked, and its failures in a row."""

    backoff: dict[str, Microseconds] = {}
    fail_count: dict[str, int] = {}


def persist_runtime(state: StateStore, runtime: RuntimeState) -> bool:
    """Store both mappings in one transaction, durable when this returns True.

    Returns False without a store. An empty mapping has no row. Raises InvalidState for another
    type, or any StoreError.
    """
    entries = {key: _entry(key, getattr(runtime, key)) for key in (BACKOFF_KEY, FAIL_COUNT_KEY)}
    if (store := state.store) is None:
        return False
    with store.transaction() as transaction:
        for key, entry in entries.items():
            if entry is None:
                transaction.delete_state(StateGroup.RUNTIME, key)
            else:
                transaction.put_state(entry)
    return True


def load_runtime(state: StateStore) -> RuntimeState:
    """Return the stored runtime state, empty without any.

    Raises CorruptState, or any StoreError.
    """
    return RuntimeState(_loaded(state, BACKOFF_KEY), _loaded(state, FAIL_COUNT_KEY))


def _entry(key: str, value: dict[str, int]) -> StateEntry | None:
    entry = checked_entry(StateGroup.RUNTIME, key, value)
    try:
        return entry if decoded(entry, dict[str, int]) else None
    except CorruptState as error:
        message = f"{key} must be whole numbers by the name of an agent; got {value!r}. Convert them."
        raise InvalidState(message) from error


def _loaded(state: StateStore, key: str) -> dict[str, int]:
    store = state.store
    entry = None if store is None else store.state(StateGroup.RUNTIME, key)
    return {} if entry is None else decoded(entry, dict[str, int])
