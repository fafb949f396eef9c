"""The code inside an agent: it becomes its own process, arms planned faults, calls the target.

At a planned crash point, or after a planned mark, the agent sends itself a signal: the process that
passes the point is the one that dies, or stops, there, exactly, with no race against a controller.
A crash point is an audit event (``sys.audit``), so a target needs nothing of ours. Before the
signal the agent writes a note, which together with the exit status (or the state T) is the receipt.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypedDict

from pytest_chaos.runtime import processes
from pytest_chaos.runtime.marks import AGENT_VARIABLE, MARKS_VARIABLE, Marks, Note
from pytest_chaos.runtime.own_line import own_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from pytest_chaos.trace.kernel import Filter


HELD_BACK: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Blocked while a zygote forks, until the agent has its own handlers: the guardian ignores them."""

_POINTS_SEEN_MAX: Final = 200

POINTS: Final = "points.txt"
"""The file beside the marks with the names of all points that agents passed: ``AGENT<tab>NAME``."""


STEPS: Final = "steps.txt"
"""The file beside it with the durable steps that watched agents came to: ``AGENT<tab>STEP``."""

SURVEY: Final = "survey.jsonl"
"""The file beside it with the points and steps of agents whose run is a survey."""


class Trigger(TypedDict):
    """When the agent gets ``signal``: at the ``count``-th passing of a point, mark or step.

    The signal is the fault itself, or SIGSTOP: the agent then stays stopped until the injector has
    fired the fault and continues it. It sends itself the signal; at a step the watcher of steps
    does, and with ``signal`` 0 it holds the call. With a ``path``, only points and steps of such a
    path count.
    """

    fault: int
    kind: str
    signal: int
    point: str | None
    step: str | None
    mark: tuple[str, str] | None
    path: str
    count: int


class Spec(TypedDict):
    """The order to start an agent, as it comes over the wire."""

    id: int
    name: str
    target: str | None
    argv: list[str] | None
    kwargs: dict[str, Any]
    environment: dict[str, str | None]
    path: int
    directory: str
    root: str
    marks: str
    triggers: list[Trigger]
    trace_points: str | None
    watch: WatchOrder | None
    survey: SurveyOrder | None
    clock: str
    uptime_s: int
    network: bool


class WatchOrder(TypedDict):
    """How the durable steps of an agent are watched: by the process that listens at ``socket``.

    ``filter`` is the seccomp filter, base64. ``trail`` is the file that the steps go to. With
    ``lines``, the agent notes its lines in that file.
    """

    socket: str
    filter: str
    trail: str
    lines: str


class SurveyOrder(TypedDict):
    """The file for all points and, with ``steps``, durable steps that an agent comes to.

    Each has the program's own line, with ``lines``.
    """

    path: str
    steps: bool
    lines: bool


