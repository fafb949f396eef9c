"""A process that stands by with the program loaded and the filter on, and has the next run of it ready.

A run used to be forked from the process that watches. That costs most of a short run: the watcher
copies each page that it writes to while the program lives, and each new program puts on a filter
and prepares itself from the beginning. Here one process, the nurse, does all that once; its
children inherit the filter, and with it the one listener of them all. It has always one child that
waits for its folder, so that the next run begins while the last one is judged. What the watcher
imports or changes later is not seen by them, so every run begins from the same memory.

The nurse is the program's parent: it reaps it when it is told to, so that its number is not given
away. Orphans of the program come to the watching process, which adopts them; when that ends, all of
them are killed.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from pytest_chaos.errors import AgentError, StepsUnavailable
from pytest_chaos.trace.kernel import Listener, adopt_orphans, die_with_parent, trim_memory
from pytest_chaos.trace.memory import umask_of
from pytest_chaos.trace.program import EXIT_OF_A_MISTAKE, Child, become, enter, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.trace.kernel import Filter, Notification
    from pytest_chaos.trace.source import Program

_READY: Final = b"+"
_REAP: Final = b"reap"
_MESSAGE_BYTES_MAX: Final = 16 * 1024


class Standby:
    """Stands by to run what ``make`` returns for a folder and a mark file. Close it, and nothing of it is left.

    ``output`` is a file in memory for what the program prints, emptied before each run. With
    ``once`` there is one run. Raises StepsUnavailable where no filter can be put on.
    """

    def __init__(self, make: Callable[[Path, Path], Program], filter_: Filter, *, once: bool = False) -> None:
        self._adopted_before = adopt_orphans()
        self.output = os.memfd_create("output")
        self.umask = umask_of(os.getpid())
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._channel.close()
            _stand_by(make, filter_, theirs, self.output, once=once)
        theirs.close()
        self._pidfd = os.pidfd_open(self.pid)
        self.early: list[Notification] = []
        """Calls of a program that were heard of before its number was."""
        try:
            self.listener = Listener(_taken(self._channel))
        except BaseException:
            self._end()
            raise

    def start(self, directory: Path, marks: Path) -> Child:
        """Run the program. Raises AgentError where the process that stands by was ended by somebody."""
        if select.select([self._pidfd], [], [], 0)[0]:
            raise _lost()
        os.ftruncate(self.output, 0)
        self.early.clear()
        self._say(os.fsencode(directory) + b"\0" + os.fsencode(marks))
        return Child(int(self._hear()), self._reap)

    def close(self) -> None:
        """End it. Closing twice is fine."""
        if self.pid:
            self.listener.close()
            self._end()

    def _reap(self) -> int:
        """Reap the program, which has ended, and return its status, as ``waitpid`` gives it."""
        self._say(_REAP)
        return int(self._hear())

    def _say(self, content: bytes) -> None:
        try:
            self._channel.send(content)
        except OSError as error:
            raise _lost() from error

    def _hear(self) -> bytes:
        """Wait for an answer, and meanwhile let calls pass of who is to give it: a hook that runs at a fork, say."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self.listener.descriptor, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._channel.fileno() in ready:
                return self._answer()
            if (call := self.listener.receive()) is None:
                continue
            if call.thread == self.pid:
                self.listener.let_pass(call)
            else:
                self.early.append(call)

    def _answer(self) -> bytes:
        try:
            if content := self._channel.recv(64):
                return content
        except ConnectionResetError:  # it was killed before it had read what it was told
            pass
        raise _lost()

    def _end(self) -> None:
        self._channel.close()
        os.close(self.output)
        os.close(self._pidfd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # before it is reaped: its number is its own yet
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        with contextlib.suppress(ChildProcessError):
            while True:  # the child that waits is of its group, and has come to us
                os.waitpid(-self.pid, 0)
        self.pid = 0
        adopt_orphans(adopts=self._adopted_before)


LOST: Final = "the process that starts the program was killed: let the program end only what it has started"


def _lost() -> AgentError:
    return AgentError(LOST)


def _taken(channel: socket.socket) -> int:
    """Take the listener that the other process sends, or say why it has none."""
    content, descriptors, _, _ = socket.recv_fds(channel, 16, 1)
    if content == _READY and descriptors:
        os.set_inheritable(descriptors[0], False)  # noqa: FBT003 - its name says it
        return descriptors[0]
    if not content:
        msg = "the process that starts the program ended before it was ready: is there room for another process?"
        raise AgentError(msg)
    raise unavailable(int(content[1:]))


def unavailable(number: int) -> StepsUnavailable:
    """Return the error that says why a filter was refused."""
    if number == errno.EBUSY:
        why = "a supervisor watches this process already (a container's, or another run of this), and there can be one"
    else:
        why = f"this kernel or container allows no seccomp notifications ({os.strerror(number)})"
    return StepsUnavailable(f"steps cannot be counted by seccomp here: {why}; named audit events still work")


# In the process that stands by


def _stand_by(
    make: Callable[[Path, Path], Program], filter_: Filter, channel: socket.socket, output: int, *, once: bool
) -> NoReturn:
    """Have a child ready whenever one is asked for. After the filter is on, no call here is trapped."""
    code = EXIT_OF_A_MISTAKE
    try:
        os.setsid()  # or the interrupt of a terminal would end it, and who watches could not end its run in order
        die_with_parent()
        prepare(output)
        trim_memory()  # each page less is one less to be forked and let go, with every run
        gc.freeze()  # or a collection in a child would write to, and so copy, the pages of all that is here
        _put_on(filter_, channel)
        is_wanted = True
        while is_wanted:
            child = os.fork()
            if child == 0:
                _wait_and_run(make, channel)
            channel.send(b"%d" % child)
            is_wanted = _reaped(child, channel) and not once
        code = 0
    finally:
        os._exit(code)


def _reaped(child: int, channel: socket.socket) -> bool:
    """Wait for the child's end and for leave to reap it; return whether somebody is there who gave it."""
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    while said := channel.recv(_MESSAGE_BYTES_MAX):
        if said == _REAP:  # else it was meant for the child, which somebody has killed before it began
            channel.send(b"%d" % os.waitpid(child, 0)[1])
            return True
    return False


def _put_on(filter_: Filter, channel: socket.socket) -> None:
    try:
        listener = filter_.put_on()
    except OSError as error:
        channel.sendall(b"-" + str(error.errno).encode())
        os._exit(EXIT_OF_A_MISTAKE)
    socket.send_fds(channel, [_READY], [listener])
    os.close(listener)


def _wait_and_run(make: Callable[[Path, Path], Program], channel: socket.socket) -> NoReturn:
    """Wait for a folder and a mark file, and be the program."""
    die_with_parent()
    request = channel.recv(_MESSAGE_BYTES_MAX)
    if not request:
        os._exit(0)
    channel.close()
    directory, _, marks = request.partition(b"\0")
    enter(os.fsdecode(directory), os.fsdecode(marks))
    become(lambda: make(Path(os.fsdecode(directory)), Path(os.fsdecode(marks))))
