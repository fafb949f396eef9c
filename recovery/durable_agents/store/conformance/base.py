"""How a test of the suite gets its store, and what all of them use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from durable_agents.store.rows import Task, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents.store.protocol import Store

PAGE: Final = 100
STRANGE_TEXTS: Final = (
    "it's",
    'a "quoted" text',
    "two\nlines",
    "задача-7",
    "漢字 🙂",
    "; DROP TABLE tasks; --",
    "%_",
    " ",
    "\x7f",
    "feature/A-1",
)

ErrorT = TypeVar("ErrorT", bound=Exception)


class ConformanceBase:
    """A store per test. Derive and define the first two methods."""

    store: Store

    def new_store(self) -> Store:
        """Return a store in a new place, without any rows."""
        raise NotImplementedError

    def reopened(self) -> Store:
        """Return another store in the place of the newest ``new_store``.

        It stands for a store that another process opens later.
        """
        raise NotImplementedError

    def setup_method(self) -> None:
        """Make the store."""
        self.store = self.new_store()

    def teardown_method(self) -> None:
        """Close the store."""
        self.store.close()

    def _insert_task(self, task_id: str, tracker_key: str | None = None, *, stage: str = "") -> None:
        with self.store.transaction() as transaction:
            assert transaction.insert_task(a_task(task_id, tracker_key, stage=stage))

    def _change_status(self, task_id: str, expected: TaskStatus, status: TaskStatus) -> bool:
        with self.store.transaction() as transaction:
            return transaction.change_status(task_id, expected=expected, status=status, now=9)


class UndoneError(Exception):
    """Raised in a transaction, to see it undone."""


def a_task(task_id: str, tracker_key: str | None = None, *, stage: str = "") -> Task:
    """Return a new task."""
    return Task(task_id, tracker_key, TaskStatus.CREATED, stage, 1, 1, 1)


def raised(call: Callable[[], object], kind: type[ErrorT]) -> ErrorT:
    """Return the error of this kind that the call raises. Fails if it raises none."""
    try:
        call()
    except kind as error:
        return error
    message = f"{kind.__name__} must be raised; got no error."
    raise AssertionError(message)
