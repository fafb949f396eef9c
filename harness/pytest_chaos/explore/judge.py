"""Lets a target's own check judge states, in workers that live on from state to state and may hang or die.

A process for each state would cost more than the check. So a worker is forked once, from the
process that has the target and the recording, and judges one folder after the other; it is replaced
when it hangs, dies, or has grown. Each worker has two folders: while it looks at one, the next
state is written into the other.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec

from pytest_chaos.errors import AgentError
from pytest_chaos.explore.record import recorded_run
from pytest_chaos.explore.simulate.folder import StateFolder
from pytest_chaos.explore.target import TEXT_CHARACTERS_MAX, CheckError, CommandSubject, print_to_descriptors
from pytest_chaos.model.history import History
from pytest_chaos.model.values import Finding, Mark
from pytest_chaos.runtime import processes as tree
from pytest_chaos.trace.comparison import drawn_names
from pytest_chaos.trace.program import leave
from pytest_chaos.trace.source import Directive
from pytest_chaos.trace.step import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_chaos.explore.simulate.state import Item
    from pytest_chaos.explore.target import Subject
    from pytest_chaos.trace.source import ProgramRunner, StepSource
    from pytest_chaos.trace.step import Step

CHECK_TIMEOUT_S: Final = 10.0
MESSAGE_BYTES_MAX: Final = 1 << 20
OUTPUT_BYTES_MAX: Final = 1 << 20
"""What a worker has printed beyond this is thrown away; nobody reads it unless a check raises."""
MEMORY_BYTES_MAX: Final = 512 << 20
"""A worker that has grown by more than this is replaced: the check leaks."""
_FOLDERS: Final = 2
_GROWN: Final = 77
"""Exit code of a worker that leaves because it has grown."""
_SHOWN_LINES: Final = 3


class Check(msgspec.Struct, frozen=True, tag="check"):
    """Judge the folder of this number, knowing the first ``marks`` marks of the recorded run."""

    folder: int
    marks: int


class RealRun(msgspec.Struct, frozen=True, tag="run"):
    """Run the program in the folder of this number under a directive, then judge what it left."""

    folder: int
    directive: Directive
    timeout_s: float
    compare: bool = True
    """Whether the run is to make the recorded steps, up to where the directive is carried out."""


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a check, and of the run before it if there was one. ``output`` is the tail of what was printed."""

    findings: tuple[Finding, ...] = ()
    marks: int = 0
    fired: bool = False
    diverged_at: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    is_timed_out: bool = False
    failure: str = ""
    differences: tuple[str, ...] = ()
    """Where the folder, as the run left it, is not what its own recording gives."""
    count: int = 0
    strays: tuple[str, ...] = ()
    output: str = ""
    is_checked: bool = True
    """Whether this is the whole answer; without it the run is over, and the check is about to begin."""


class Known(NamedTuple):
    """What a worker knows from the fork: the target, the source of steps, and the run that was recorded."""

    subject: Subject
    source: StepSource
    marks: Sequence[Mark]
    steps: Sequence[Step]


class Worker:
    """One worker process and its folders, as the exploring process sees them.

    ``waiting`` is in the order of sending. A replacement takes over the ``base`` and the folders of
    the one before it.
    """

    def __init__(self, known: Known, base: Path, folders: Sequence[StateFolder] = ()) -> None:
        self.base = base
        self.base.mkdir(exist_ok=True)
        self.folders = folders or [StateFolder(base / f"state-{place}") for place in range(_FOLDERS)]
        self.waiting: deque[_Task] = deque()
        self.deadline_s = float("inf")
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _roomy(self.channel, theirs)
        sys.stdout.flush()
        sys.stderr.flush()
        with (
            warnings.catch_warnings()
        ):  # Python 3.12 warns of threads, and those that pytest has wait on nothing of ours
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _work(known, self.base, theirs, self.channel)
        theirs.close()

    @property
    def free(self) -> int:
        """The number of a folder that no task uses, or -1."""
        used = {task.folder for task in self.waiting}
        return next((place for place in range(_FOLDERS) if place not in used), -1)

    def send(self, task: _Task) -> None:
        """Hand over a task."""
        self.channel.send(msgspec.msgpack.encode(task.request))
        if not self.waiting:
            self.deadline_s = time.monotonic() + task.timeout_s
        self.waiting.append(task)

    def end(self) -> bool:
        """End the process with all that descends from it; return whether it had left because it had grown."""
        self.channel.close()
        for process in tree.descendants(self.pid):
            tree.end(process)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == _GROWN
        except ChildProcessError:
            return False


