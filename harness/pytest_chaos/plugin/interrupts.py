"""Ctrl-C: the first one ends the session; later ones are ignored during the clean-up.

Without this a second SIGINT would interrupt the writing of evidence, or pytest's own clean-up, with
a traceback. The protected work is bounded; after :data:`PATIENCE_S` an interrupt counts again.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import FrameType

PATIENCE_S: Final = 15.0
"""The time after the first interrupt during which others are ignored."""

_PROGRAMS: Final = {"pytest", "py.test", "pytest.exe"}


class Interrupts:
    """Ignores interrupts from the first one to the end of the session."""

    def __init__(self) -> None:
        """Ignore nothing yet."""
        self._before: Any = None
        self._since_s = 0.0
        self.came = False
        """Whether the session was interrupted."""

    def hold_off(self) -> None:
        """Ignore further interrupts; only the main thread gets them, so only it can."""
        self.came = True
        if self._before is None and threading.current_thread() is threading.main_thread():
            self._since_s = time.monotonic()
            self._before = signal.signal(signal.SIGINT, self._ignore)

    def restore(self) -> None:
        """Restore the handler, unless this process is pytest itself, which now exits."""
        if self._before is None:
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN if _is_program() else self._before)
        self._before = None

    def _ignore(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._since_s > PATIENCE_S:
            signal.default_int_handler(number, frame)


def _is_program() -> bool:
    """Return whether this process is the program pytest, not one that uses it as a library."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return Path(sys.argv[0]).name in _PROGRAMS or (spec is not None and spec.name == "pytest.__main__")
