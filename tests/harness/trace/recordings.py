"""Recordings made by hand, step by step, for tests of what is built from them."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from pytest_chaos.trace.recording import Recorder, Recording
from pytest_chaos.trace.step import ROOT_NODE, Action, Entry, Step

if TYPE_CHECKING:
    from pathlib import Path

_NUMBERS = itertools.count()


class HandMade(Recording):
    """A recording that closes its file at its own end: tests have many, and close none."""

    def __del__(self) -> None:
        """Close the file."""
        if hasattr(self, "_contents"):
            self.close()


class Script:
    """Takes down steps as they are said; ``done`` gives the recording."""

    def __init__(self, folder: Path) -> None:
        self._recorder = Recorder(folder / f"recording-{next(_NUMBERS)}", "by hand")
        self._number = 0
        self._nodes = ROOT_NODE
        self._paths: dict[str, int] = {"": ROOT_NODE}

    def before(self, path: str, content: bytes) -> Script:
        """Have a file there before the run."""
        self._nodes += 1
        self._paths[path] = self._nodes
        place = self._recorder.keep(content)
        self._recorder.before.append(
            Entry(path=path, node=self._nodes, kind="file", mode=0o644, length=len(content), content=place)
        )
        return self

    def step(self, action: Action, path: str = "", **fields: Any) -> Script:
        """Make any step."""
        self._number += 1
        node = fields.pop("node", self._paths.get(path, 0))
        self._recorder.steps.append(
            Step(number=self._number, action=action, call="test", path=path, node=node, **fields)
        )
        return self

    def _new(self, action: Action, path: str, **fields: Any) -> Script:
        self._nodes += 1
        self._paths[path] = self._nodes
        return self.step(action, path, **fields)

    def create(self, path: str) -> Script:
        """Make a file."""
        return self._new(Action.CREATE, path, mode=0o644)

    def folder(self, path: str) -> Script:
        """Make a folder."""
        return self._new(Action.MAKE_FOLDER, path, mode=0o755)

    def symlink(self, path: str, target: str) -> Script:
        """Make a symbolic link."""
        return self._new(Action.SYMLINK, path, target=target)

    def write(self, path: str, content: bytes, offset: int = 0, *, look: int = 0) -> Script:
        """Write to a file; with a look, through memory."""
        place = self._recorder.keep(content)
        return self.step(Action.WRITE, path, offset=offset, length=len(content), content=place, look=look)

    def truncate(self, path: str, length: int) -> Script:
        """Set the size of a file."""
        return self.step(Action.TRUNCATE, path, length=length)

    def rename(self, path: str, target: str) -> Script:
        """Rename a file."""
        self.step(Action.RENAME, path, target=target)
        self._paths[target] = self._paths.pop(path)
        return self

    def link(self, path: str, existing: str) -> Script:
        """Give a file a further name."""
        self._paths[path] = self._paths[existing]
        return self.step(Action.LINK, path)

    def unlink(self, path: str) -> Script:
        """Remove a name."""
        return self.step(Action.UNLINK, path, node=self._paths.pop(path))

    def sync(self, path: str = "") -> Script:
        """Fsync a file, or a folder: the watched one itself without a path."""
        return self.step(Action.SYNC, path)

    def mark(self, kind: str, key: int) -> Script:
        """Write a mark."""
        line = b"\n" + json.dumps({"kind": kind, "operation": "put", "key": key}).encode() + b"\n"
        place = self._recorder.keep(line)
        self._recorder.steps.append(
            Step(number=self._number, action=Action.MARK, call="write", length=len(line), content=place)
        )
        return self

    def done(self) -> Recording:
        """Return the recording."""
        self._recorder.close()
        return HandMade(self._recorder.folder)
