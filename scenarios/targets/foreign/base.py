"""What adapters of programs that nobody here wrote have in common."""

from __future__ import annotations

import importlib.util
import shutil
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_chaos import Finding

from scenarios.targets.databases import DAMAGED, LOST

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pytest_chaos import Mark, Marks

PHANTOM = "phantom"
MISTAKES = (ImportError, AttributeError, TypeError, NameError)
"""What an adapter with a mistake raises: that is no damage."""
ROW_BYTES = 5_000
"""More than a page, so that a value can be torn."""


class Foreign(ABC):
    """A program, and what it promises. ``source`` is where the promise stands.

    ``modules`` are Python packages and ``commands`` programs that must be here. An adapter derives
    from it and says how to write a key, and which keys are found afterwards.
    """

    name: ClassVar[str]
    promise: ClassVar[str]
    source: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    commands: ClassVar[tuple[str, ...]] = ()
    damage: ClassVar[tuple[type[BaseException], ...]] = (Exception,)
    """What the program raises for a store that it cannot read."""
    keys = 3

    def missing(self) -> str:
        """Return what is not installed here, or nothing."""
        modules = [f"the Python package {each}" for each in self.modules if importlib.util.find_spec(each) is None]
        return ", ".join(modules + [f"the program {each}" for each in self.commands if shutil.which(each) is None])

    @abstractmethod
    def found(self, directory: Path) -> Iterable[int]:
        """Return the keys that are there after a recovery. Raises what ``damage`` names."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Find damage, keys that were acknowledged and are gone, and keys that nobody put."""
        try:
            found = set(self.found(directory))
        except MISTAKES:
            raise
        except self.damage as error:
            yield Finding(signature=DAMAGED, text=f"{self.name} says: {type(error).__name__}: {error}")
            return
        yield from compared(found, marks)


class Store(Foreign):
    """A store in the program's own process: it is opened, keys are put one by one, it is closed."""

    @abstractmethod
    def opened(self, directory: Path) -> AbstractContextManager[Any]:
        """Open the store, and close it in the end."""

    @abstractmethod
    def put(self, store: Any, key: int, value: bytes) -> None:
        """Put a key durably, as the documentation says how."""

    @abstractmethod
    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Return all keys with their values."""

    def setup(self, directory: Path) -> None:
        """Make an empty store: a program's first start is not what is explored here."""
        with self.opened(directory):
            pass

    def run(self, directory: Path, marks: Marks) -> None:
        """Put the keys, and acknowledge each."""
        with self.opened(directory) as store:
            for key in range(1, self.keys + 1):
                marks.intent("put", key)
                self.put(store, key, value_of(key))
                marks.ack("put", key)

    def recover(self, directory: Path) -> None:
        """Open the store and close it, which is all the recovery that it has.

        What it cannot read is for the check to say, in the store's own words.
        """
        try:
            with self.opened(directory):
                pass
        except MISTAKES:
            raise
        except self.damage:
            return

    def found(self, directory: Path) -> Iterable[int]:
        """Return the keys, each with the value that was put."""
        with self.opened(directory) as store:
            found = dict(self.items(store))
        if torn := [key for key, value in found.items() if value != value_of(key)]:
            message = f"the value of {torn} is not what was put"
            raise ValueError(message)
        return found


def compared(found: set[int], marks: Sequence[Mark]) -> Iterator[Finding]:
    """Find what was acknowledged and is gone, and what is there and nobody put."""
    acknowledged = {int(mark.key or 0) for mark in marks if mark.kind == "ack"}
    intended = {int(mark.key or 0) for mark in marks if mark.kind == "intent"}
    if gone := sorted(acknowledged - found):
        yield Finding(signature=LOST, text=f"acknowledged and gone: {gone}")
    if phantoms := sorted(found - intended):
        yield Finding(signature=PHANTOM, text=f"there, and put by nobody: {phantoms}")


def value_of(key: int) -> bytes:
    """Return the value of a key, the same each time."""
    return f"value {key:06d} ".encode() * (ROW_BYTES // 13)