class _Task:
    """Something to be judged, and who wants to hear of it."""

    def __init__(
        self, request: Check | RealRun, done: Callable[[Judgement, Path], None], folder: int, timeout_s: float
    ) -> None:
        self.request = request
        self.done = done
        self.folder = folder
        self.timeout_s = timeout_s
        self.known = Judgement()
        """What came of the run, once it is over: a check that hangs takes nothing of that back."""


class Pool:
    """Workers that judge states. Use it as a context; its end ends the workers and everything they started.

    ``folder`` is where the states are written, best on a memory file system; it is the caller's to
    remove.
    """

    def __init__(self, known: Known, folder: Path, *, jobs: int = 1, timeout_s: float = CHECK_TIMEOUT_S) -> None:
        self._adopted_before = tree.adopt_orphans()
        self._known = known
        self._folder = folder
        self._timeout_s = timeout_s
        self._before = {process.pid for process in tree.descendants(os.getpid())}
        self._workers = [Worker(known, folder / f"worker-{number}") for number in range(jobs)]

    def __enter__(self) -> Self:
        """Return the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all workers."""
        self.close()

    def check(self, items: Mapping[str, Item], marks: int, done: Callable[[Judgement, Path], None]) -> None:
        """Have a state judged; ``done`` hears of it, with the folder, in a later call of this pool.

        Raises OSError when there is no room to write the state.
        """
        worker = self._free()
        place = worker.free
        worker.folders[place].put(items)
        worker.send(_Task(Check(place, marks), done, place, self._timeout_s))

    def run(
        self,
        directive: Directive,
        done: Callable[[Judgement, Path], None],
        *,
        timeout_s: float,
        items: Mapping[str, Item] | None = None,
        compare: bool = True,
    ) -> None:
        """Have the program really run from what was there before, and what it left judged; ``done`` hears of it."""
        worker = self._free()
        place = worker.free
        worker.folders[place].put(items or {})
        request = RealRun(place, directive, timeout_s, compare)
        worker.send(_Task(request, done, place, timeout_s + self._timeout_s + 1.0))

    def drain(self) -> None:
        """Wait until everything was judged."""
        while any(worker.waiting for worker in self._workers):
            self._take()

    def renew(self) -> None:
        """Replace the workers, which have nothing to do, by fresh ones, which remember no state."""
        self.drain()
        for place, worker in enumerate(self._workers):
            worker.end()
            self._workers[place] = Worker(self._known, worker.base, worker.folders)

    def close(self) -> None:
        """End the workers, and whatever their checks have left running. Closing twice is fine."""
        for worker in self._workers:
            worker.end()
        self._workers = []
        _reap(self._before)
        tree.adopt_orphans(adopts=self._adopted_before)

    def _free(self) -> Worker:
        """Return the worker with the least to do, of several the one that rests longest, once it has a folder free."""
        while True:
            worker = min(self._workers, key=lambda worker: len(worker.waiting))
            if len(worker.waiting) < _FOLDERS:
                self._take(wait_s=0.0)
                break
            self._take()
        worker = min(self._workers, key=lambda worker: len(worker.waiting))
        self._workers.remove(worker)
        self._workers.append(worker)
        return worker

    def _take(self, wait_s: float | None = None) -> None:
        """Take in what has been judged, and replace who has had its time; wait for one of these unless ``wait_s``."""
        busy = {worker.channel: worker for worker in self._workers if worker.waiting}
        if not busy:
            return
        nearest_s = min(worker.deadline_s for worker in busy.values()) - time.monotonic()
        ready, _, _ = select.select(list(busy), [], [], max(0.0, nearest_s) if wait_s is None else wait_s)
        for channel in ready:
            self._receive(busy[channel])
        now_s = time.monotonic()
        for worker in busy.values():
            if worker in self._workers and worker.waiting and now_s > worker.deadline_s:
                self._replace(worker, _hung(self._timeout_s))

    def _receive(self, worker: Worker) -> None:
        try:
            content = worker.channel.recv(MESSAGE_BYTES_MAX)
        except OSError:
            content = b""
        if not content:
            self._replace(worker, None)
            return
        judgement = msgspec.msgpack.decode(content, type=Judgement)
        if not judgement.is_checked:
            worker.waiting[0].known = judgement
            worker.deadline_s = time.monotonic() + self._timeout_s
            return
        task = worker.waiting.popleft()
        if worker.waiting:
            worker.deadline_s = time.monotonic() + worker.waiting[0].timeout_s
        task.done(judgement, worker.folders[task.folder].path)

    def _replace(self, worker: Worker, finding: Finding | None) -> None:
        """End a worker that hangs or has died; what it was at is judged so, what it had before it is done again."""
        has_grown = worker.end()
        fresh = Worker(self._known, worker.base, worker.folders)
        self._workers[self._workers.index(worker)] = fresh
        judged = worker.waiting.popleft() if worker.waiting and not (has_grown and finding is None) else None
        for rest in worker.waiting:
            fresh.send(rest)
        if judged is not None:
            path = fresh.folders[judged.folder].path
            found = (finding or _died(worker),)
            judged.done(msgspec.structs.replace(judged.known, findings=found, is_checked=True), path)


