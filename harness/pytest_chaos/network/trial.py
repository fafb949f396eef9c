"""A trial: a child's ``connect`` is answered, and it says with what. For ``chaos doctor``."""

from __future__ import annotations

import errno
import os
import select
import socket
import warnings

from pytest_chaos.network.answers import TRAPS
from pytest_chaos.trace.calls.table import code_of
from pytest_chaos.trace.kernel import Filter, Listener, borrow_descriptor

_WAIT_MS = 5000


def answered() -> str:
    """Answer the ``connect`` of a child with EHOSTUNREACH; return the name of what it got.

    Raises OSError or StepsUnavailable if that does not work here. Nothing is left of it.
    """
    filter_ = Filter(code_of([TRAPS["connect"]]))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with warnings.catch_warnings():  # Python 3.12 warns of threads; this child takes no lock of theirs
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            _connect(filter_, theirs)
        try:
            ours.settimeout(_WAIT_MS / 1000)
            said = int(ours.recv(20))
            if said < 0:
                raise OSError(-said, os.strerror(-said))
            listener = Listener(borrow_descriptor(child, said))
            try:
                ours.sendall(b"+")
                poll = select.poll()
                poll.register(listener.descriptor, select.POLLIN)
                if poll.poll(_WAIT_MS) and (call := listener.receive()) is not None:
                    listener.fail(call, errno.EHOSTUNREACH)
                return errno.errorcode.get(int(ours.recv(20)), "no error")
            finally:
                listener.close()
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


def _connect(filter_: Filter, parent: socket.socket) -> None:
    """Be the child: put the filter on, connect, say what came, and end."""
    try:
        try:
            parent.sendall(str(filter_.put_on()).encode())
        except OSError as error:
            parent.sendall(str(-(error.errno or errno.EPERM)).encode())
        parent.recv(1)
        with socket.socket() as end:
            parent.sendall(str(end.connect_ex(("127.0.0.1", 9))).encode())
    finally:
        os._exit(0)
