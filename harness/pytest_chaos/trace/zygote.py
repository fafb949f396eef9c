"""The zygote: a process with the program loaded and the filter on, which forks each run.

Forking a run from the observing process costs most of a short run: the observer copies each page
that it writes to while the program lives, and each new program installs a filter and prepares
itself. The zygote does all that once. Its children inherit the filter, and with it the one
listener. One child always waits for its folder, so the next run begins while the last one is
judged. The zygote does not see what the observer imports or changes later, so every run begins from
the same memory.

The zygote is the program's parent. It reaps the program when it is told to, so that its pid is not
reused before. Orphans of the program come to the observing process, which adopts them. When that
one ends, the kernel kills zygote and program.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from pytest_chaos.errors import AgentError
from pytest_chaos.runtime import processes
from pytest_chaos.trace.kernel import Listener, unavailable
from pytest_chaos.trace.memory import umask_of
from pytest_chaos.trace.program import EXIT_NOT_WATCHED, StartedProgram, become, enter, prepare

if TYPE_CHECKING:
    from pytest_chaos.trace.kernel import Filter, Notification
    from pytest_chaos.trace.source import MakeProgram

LOST: Final = "the process that starts the program was killed: let the program end only what it has started"
_READY: Final = b"+"
_REAP: Final = b"reap"
_MESSAGE_BYTES_MAX: Final = 16 * 1024


class TraceZygote:
    """The observer's side of a zygote. ``make`` returns the program for a folder and a mark file.

    ``output`` is a file in memory for what the program prints, emptied before each run. Raises
    StepsUnavailable where the filter is refused.
    """

    def __init__(self, make: MakeProgram, filter_: Filter) -> None:
        self._adopted_before = processes.adopt_orphans()
        self.output = os.memfd_create("output")
        self.umask = umask_of(os.getpid())
        # SEQPACKET keeps messages apart, and ends with an empty one when the other side dies.
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._channel.close()
            _serve(make, filter_, theirs, self.output)
        theirs.close()
        self._pidfd = os.pidfd_open(self.pid)
        self.early: list[Notification] = []
        """Calls of a program that were received before its pid."""
        try:
            self.listener = Listener(_received_listener(self._channel))
        except BaseException:
            self._end()
            raise

    def start(self, directory: Path, marks: Path) -> StartedProgram:
        """Run the program. Raises AgentError when the zygote was killed."""
        if processes.has_ended(self._pidfd):
            raise AgentError(LOST)
        os.ftruncate(self.output, 0)
        self.early.clear()
        self._send(os.fsencode(directory) + b"\0" + os.fsencode(marks))
        return StartedProgram(int(self._receive()), self._reap)

    def close(self) -> None:
        """End it. Closing twice is fine."""
        if self.pid:
            self.listener.close()
            self._end()

    def _reap(self) -> int:
        """Have the zygote reap the ended program; return its status, as ``waitpid`` does."""
        self._send(_REAP)
        return int(self._receive())

    def _send(self, content: bytes) -> None:
        try:
            self._channel.send(content)
        except OSError as error:
            raise AgentError(LOST) from error

    def _receive(self) -> bytes:
        """Wait for an answer; meanwhile let the zygote's own calls pass (of hooks at fork)."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self.listener.descriptor, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._channel.fileno() in ready:
                with contextlib.suppress(ConnectionResetError):  # it was killed with our message unread
                    if content := self._channel.recv(64):
                        return content
                raise AgentError(LOST)
            if (call := self.listener.receive()) is None:
                continue
            if call.thread == self.pid:
                self.listener.let_pass(call)
            else:
                self.early.append(call)

    def _end(self) -> None:
        self._channel.close()
        os.close(self.output)
        os.close(self._pidfd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # before it is reaped: the id is its own yet
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        with contextlib.suppress(ChildProcessError):
            while True:  # the waiting child is of its group, and has come to us as an orphan
                os.waitpid(-self.pid, 0)
        self.pid = 0
        processes.adopt_orphans(adopts=self._adopted_before)


def _received_listener(channel: socket.socket) -> int:
    content, descriptors, _, _ = socket.recv_fds(channel, 16, 1)
    if content == _READY and descriptors:
        os.set_inheritable(descriptors[0], False)  # noqa: FBT003 - its name says it
        return descriptors[0]
    if not content:
        msg = "the process that starts the program ended before it was ready: is there room for another process?"
        raise AgentError(msg)
    raise unavailable(int(content[1:]))


# In the zygote


def _serve(make: MakeProgram, filter_: Filter, channel: socket.socket, output: int) -> NoReturn:
    """Have a child ready whenever a run is asked for."""
    code = EXIT_NOT_WATCHED
    try:
        os.setsid()  # or the SIGINT of a terminal would end it, and the observer could not end its run in order
        processes.die_with_parent()
        prepare(output)
        _trim_memory()  # each page less is one less to be forked and freed with every run
        gc.freeze()  # or a collection in a child would write to, and so copy, all pages that are here
        # From here on no call of this process may be one that is trapped.
        _put_on(filter_, channel)
        while True:
            child = os.fork()
            if child == 0:
                _wait_and_run(make, channel)
            channel.send(b"%d" % child)
            if not _reaped(child, channel):
                code = 0
                break
    finally:
        os._exit(code)


def _reaped(child: int, channel: socket.socket) -> bool:
    """Wait for the child's end, then for the order to reap it; return whether the order came."""
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    while said := channel.recv(_MESSAGE_BYTES_MAX):
        if said == _REAP:  # else it was meant for the child, which was killed before it began
            channel.send(b"%d" % os.waitpid(child, 0)[1])
            return True
    return False


def _trim_memory() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)


def _put_on(filter_: Filter, channel: socket.socket) -> None:
    try:
        listener = filter_.put_on()
    except OSError as error:
        channel.sendall(b"-" + str(error.errno).encode())
        os._exit(EXIT_NOT_WATCHED)
    socket.send_fds(channel, [_READY], [listener])
    os.close(listener)


def _wait_and_run(make: MakeProgram, channel: socket.socket) -> NoReturn:
    """Wait for a folder and a mark file, then be the program."""
    processes.die_with_parent()
    request = channel.recv(_MESSAGE_BYTES_MAX)
    if not request:
        os._exit(0)
    channel.close()
    directory, _, marks = (os.fsdecode(part) for part in request.partition(b"\0"))
    enter(directory, marks)
    become(lambda: make(Path(directory), Path(marks)))
