"""A program's processes: the one that was forked, and all that descend from it. Ended together, by pid and pidfd.

The watching process adopts orphans (``kernel.adopt_orphans``), so whatever the program leaves behind is a child of
ours in the end. Children that this process had before are not touched.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Final

from harness.errors import AgentError

if TYPE_CHECKING:
    from harness.steps.launching import Child

_END_TIMEOUT_S: Final = 10.0
_LINKS_OF_ONE_THREAD: Final = 3
"""What ``/proc/self/task`` has of a process with one thread: to list it costs more than what is looked for."""


class Family:
    """The processes of one run."""

    def __init__(self, child: Child, others: list[int]) -> None:
        """Take charge of what was launched; ``others`` are the children that this process had before."""
        self.pid = child.pid
        self._reap_child = child.reap
        self.is_orphaned = False
        self.pidfd = os.pidfd_open(child.pid)
        self.exit_code: int | None = None
        self.signal: int | None = None
        self._others = set(others)
        self._is_reaped = False

    def kill(self) -> None:
        """Kill them all at once: the program's session, and what has left it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> list[str]:
        """End and reap everything; return what was still running when the program itself had ended."""
        had_ended = bool(select.select([self.pidfd], [], [], 0)[0])
        leftovers: list[str] = []
        self.kill_first(had_ended=had_ended)
        deadline_s = time.monotonic() + _END_TIMEOUT_S
        while (mine := self._mine()) and time.monotonic() < deadline_s:
            for pid in mine:
                if had_ended and pid != self.pid and (name := _name(pid)):
                    leftovers.append(f"{name} (pid {pid})")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in mine:
                self._reap(pid)
        os.close(self.pidfd)
        return leftovers

    def kill_first(self, *, had_ended: bool) -> None:
        """Kill the program itself, unless it has ended, and reap it."""
        if not had_ended:
            self.kill()
        self._reap(self.pid)

    def _mine(self) -> list[int]:
        return [pid for pid in children() if pid not in self._others]

    def _reap(self, pid: int) -> None:
        if pid != self.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        elif not self._is_reaped:
            self._is_reaped = True
            status = self._status()
            if os.WIFSIGNALED(status):
                self.signal = os.WTERMSIG(status)
            else:
                self.exit_code = os.WEXITSTATUS(status)

    def _status(self) -> int:
        try:
            return self._reap_child()
        except AgentError:  # who had started it was killed, and so it has come to us
            self.is_orphaned = True
            return os.waitpid(self.pid, 0)[1]


def children() -> list[int]:
    """Return the children of this process, of all its threads."""
    found: list[int] = []
    only = os.stat("/proc/self/task").st_nlink == _LINKS_OF_ONE_THREAD
    for thread in (os.getpid(),) if only else os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children", "rb") as file:
            found += map(int, file.read().split())
    return found


def _name(pid: int) -> str:
    """Return the name of a process that lives; nothing for a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            before, _, after = file.read().rpartition(b")")
    except OSError:
        return ""
    return "" if after.split()[0] == b"Z" else before.partition(b"(")[2].decode(errors="replace")