def _roomy(*channels: socket.socket) -> None:
    for channel in channels:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES_MAX)


def _hung(timeout_s: float) -> Finding:
    text = f"the check did not end within {timeout_s:g} s: reopening hangs, or the check does (--check-timeout sets it)"
    return Finding(signature="liveness:check-hangs", text=text, kind="liveness")


def _died(worker: Worker) -> Finding:
    text = f"the process of the check (pid {worker.pid}) died within it; a crash of the library it uses, or an exit?"
    return Finding(signature="harness:check-died", text=text, kind="harness")


def _reap(before: set[int]) -> None:
    """End what the checks have left: orphans come to this process, which adopts them. Raises AgentError."""

    def reap() -> None:
        with contextlib.suppress(ChildProcessError):
            for process in tree.descendants(os.getpid(), without=before):
                if not process.alive and process.parent_pid == os.getpid():
                    os.waitpid(process.pid, os.WNOHANG)

    if left := tree.end_all(os.getpid(), without=before, reap=reap):
        msg = f"processes {[process.pid for process in left]} that a check has started did not die of SIGKILL"
        raise AgentError(msg)
    reap()


# In the worker


def _work(known: Known, base: Path, channel: socket.socket, other: socket.socket) -> None:
    """Judge until nobody asks any more; never returns."""
    code = 1
    try:
        other.close()
        os.setsid()
        tree.die_with_parent()
        tree.adopt_orphans()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        output = _redirect(base / "output")
        standing = known.source.runner(known.subject.program)
        while content := channel.recv(MESSAGE_BYTES_MAX):
            request = msgspec.msgpack.decode(content, type=Check | RealRun)
            for judgement in _judge(known, standing, base, request):
                channel.send(msgspec.msgpack.encode(judgement))
            _tidy(base, output)
        code = 0
    except BaseException:  # noqa: BLE001 - this is the end of the process; its log says why
        traceback.print_exc()
    finally:
        leave(code)


