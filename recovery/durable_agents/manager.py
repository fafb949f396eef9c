"""What every manager is: something that works on a store which it was given, or has opened and will close."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from durable_agents.clock import Clock, SystemClock
from durable_agents.store import Store, store_for

if TYPE_CHECKING:
    import os


class Manager:
    """The beginning and the end of a manager. Give it a store, or the path of a database file, which is then its own.

    Raises InvalidSetting, and any StoreError when it opens the file.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        db_path: str | os.PathLike[str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Use ``store``, or the store at ``db_path``; exactly one of them."""
        self._store, self._owns_store = store_for(store, db_path)
        self._clock: Clock = SystemClock() if clock is None else clock

    @property
    def store(self) -> Store:
        """The store that this writes to."""
        return self._store

    @property
    def clock(self) -> Clock:
        """What ages and expiries are measured by."""
        return self._clock

    def __enter__(self) -> Self:
        """Return it; it closes at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the store if this has opened it. Closing twice is fine."""
        if self._owns_store:
            self._store.close()
