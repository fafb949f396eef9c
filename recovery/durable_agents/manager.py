"""The base of all managers: a store that was given, or opened from a path and closed at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from durable_agents.clock import Clock, SystemClock
from durable_agents.store import Store, store_for

if TYPE_CHECKING:
    import os


class Manager:
    """A manager on ``store``, or on the database at ``db_path``, which it opens and closes.

    Raises InvalidSetting, and any StoreError on opening.
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
        """The store of this manager."""
        return self._store

    @property
    def clock(self) -> Clock:
        """The clock that measures ages and expiries."""
        return self._clock

    def __enter__(self) -> Self:
        """Return the manager, which closes at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the manager."""
        self.close()

    def close(self) -> None:
        """Close the store if this has opened it. Closing twice is fine."""
        if self._owns_store:
            self._store.close()
