"""The test suite that every store passes, a third party's too.

Subclass it where pytest collects, and say how a store is made::

    class TestMyStore(StoreConformance):
        def new_store(self) -> Store:
            return MyStore(a_fresh_place())

        def reopened(self) -> Store:
            return MyStore(the_same_place())

It needs nothing but plain asserts: pytest calls ``setup_method`` and ``teardown_method`` of any
class. Each module has the promises about one room of the core, one promise to a method.
"""

from durable_agents.store.conformance.jobs import JobConformance
from durable_agents.store.conformance.keys import KeyConformance
from durable_agents.store.conformance.sources import SourceConformance
from durable_agents.store.conformance.state import StateConformance
from durable_agents.store.conformance.work import WorkConformance

__all__ = ["StoreConformance"]


class StoreConformance(WorkConformance, JobConformance, StateConformance, KeyConformance, SourceConformance):
    """All promises of a store."""