class Triggers:
    """Counts points and marks, and fires when the planned one is reached."""

    def __init__(self, marks: Marks, triggers: list[Trigger], trace_points: str | None, root: str) -> None:
        self._marks = marks
        self._points: dict[str, list[Trigger]] = {}
        self._operations: dict[tuple[str, str], list[Trigger]] = {}
        self._passed: Counter[str] = Counter()
        self._passed_at: Counter[tuple[str, str]] = Counter()
        self._root = root
        self._written: Counter[tuple[str, str]] = Counter()
        self._trace = trace_points
        self._names: set[str] = set()
        self._names_path = ""
        self._busy = threading.local()
        for trigger in triggers:
            if trigger["point"] is not None:
                self._points.setdefault(trigger["point"], []).append(trigger)
            elif trigger["mark"] is not None:
                self._operations.setdefault((trigger["mark"][0], trigger["mark"][1]), []).append(trigger)
        prefixes = {point.split(".", 1)[0] + "." * ("." in point) for point in self._points}
        self._prefixes = tuple(prefixes | ({trace_points} if trace_points is not None else set()))

    def arm(self) -> None:
        """Install the audit hook if a point matters: 0.2 µs an event, and it cannot be removed."""
        if self._points:
            self._names_path = f"{os.environ[MARKS_VARIABLE].rpartition('/')[0]}/{POINTS}"
        if self._prefixes:
            sys.addaudithook(self._on_audit)
        if self._operations:
            self._marks.listener = self._on_mark

    def note_points_seen(self) -> None:
        """Note how often each point was passed, to explain a misspelt one."""
        if self._points:
            self._marks.note(Note.POINTS_SEEN, value=dict(self._passed.most_common(_POINTS_SEEN_MAX)))

    def _on_audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in self._names and self._names_path and not getattr(self._busy, "now", False):
            self._keep_name(event)
        if not event.startswith(self._prefixes) or getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            self._passed[event] += 1
            if self._trace is not None and event.startswith(self._trace):
                self._marks.note(Note.POINT, event)
            if event in self._points:
                self._reach(event, arguments)
        finally:
            self._busy.now = False

    def _reach(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count a passing of a planned point, for each of its paths, and fire what is due."""
        counted: set[str] = set()
        for trigger in self._points[event]:
            pattern = trigger["path"]
            path = _path_among(arguments, pattern, self._root) if pattern else ""
            if path is None:
                continue
            if pattern not in counted:
                counted.add(pattern)
                self._passed_at[event, pattern] += 1
            if trigger["count"] == self._passed_at[event, pattern]:
                self._fire(trigger, f"{event} of {path}" if path else event)

    def _keep_name(self, event: str) -> None:
        """Write the name of a new point to a file, which survives a kill of this process.

        The receipt of a misspelt point shows these names.
        """
        if len(self._names) >= _POINTS_SEEN_MAX:
            return
        self._names.add(event)
        self._busy.now = True
        try:  # opened each time: a program may close descriptors that it does not know
            file = os.open(self._names_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.write(file, f"{os.environ.get(AGENT_VARIABLE, '')}\t{event}\n".encode(errors="replace"))
            os.close(file)
        except OSError:  # a full disk costs a hint
            pass
        finally:
            self._busy.now = False

    def _on_mark(self, kind: str, operation: str) -> None:
        key = (kind, operation)
        if key not in self._operations:
            return
        self._written[key] += 1
        for trigger in self._operations[key]:
            if trigger["count"] == self._written[key]:
                self._fire(trigger, f"{kind} {operation} {trigger['count']}")

    def _fire(self, trigger: Trigger, at: str) -> None:
        value: dict[str, Any] = {"kind": trigger["kind"], "at": at}
        if line := own_line(sys._getframe(1)):  # noqa: SLF001 - there is no other way to a frame
            value["line"] = line
        if trigger["signal"] == signal.SIGKILL and (children := processes.children()):
            value["children"] = children  # they live on, and have another parent then
        self._marks.note(Note.FAULT, trigger["fault"], value)
        if trigger["signal"] == signal.SIGSTOP:  # to this thread: another one would stop it a few instructions later
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        else:
            os.kill(os.getpid(), trigger["signal"])


def _path_among(arguments: tuple[Any, ...], pattern: str, root: str) -> str | None:
    """Return the first path among an event's arguments that a pattern matches, or None."""
    from pytest_chaos.model.paths import path_matches  # only where a plan has a path

    for argument in arguments:
        if isinstance(argument, str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(argument))  # noqa: PTH100 - a link is matched by its own name
            if path_matches(pattern, path, root):
                return path
    return None


def _be_watched(watch: WatchOrder, spec: Spec) -> None:
    """Have each durable step of this process, and of all that it starts, wait for the watcher.

    If that is refused, the watcher is told why, and the agent runs unwatched: the receipts of its
    faults say that they did not fire.
    """
    import base64  # only for an agent whose steps are watched, as below
    import socket

    from pytest_chaos.runtime import wire
    from pytest_chaos.trace.kernel import Filter

    filter_ = Filter(base64.b64decode(watch["filter"]))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as watcher:
        watcher.connect(watch["socket"])
        here: wire.Message = {"agent": spec["name"], "pid": os.getpid()}
        here["survey"], here["clock"], here["network"] = watch["trail"], spec["clock"], spec["network"]
        here["triggers"] = [trigger for trigger in spec["triggers"] if trigger["step"] is not None]

        def hand_over(listener: int) -> None:
            wire.send(watcher, here, [listener])
            os.close(listener)
            watcher.recv(1)  # it listens now

        try:
            if spec["network"]:
                _put_on_beside(filter_, hand_over)
            else:
                hand_over(filter_.put_on())
        except OSError as error:
            wire.send(watcher, {**here, "error": error.errno})


def _put_on_beside(filter_: Filter, hand_over: Callable[[int], None]) -> None:
    """Put a filter on that traps sends, and hand its listener over: from a thread without it.

    A filter is of the thread that puts it on. Raises OSError.
    """
    listeners: list[int] = []
    is_on = threading.Event()

    def work() -> None:
        is_on.wait()
        for listener in listeners:
            hand_over(listener)

    beside = threading.Thread(target=work)
    beside.start()
    try:
        listeners.append(filter_.put_on())
    finally:
        is_on.set()
        beside.join()
    while len(os.listdir("/proc/self/task")) > 1:  # the kernel's part of its end
        os.sched_yield()


def become_agent(spec: Spec, output: int, parent_pid: int) -> None:
    """Turn this fork into the agent's process: its own group, output, environment, signals.

    The spec's environment says how it differs from the guardian's; ``None`` unsets.
    """
    os.setpgid(0, 0)
    processes.die_with_parent(parent_pid)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, descriptor in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, descriptor, inheritable=True)
    for descriptor in {nothing, output} - {0, 1, 2}:
        os.close(descriptor)
    for name, value in spec["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    os.environ[MARKS_VARIABLE] = spec["marks"]
    os.environ[AGENT_VARIABLE] = spec["name"]
    os.chdir(spec["directory"])
    if spec["uptime_s"]:
        _start_elsewhere(spec["uptime_s"])
    if spec["watch"] is not None:
        _be_watched(spec["watch"], spec)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)


