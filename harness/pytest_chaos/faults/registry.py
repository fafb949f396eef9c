"""The installed kinds of faults by name: entry points of the group ``pytest_chaos.faults``.

Ours are found like those of any distribution. A kind is imported when a plan names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Final

from pytest_chaos.errors import UsageError
from pytest_chaos.faults.kind import FaultKind

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP: Final = "pytest_chaos.faults"


class Registry(Mapping[str, FaultKind]):
    """A mapping from the name of a kind to the kind; its names are known without an import."""

    def __init__(self) -> None:
        self._loaded: dict[str, FaultKind] = {}

    @cached_property
    def _entries(self) -> dict[str, EntryPoint]:
        entries = {entry.name: entry for entry in entry_points(group=GROUP)}
        if "kill" not in entries:
            msg = "pytest-chaos must be installed with its entry points; got none of its faults. Install it again"
            raise UsageError(msg)
        return entries

    def __getitem__(self, kind: str) -> FaultKind:
        """Return the kind. Raises KeyError for an unknown name, UsageError for a broken kind."""
        if kind not in self._loaded:
            self._loaded[kind] = _load(self._entries[kind])
        return self._loaded[kind]

    def __contains__(self, kind: object) -> bool:
        """Return whether a kind of this name is installed, without loading it."""
        return kind in self._entries

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return how many kinds are installed."""
        return len(self._entries)


def _load(entry: EntryPoint) -> FaultKind:
    try:
        loaded = entry.load()
        kind = loaded() if isinstance(loaded, type) else loaded
    except Exception as error:
        msg = f"the fault {entry.name} must be importable; got {type(error).__name__}: {error}. Mend {entry.value}"
        raise UsageError(msg) from error
    if not isinstance(kind, FaultKind) or kind.kind != entry.name:
        msg = f"the fault {entry.name} must be a FaultKind of that kind; got {kind!r}. Mend {entry.value}"
        raise UsageError(msg)
    return kind


REGISTRY: Final = Registry()
"""Every fault that a plan can name."""
