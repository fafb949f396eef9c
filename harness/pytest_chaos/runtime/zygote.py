"""A zygote: a fork of the guardian that has imported one module and forks agents from it.

The guardian asks over a socket, one message a fork. Each agent sends its pid and a pidfd before it
does anything else, so the pid names no other process. The zygote reaps its agents and tells
the guardian how they ended. If the zygote dies, its agents die with it, and the guardian reaps them
as the nearest subreaper. (Forking twice, so that the guardian is the only parent, costs 0.9 ms more
an agent.)
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Final

from pytest_chaos.runtime import child, processes, wire

if TYPE_CHECKING:
    import resource
    import socket

_SQLITE_HEADER: Final = b"SQLite format 3\0"


def serve(end: socket.socket, module: str, path: list[str], log: int) -> None:
    """Import ``module``, report the result, and fork an agent for each message.

    Never returns: this is the whole life of the process.
    """
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, end.fileno())
    os.closerange(end.fileno() + 1, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 1 << 16 else 1 << 16)
    sys.path[:] = path
    try:
        child.load(module)
    except BaseException as error:  # noqa: BLE001 - an import may raise anything, which is the answer
        sys.excepthook(type(error), error, error.__traceback__)
        wire.send(end, {"event": "unusable", "error": f"{type(error).__name__}: {error}"[:2000]})
        os._exit(1)
    if reason := unfit_to_fork():
        wire.send(end, {"event": "unfit", "error": reason})
        os._exit(0)
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, the pages that all agents share
    wire.send(end, {"event": "ready"})
    _serve_forks(end)
    os._exit(0)


def unfit_to_fork() -> str:
    """Return why this process must not be forked: threads or SQLite files; else nothing."""
    threads = len(processes.threads())
    if threads > 1:
        return f"importing it started {threads - 1} thread(s), which a fork would lose"
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptor = int(name)
            if os.path.isfile(f"/proc/self/fd/{name}") and os.pread(descriptor, 16, 0) == _SQLITE_HEADER:
                return f"importing it opened the SQLite file {os.readlink(f'/proc/self/fd/{name}')}"
        except OSError:  # the descriptor of the listing itself, or one opened for writing only
            continue
    return ""


def _serve_forks(end: socket.socket) -> None:
    agents: dict[int, int] = {}  # pid -> id
    signal.pthread_sigmask(signal.SIG_BLOCK, child.HELD_BACK)
    wakeup = processes.wake_on_child()
    poll = select.poll()
    poll.register(end, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == wakeup:
                _reap(end, agents, wakeup)
            elif (received := wire.receive(end)) is None:
                return
            else:
                message, (output,) = received
                pid = os.fork()
                if pid == 0:
                    os.close(signal.set_wakeup_fd(-1))
                    os.close(wakeup)
                    _agent(end, message["spec"], output)
                os.close(output)
                agents[pid] = message["spec"]["id"]


def _reap(end: socket.socket, agents: dict[int, int], wakeup: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(wakeup, 4096)
    for pid, status, usage in processes.reaped():
        if (number := agents.pop(pid, None)) is not None:
            wire.send(end, exit_message(number, status, usage))


def exit_message(number: int, status: int, usage: resource.struct_rusage) -> wire.Message:
    """Return the message that says how an agent ended and what it used (seconds, bytes)."""
    return {
        "event": "exited",
        "id": number,
        "status": status,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "memory_bytes_max": usage.ru_maxrss * 1024,  # ru_maxrss is in KiB
    }


def _agent(end: socket.socket, spec: child.Spec, output: int) -> None:
    code = 70
    try:
        pid = os.getpid()
        pidfd = os.pidfd_open(pid)
        forked = {"event": "forked", "id": spec["id"], "pid": pid, "start_ticks": processes.own().start_ticks}
        wire.send(end, forked, [pidfd])
        os.close(pidfd)
        end.close()
        child.become_agent(spec, output, os.getppid())
        code = child.run_target(spec)
    finally:
        child.finish(code)
