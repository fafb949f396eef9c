"""The model of workspaces: what a start makes of status files, of a store, and of executors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from scenarios.model.states import Model, Moment, Tables

MISSING: Final = "none"
TORN: Final = "torn"
"""What a file says that is not there, or half there."""


@dataclass
class Workspace:
    """A workspace: what its file says, what the store says, and whether its executor lives.

    A file that is not ours, such as a link, is neither believed nor written.
    """

    file: str = MISSING
    stored: str | None = None
    lives: bool = False
    is_ours: bool = True


class Workspaces(Model):
    """Workspaces by name."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.workspaces: dict[str, Workspace] = {}

    def lay(self, _: Moment, name: str, **fields: str | bool) -> None:
        """Make a workspace; ``fields`` are those of Workspace."""
        self.workspaces[name] = Workspace(**fields)  # type: ignore[arg-type]

    def start(self, _: Moment) -> None:
        """Start an agent: files win, the dead have failed, the living go on."""
        for each in self.workspaces.values():
            is_read = each.is_ours and each.file not in {MISSING, TORN}
            now = each.file if is_read else each.stored
            if now == "running" and not each.lives:
                now = "failed"
            each.stored = now
            if now is not None and (is_read or (each.is_ours and each.file == TORN and not each.lives)):
                each.file = now

    def tables(self) -> Tables:
        """Return what registry and files say."""
        return {
            "registry": {
                name: {"status": each.stored} for name, each in self.workspaces.items() if each.stored is not None
            },
            "files": {name: {"status": each.file} for name, each in self.workspaces.items()},
        }
