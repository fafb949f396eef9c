"""The preloaded process of ``chaos mutate``: it forks one pytest for each mutant.

It is executed as a file, so that nothing of the tested project, nor of its pytest plugins, is
imported before the fork. A request is a line of JSON on standard input: the folder for
CHAOS_MUTATE, the arguments of pytest, the file for its output, more environment, the bound on a
file's size.
The answers are lines on standard output: ``{"ready": true}``, ``{"pid": 1}``, ``{"status": 0}``.

With ``collect`` in the first line it is a pytest itself, which has collected all tests, and forks
where it would run them: :func:`serve_collected`. That saves each mutant the start of a pytest.

It adopts what the tests leave behind (a child subreaper), and the campaign ends these processes.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
from typing import Any, NoReturn

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
WAIT = "CHAOS_MUTATE_WAIT"
"""The descriptors for requests and answers of a pytest that waits when it has collected."""
UNFIT = 86
"""The status of a fork in which the mutant could not be put into what was imported before."""


def main() -> None:
    """Import the modules in the first line, then fork for each line."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with os.fdopen(0, "rb", buffering=0, closefd=False) as requests:
        first = json.loads(requests.readline())
    if "collect" in first:
        os.environ[WAIT] = f"{os.dup(0)},{os.dup(1)},{first['package']}"
        _be_pytest(first["collect"])
    for name in first["modules"]:
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001, S112 - what cannot be imported alone is imported by the tests
            continue
    package = first["package"]
    loaded = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    _say(1, ready=True, threads=_threads(), loaded=loaded)
    while request := _next_request(0, 1):
        _become_child(request)
        _be_pytest(request)


def serve_collected(session: Any) -> None:
    """Fork for each request, in a pytest that has collected; return in each fork, never here.

    A fork has the mutant in the modules that were imported already, and those tests that the
    request names, in that order.
    """
    import gc

    import chaos_mutate_patch  # type: ignore[import-not-found]  # this folder is on the path here
    import chaos_mutate_tests  # type: ignore[import-not-found]  # as above

    requests, answers, package = os.environ.pop(WAIT).split(",")
    known = chaos_mutate_patch.functions_of(package)
    gc.collect()
    gc.freeze()
    _say(int(answers), ready=True, threads=_threads(), loaded=[])
    request = _next_request(int(requests), int(answers))
    if not request:
        os._exit(0)
    os.close(int(requests))
    os.close(int(answers))
    _become_child(request)
    import tempfile

    tempfile.tempdir = None  # TMPDIR is another folder now
    sys.modules["sitecustomize"].install(request["folder"])
    if not chaos_mutate_patch.apply(request["folder"], known, constants=request["constants"]):
        os._exit(UNFIT)
    chaos_mutate_tests.choose(session.config, session.items, request["environment"]["CHAOS_MUTATE_ONLY"])
    session.testscollected = len(session.items)


def _next_request(requests: int, answers: int) -> dict[str, Any]:
    """Fork for each line; return the request in the fork, and nothing when there are no more."""
    with os.fdopen(requests, "rb", buffering=0, closefd=False) as lines:
        while line := lines.readline():
            request: dict[str, Any] = json.loads(line)
            if "ping" in request:
                _reap()
                _say(answers, pong=True)
                continue
            pid = os.fork()
            if pid == 0:
                return request
            _say(answers, pid=pid)
            _say(answers, status=_wait(pid))
    return {}


def _say(answers: int, /, **values: Any) -> None:
    os.write(answers, json.dumps(values).encode() + b"\n")


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return


def _wait(pid: int) -> int:
    while True:
        found, status = os.waitpid(-1, 0)  # adopted processes, too
        if found == pid:
            return os.waitstatus_to_exitcode(status)


def _become_child(request: dict[str, Any]) -> None:
    """Make this fork a session of its own, which ends with its parent and writes no huge file."""
    os.setsid()
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    limit = request["file_bytes_max"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os.environ.update(request["environment"])
    if request["folder"]:
        os.environ["CHAOS_MUTATE"] = request["folder"]


def _be_pytest(request: dict[str, Any]) -> NoReturn:
    """Be ``python -m pytest`` with these arguments, and never return.

    Its events go to the descriptor in CHAOS_MUTATE_TELL, a pipe to the campaign.
    """
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, descriptor in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, descriptor)
    for descriptor in (nothing, output):
        os.close(descriptor)
    os.environ.update(request["environment"])
    code = 70
    try:
        if request["folder"]:
            sys.modules["sitecustomize"].install(request["folder"])
        if request["with_directory"]:
            sys.path.insert(0, os.getcwd())
        sys.argv = ["pytest", *request["arguments"]]
        import runpy

        runpy.run_module("pytest", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - a fork must never return into the loop
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue
        os._exit(code & 0xFF)
    raise AssertionError


if __name__ == "__main__":
    main()