def _redirect(path: Path) -> int:
    output = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    print_to_descriptors()
    return output


def _tidy(base: Path, output: int) -> None:
    """Undo what a check may have done to its own process."""
    os.chdir(base)
    if os.fstat(output).st_size > OUTPUT_BYTES_MAX:
        os.ftruncate(output, 0)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > _memory_bytes_max():
        os._exit(_GROWN)


_START_BYTES: Final = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _memory_bytes_max() -> int:
    return _START_BYTES + MEMORY_BYTES_MAX


def _judge(known: Known, standing: ProgramRunner, base: Path, request: Check | RealRun) -> Iterator[Judgement]:
    """Return what came of it; of a run first what came of that, and then all."""
    directory = base / f"state-{request.folder}"
    marks_file = base / f"marks-{request.folder}"
    if isinstance(request, Check):
        yield Judgement(findings=_examine(known.subject, directory, marks_file, known.marks[: request.marks]))
        return
    ran, steps = _run(known, standing, base, request)
    yield ran
    marks = History.from_lines(marks_file.read_bytes()).marks
    found = _examine(known.subject, directory, marks_file, marks)
    if found:
        drawn = drawn_names(steps, known.steps)
        found = tuple(_as_recorded(finding, drawn) for finding in found)
    yield msgspec.structs.replace(ran, findings=found, is_checked=True)


def _as_recorded(finding: Finding, drawn: Mapping[str, str]) -> Finding:
    """Return a finding with the names that the recorded run drew, or each run would find something of its own."""
    signature, text = finding.signature, finding.text
    for name, recorded in drawn.items():
        signature, text = signature.replace(name, recorded), text.replace(name, recorded)
    return msgspec.structs.replace(finding, signature=signature, text=text)


def _run(known: Known, standing: ProgramRunner, base: Path, request: RealRun) -> tuple[Judgement, Sequence[Step]]:
    """Return what came of a run, and the steps that it made."""
    directory, marks_file = base / f"state-{request.folder}", base / f"marks-{request.folder}"
    marks_file.unlink(missing_ok=True)
    seen, unlike = recorded_run(
        standing,
        known.source.name,
        directory,
        marks=marks_file,
        directive=request.directive,
        expected=known.steps if request.compare else (),
        timeout_s=request.timeout_s,
        folder=base / f"recording-{request.folder}" if request.compare else None,
    )
    judgement = Judgement(
        differences=unlike,
        marks=len(History.from_lines(marks_file.read_bytes()).marks),
        fired=seen.fired,
        diverged_at=seen.diverged_at,
        exit_code=seen.exit_code,
        signal=seen.signal,
        is_timed_out=seen.is_timed_out,
        failure=seen.failure,
        count=seen.count,
        strays=seen.strays,
        output=seen.output[-TEXT_CHARACTERS_MAX:],
        is_checked=False,
    )
    return judgement, seen.steps


def _examine(subject: Subject, directory: Path, marks_file: Path, marks: Sequence[Mark]) -> tuple[Finding, ...]:
    """Let the target's check judge; one that raises has decided nothing."""
    try:
        if isinstance(subject, CommandSubject):
            marks_file.write_bytes(History(tuple(marks)).to_json_lines())
            return tuple(subject.check_with_file(directory, marks_file))
        return tuple(subject.examine(directory, marks))
    except CheckError as error:  # its trace is ours, and says nothing of the command
        return (Finding(signature="harness:check-raised:CheckError", text=readable(str(error)), kind="harness"),)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is the user's code, and decides nothing
        where = traceback.format_exception(error)[-_SHOWN_LINES:]
        text = f"the check raised {type(error).__name__}: {error} ({' '.join(''.join(where).split())[:500]})"
        signature = f"harness:check-raised:{type(error).__name__}"
        return (Finding(signature=signature, text=readable(text), kind="harness"),)
