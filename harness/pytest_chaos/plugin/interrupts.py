"""Ctrl-C: the first one ends the session, and what is pressed while it is put away is not heard.

Without this a second SIGINT would come in the middle of writing evidence or of pytest's own
clean-up, and end both with a traceback. The work that is protected is bounded; after
:data:`PATIENCE_S` an interrupt counts again.
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
"""How long interrupts are not heard after the first one."""

_PROGRAMS: Final = {"pytest", "py.test", "pytest.exe"}


class Interrupts:
    """Holds interrupts off from the first one to the end of the session."""

    def __init__(self) -> None:
        """Hold nothing off yet."""
        self._before: Any = None
        self._since_s = 0.0
        self.came = False
        """Whether the session was interrupted."""

    def hold_off(self) -> None:
        """Do not hear any more interrupts; in the main thread, the only one that hears any."""
        self.came = True
        if self._before is None and threading.current_thread() is threading.main_thread():
            self._since_s = time.monotonic()
            self._before = signal.signal(signal.SIGINT, self._ignore)

    def restore(self) -> None:
        """Hear interrupts as before, unless this process has nothing more to do than to exit."""
        if self._before is None:
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN if _is_program() else self._before)
        self._before = None

    def _ignore(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._since_s > PATIENCE_S:
            signal.default_int_handler(number, frame)


def _is_program() -> bool:
    """Return whether pytest is what this process was started for, not a library within it."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return Path(sys.argv[0]).name in _PROGRAMS or (spec is not None and spec.name == "pytest.__main__")
