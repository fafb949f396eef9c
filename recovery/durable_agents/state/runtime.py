"""Runtime state: until when which agent is left in peace after failures, and how often it failed in a row.

A restart that forgot it would ask a service again at once that had said "too many requests" a
second ago.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from durable_agents.clock import Microseconds
from durable_agents.errors import CorruptState, InvalidState
from durable_agents.state.groups import StateGroup, StateStore, checked_entry

if TYPE_CHECKING:
    from durable_agents.store.rows import StateEntry

BACKOFF_KEY: Final = "backoff"
FAIL_COUNT_KEY: Final = "fail_count"


class RuntimeState(msgspec.Struct, frozen=True):
    """By type of agent: ``backoff`` until which moment it is not asked, ``fail_count`` how often it failed in a row."""

    backoff: dict[str, Microseconds] = {}
    fail_count: dict[str, int] = {}


_decode: Final = msgspec.json.Decoder(dict[str, int]).decode


def persist_runtime(state: StateStore, runtime: RuntimeState) -> bool:
    """Keep both in one transaction; durable when this returns True, False without a store. What is empty has no row.

    Raises InvalidState for what is no such mapping, or any StoreError.
    """
    wanted = {BACKOFF_KEY: runtime.backoff, FAIL_COUNT_KEY: runtime.fail_count}
    entries = {key: _entry(key, value) for key, value in wanted.items()}
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
    """Return what was kept, nothing where nothing was. Raises CorruptState, or any StoreError."""
    return RuntimeState(_loaded(state, BACKOFF_KEY), _loaded(state, FAIL_COUNT_KEY))


def _entry(key: str, value: dict[str, int]) -> StateEntry | None:
    entry = checked_entry(StateGroup.RUNTIME, key, value)
    try:
        return entry if _decode(entry.value) else None
    except (ValueError, msgspec.MsgspecError) as error:
        message = f"Expected whole numbers by the name of an agent for {key} but got {value!r}; convert them."
        raise InvalidState(message) from error


def _loaded(state: StateStore, key: str) -> dict[str, int]:
    store = state.store
    entry = None if store is None else store.state(StateGroup.RUNTIME, key)
    try:
        return {} if entry is None else _decode(entry.value)
    except (ValueError, msgspec.MsgspecError) as error:
        message = f"Expected numbers by agent under {key!r} of 'runtime' but found others ({error}); delete the key."
        raise CorruptState(message) from error
