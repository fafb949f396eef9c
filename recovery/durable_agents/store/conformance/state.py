"""The promises about grouped state and committed cycles."""

from __future__ import annotations

import contextlib

from durable_agents.errors import RecoveryError
from durable_agents.store.conformance.base import STRANGE_TEXTS, ConformanceBase, UndoneError, raised
from durable_agents.store.rows import Cycle, CycleEntry, StateEntry


class StateConformance(ConformanceBase):
    """Grouped state and cycles."""

    def test_an_empty_group_has_nothing(self) -> None:
        """Every read of a new store finds nothing and raises nothing."""
        assert self.store.state("g", "k") is None
        assert self.store.state_entries("g") == []
        assert self.store.state_count("g") == 0
        assert self.store.cycles() == []
        assert self.store.cycle_entries("c") == []

    def test_an_entry_comes_back_as_it_was_put_in(self) -> None:
        """Any text is a key or a group, and a second put under a key replaces the first."""
        for number, key in enumerate(STRANGE_TEXTS):
            for value in (b'"first"', b'{"n":%d}' % number):
                self._put(StateEntry("g", key, value), StateEntry(key, "k", value))
            assert self.store.state("g", key) == StateEntry("g", key, b'{"n":%d}' % number)
            assert self.store.state_entries(key) == [StateEntry(key, "k", b'{"n":%d}' % number)]
        assert self.store.state_count("g") == len(STRANGE_TEXTS)
        assert [entry.key for entry in self.store.state_entries("g")] == sorted(STRANGE_TEXTS)

    def test_groups_do_not_mix(self) -> None:
        """A key belongs to its group alone, whatever the two are made of."""
        self._put(StateEntry("a", "bc", b"1"), StateEntry("ab", "c", b"2"))
        with self.store.transaction() as transaction:
            assert transaction.delete_state("a", "bc")
            assert not transaction.delete_state("a", "bc")
            assert transaction.state("ab", "c") == StateEntry("ab", "c", b"2")
        assert self.store.state_count("a") == 0
        assert self.store.state_count("ab") == 1

    def test_entries_come_in_pages(self) -> None:
        """A page begins behind the given key and ends at the limit."""
        self._put(*(StateEntry("g", f"{number:03d}", b"0") for number in range(25)))
        page = self.store.state_entries("g", after="009", limit=10)
        assert [entry.key for entry in page] == [f"{number:03d}" for number in range(10, 20)]

    def test_entries_below_a_key_are_deleted_from_the_smallest_on(self) -> None:
        """The smallest keys of one group are deleted, up to the limit."""
        self._put(*(StateEntry("g", f"{number:03d}", b"0") for number in range(10)), StateEntry("h", "000", b"0"))
        with self.store.transaction() as transaction:
            assert transaction.delete_states("g", below="007", limit=4) == 4
        assert [entry.key for entry in self.store.state_entries("g")] == [f"{number:03d}" for number in range(4, 10)]
        with self.store.transaction() as transaction:
            assert transaction.delete_states("g", below="007", limit=100) == 3
            assert transaction.delete_states("nobody's", below="9", limit=100) == 0
        assert self.store.state_count("g") == 3
        assert self.store.state_count("h") == 1

    def test_state_that_was_rolled_back_is_not_there(self) -> None:
        """A put or delete is undone by a block that raises.

        The next store sees the committed ones.
        """
        self._put(StateEntry("g", "kept", b"1"))
        with contextlib.suppress(UndoneError), self.store.transaction() as transaction:
            transaction.put_state(StateEntry("g", "new", b"1"))
            transaction.delete_state("g", "kept")
            raise UndoneError
        other = self.reopened()
        assert other.state_entries("g") == [StateEntry("g", "kept", b"1")]
        other.close()

    def test_a_cycle_is_committed_once(self) -> None:
        """The id of a cycle is taken once, its name any number of times.

        Its entries come back in their order.
        """
        entries = [CycleEntry("1", place, "finding", b'{"n":%d}' % place) for place in (1, 2, 3)]
        with self.store.transaction() as transaction:
            assert transaction.insert_cycle(Cycle("1", "qa", 5))
            transaction.insert_cycle_entries(entries)
        with self.store.transaction() as transaction:
            assert not transaction.insert_cycle(Cycle("1", "other", 6))
            assert transaction.insert_cycle(Cycle("2", "qa", 7))
        assert self.store.cycles() == [Cycle("1", "qa", 5), Cycle("2", "qa", 7)]
        assert self.store.cycles(after="1", limit=1) == [Cycle("2", "qa", 7)]
        assert self.store.cycle_entries("1") == entries
        assert self.store.cycle_entries("1", after=1, limit=1) == entries[1:2]

    def test_a_cycle_without_a_marker_has_no_entries(self) -> None:
        """The store refuses entries of a cycle that it does not know."""

        def insert() -> None:
            with self.store.transaction() as transaction:
                transaction.insert_cycle_entries([CycleEntry("nobody's", 1, "finding", b"0")])

        raised(insert, RecoveryError)
        assert self.store.cycle_entries("nobody's") == []

    def _put(self, *entries: StateEntry) -> None:
        with self.store.transaction() as transaction:
            transaction.put_state(entries[0])
            transaction.put_states(entries[1:])
