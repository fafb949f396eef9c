"""An agent that starts a tool server with pipes, and the server."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos import Marks

TURNS_ALONE = 20
"""Turns of the server after its agent's end, which show that it goes on."""
TURN_S = 0.02


def agent(marks: Marks, *, is_mended: bool) -> None:
    """Start the server, and use it until the process ends."""
    command = [sys.executable, __file__, "mended" if is_mended else "reported", str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        marks.note("working", value=server.pid)
        server.wait()


def serve(parent: int, *, is_mended: bool) -> None:
    """Serve, turn by turn, and say so; mended, until the agent is gone."""
    from pytest_chaos import Marks  # the server is a process of its own, and says what it does

    marks = Marks.from_environment()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    alone = 0
    while alone < TURNS_ALONE:
        is_gone = os.getppid() != parent
        if is_mended and (is_gone or is_closed()):
            marks.note("ended")
            return
        alone += is_gone
        time.sleep(TURN_S)  # sleeps because it plays a server that polls
    marks.note("still serving", value=alone)


def is_closed() -> bool:
    """Whether the other end of the standard input is closed."""
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


if __name__ == "__main__":
    serve(int(sys.argv[2]), is_mended=sys.argv[1] == "mended")