def resolve(target: str) -> Callable[..., Any]:
    """Return the function that ``module:function`` or ``path/to/file.py:function`` names.

    Raises ImportError, AttributeError or TypeError that says what is missing.
    """
    module_name, separator, function_name = target.rpartition(":")
    if not separator or not module_name or not function_name:
        msg = f"a target must be module:function or file.py:function; got {target!r}"
        raise ImportError(msg)
    found: Any = load(module_name)
    for part in function_name.split("."):
        found = getattr(found, part)
    if not callable(found) or isinstance(found, type):
        kind = "a class, and to make an object of it runs nothing" if callable(found) else type(found).__name__
        msg = f"a target must be a function; got {target}, which is {kind}. Name a function that does the work"
        raise TypeError(msg)
    function: Callable[..., Any] = found
    return function


def load(module_name: str) -> ModuleType:
    """Import a module by its name, or by its file where it ends in ``.py``."""
    if not module_name.endswith(".py"):
        return importlib.import_module(module_name)
    from importlib import util  # only for a target that is a file

    place = os.path.realpath(module_name)  # the same words in two folders are two files
    name = f"_chaos_target_{abs(hash(place)):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None or not os.path.isfile(place):
        msg = f"there is no Python file {module_name}"
        raise ImportError(msg)
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def run_target(spec: Spec) -> int:
    """Call the target with its arguments and return the exit code; never raises."""
    marks = Marks.from_environment()
    triggers = Triggers(marks, spec["triggers"], spec["trace_points"], spec["root"])
    code = 0
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python itself has it: a peer that has gone is an error
    try:
        if spec["clock"]:
            _move_clock(spec["clock"])
        function = resolve(spec["target"] or "")
        arguments = dict(spec["kwargs"])
        if "marks" not in arguments and _takes_marks(function):
            arguments["marks"] = marks
        triggers.arm()
        if (survey := spec["survey"]) is not None:
            from pytest_chaos.trace.survey import note_points  # only in a survey

            note_points(survey["path"], spec["name"], lines=survey["lines"])
        elif spec["watch"] is not None and spec["watch"]["lines"]:
            from pathlib import Path  # as above: only where SQLite is watched

            from pytest_chaos.trace.survey import SharedLines, trace_lines

            trace_lines(SharedLines(Path(spec["watch"]["lines"])).put)
        _refuse_unrun(function(**arguments), spec)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if stop.code is not None and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)  # noqa: T201 - what the interpreter itself does
    except BaseException as error:  # noqa: BLE001 - a traceback and code 1, as for any program
        users = error.__traceback__
        while users is not None and users.tb_frame.f_code.co_filename == __file__:
            users = users.tb_next
        sys.excepthook(type(error), error.with_traceback(users), users)
        marks.note(Note.RAISED, value=f"{type(error).__name__}: {error}"[:2000])
        code = 1
    triggers.note_points_seen()
    return code


def _start_elsewhere(by_s: int) -> None:
    """Move the monotonic clocks of this process. If that fails, a note says why: no receipt."""
    from pytest_chaos.clocks.uptime import start_elsewhere  # only where it is planned

    try:
        start_elsewhere(by_s)
    except OSError as error:
        Marks.from_environment().note(Note.UPTIME_REFUSED, value=error.strerror or str(error))


def _move_clock(cell: str) -> None:
    """Read the wall clock through a cell. If that fails, the fault itself tries, and says why."""
    from pytest_chaos.clocks.within import move_own_clock  # only where a clock is to be moved
    from pytest_chaos.errors import ChaosError

    with contextlib.suppress(ChaosError, OSError):
        move_own_clock(cell)


def _refuse_unrun(result: object, spec: Spec) -> None:
    """Raise TypeError for the result of a function with async or yield: none of it has run."""
    if type(result).__name__ in {"coroutine", "generator", "async_generator"}:  # inspect costs each agent a lot
        if hasattr(result, "close"):
            result.close()  # else Python warns that it was never awaited
        msg = (
            f"an agent's function must do its work when it is called; {spec['target']} gave a {type(result).__name__}, "
            "of which nothing has run. Call it in a plain function, with asyncio.run or in a loop"
        )
        raise TypeError(msg)


def finish(code: int) -> NoReturn:
    """End the process as the interpreter would: wait for threads, run exit functions, flush."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - what Py_FinalizeEx calls
        atexit._run_exitfuncs()  # noqa: SLF001 - what Py_FinalizeEx calls
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


def main(descriptor: int) -> None:
    """Run an agent in a fresh interpreter; import path and spec are read from ``descriptor``."""
    with os.fdopen(descriptor) as source:
        sys.path[:], spec = json.load(source)
    finish(run_target(spec))


def _takes_marks(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None)
    if code is not None:  # a signature costs 30 times as much, and agents are started by the thousand
        return "marks" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    import inspect  # rarely needed; what is imported here is forked with every agent

    try:
        return "marks" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
