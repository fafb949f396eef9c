"""The clock and the store that the tests of this room share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from durable_agents import ManualClock, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents import SqliteStore


@pytest.fixture(name="clock")
def _clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(name="busy_timeout_s")
def _busy_timeout_s() -> float:
    """Return a timeout that no stall of the disk exhausts; tests of it set a shorter one."""
    return 30.0


@pytest.fixture(name="store")
def _store(tmp_path: Path, busy_timeout_s: float) -> Iterator[SqliteStore]:
    with open_store(tmp_path / "store.db", busy_timeout_s=busy_timeout_s) as store:
        yield store
