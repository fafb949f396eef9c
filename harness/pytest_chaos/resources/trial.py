"""One limit on a child of ours, and the call that failed by it: whether limits can be felt here.

The trial is a process of its own, since a witness waits for every child of its process.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Final

from pytest_chaos.resources.limits import BOUNDS
from pytest_chaos.resources.witness import Witness

_TIMEOUT_S: Final = 20.0
_CHILD: Final = """
import os, sys
sys.stdin.readline()
try:
    os.open("/dev/null", os.O_RDONLY)
except OSError:
    pass
"""


def failed_call() -> str:
    """Bound the files of a program, see a call of it fail by that, and return which.

    Raises OSError where that cannot be seen.

    >>> "failed with EMFILE" in failed_call()
    True
    """
    command = [sys.executable, "-m", "pytest_chaos.resources.trial"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        msg = f"no call was seen to fail within {_TIMEOUT_S:g} s"
        raise OSError(msg) from None
    if tried.returncode:
        raise OSError(tried.stderr.strip().rpartition("\n")[2])
    return tried.stdout.strip()


def main() -> None:
    """Start a program that opens a file once it is told to; print how that failed."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", _CHILD], stdin=subprocess.PIPE, text=True) as child:

        def begin() -> None:
            resource.prlimit(child.pid, BOUNDS["files"].number, (0, 0))
            print("go", file=child.stdin, flush=True)

        try:
            Witness(child.pid, "files", on_ready=begin, on_felt=print).run()
        finally:
            child.kill()


if __name__ == "__main__":
    main()
