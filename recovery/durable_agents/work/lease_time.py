"""The time of leases: a clock that nobody can set, for all processes of a machine.

Holders and sweepers must agree when a lease ends. By the wall clock they do not: one that is
set back keeps a dead holder's lease for as long, and one that is set on ends living ones. So leases
are measured by the time since boot (CLOCK_BOOTTIME, which counts while the machine sleeps, too).

Rows hold it as a moment of the calendar: the time since boot plus an *origin*, the wall clock's
time of boot as the first process saw it that used the database since then. The origin is kept in
the database, under the id of the boot, and is never changed. So the wall clock has no part in it on
one machine; between boots, and machines, the wall clocks of the first uses are compared.

A clock without ``boot`` (a test's) is compared by its ``now``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from durable_agents.store.rows import StateEntry

if TYPE_CHECKING:
    from durable_agents.clock import Clock, Microseconds
    from durable_agents.store import Store, Transaction
    from durable_agents.store.protocol import Reads

GROUP: Final = "boots"
"""The group of state with the origin of each boot: a row of some fifty bytes."""


class LeaseTime:
    """The time of leases in a store, by a clock. May be shared by threads."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """Read nothing yet."""
        self._store = store
        self._clock = clock
        self._origin: Microseconds | None = None

    def now(self) -> Microseconds:
        """Return the time of leases. ``prepare`` comes first; raises nothing."""
        return self._clock.now() if self._origin is None else self._origin + self._clock.monotonic()

    def prepare(self) -> None:
        """Make sure that this boot has an origin. Call it outside of any transaction.

        Raises any StoreError.
        """
        if self._origin is not None or (boot := boot_of(self._clock)) is None:
            return
        origin = _origin(self._store, boot)
        if origin is None:
            with self._store.transaction() as transaction:
                origin = _origin(transaction, boot)
                if origin is None:
                    origin = self._clock.now() - self._clock.monotonic()
                    transaction.put_state(StateEntry(GROUP, boot, str(origin).encode()))
        self._origin = origin


def time_in(transaction: Transaction, clock: Clock) -> Microseconds:
    """Return the time of leases within a transaction, in which a lease is checked."""
    boot = boot_of(clock)
    origin = None if boot is None else _origin(transaction, boot)
    return clock.now() if origin is None else origin + clock.monotonic()


def boot_of(clock: Clock) -> str | None:
    """Return the id of the boot since which a clock counts, or None for a clock that has none."""
    boot = getattr(clock, "boot", None)
    found: str | None = boot() if callable(boot) else None
    return found


def _origin(reads: Reads, boot: str) -> Microseconds | None:
    entry = reads.state(GROUP, boot)
    return None if entry is None else int(entry.value)
