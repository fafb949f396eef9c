"""Worker processes in which a target's own check judges states, one after the other.

A process for each state would cost more than the check. So a worker is forked once, from the
process that has the target and the recording. A worker that hangs, dies or leaks memory is
replaced. Each worker has two folders: while it judges one, the next state is written into the
other.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

import msgspec

from pytest_chaos.errors import AgentError
from pytest_chaos.evidence.redact import clean
from pytest_chaos.explore.options import CHECK_TIMEOUT_S
from pytest_chaos.explore.record import Known, recorded_run
from pytest_chaos.explore.simulate.folder import StateFolder
from pytest_chaos.explore.target import CheckError, CommandSubject, print_to_descriptors
from pytest_chaos.model.history import History, not_marks
from pytest_chaos.model.signatures import keys_of
from pytest_chaos.model.values import Finding
from pytest_chaos.runtime import processes as tree
from pytest_chaos.trace.comparison import TraceComparison, drawn_names
from pytest_chaos.trace.program import leave
from pytest_chaos.trace.source import Directive
from pytest_chaos.trace.step import Step, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pytest_chaos.explore.simulate.state import Item, State
    from pytest_chaos.explore.target import Subject
    from pytest_chaos.model.values import Mark
    from pytest_chaos.trace.source import ProgramRunner

_About = TypeVar("_About")
MESSAGE_BYTES_MAX: Final = 1 << 20
OUTPUT_BYTES_MAX: Final = 1 << 20
_OUTPUT_CHARACTERS_MAX: Final = 4_000
"""Output of a worker beyond this is discarded; it is of use only if a check raises."""
MEMORY_BYTES_MAX: Final = 512 << 20
"""A worker that has grown by more than this is replaced: the check leaks memory."""
UNCLEAR: Final = "harness:check-unclear"
"""The signature of an answer of a check that is neither a finding nor empty."""
_FOLDERS: Final = 2
_DESCRIPTORS: Final = "/proc/self/fd"
_GROWN: Final = 77
"""Exit code of a worker that ends because it has grown."""


class StateTask(NamedTuple):
    """A state to judge; with a ``directive``, a real run from this state, and the state it leaves.

    ``marks`` counts the marks of the recorded run that precede a built state. A run that
    ``is_compared`` is compared with its own recording. If it also ``is_expected``, it has to make
    the recorded steps until the directive is carried out. What a run leaves that is not expected to
    come again is kept if something is found in it. ``code`` and ``state`` name it where the judging
    is done by another machine: the code of a run, the state that is built.
    """

    items: Mapping[str, Item]
    marks: int = 0
    directive: Directive | None = None
    run_timeout_s: float = 0.0
    is_compared: bool = True
    is_expected: bool = True
    family: str = ""
    code: str = ""
    state: State | None = None


class _Request(msgspec.Struct, frozen=True):
    """A task as the worker gets it; its items are already in the folder of this number."""

    folder: int
    marks: int
    directive: Directive | None
    run_timeout_s: float
    is_compared: bool
    is_expected: bool
    family: str = ""
    """The family that the state is of."""
    is_watched: bool = False
    """Whether the next state in this folder may keep files of this one."""


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a check, and of the run before it, if any."""

    findings: tuple[Finding, ...] = ()
    marks: int = 0
    fired: bool = False
    diverged_at: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    is_timed_out: bool = False
    failure: str = ""
    waits: tuple[str, ...] = ()
    """What each thread of the run waited for in a deadlock."""
    struck: Step | None = None
    """The step of this run that failed, or that a kill kept it from making."""
    kept: str = ""
    """The folder with what a run left that went its own way, if something was found in it."""
    output: str = ""
    """The end of what the program printed in a run in which something was found."""
    differences: tuple[str, ...] = ()
    """Differences between the folder that the run left and its own recording."""
    said: str = ""
    """Standard error of a check command that found nothing."""
    left: tuple[str, ...] = ()
    """The names of processes that the check left running, and which were ended."""
    is_out_of_time: bool = False
    """Whether the run or the check was ended for want of time, so that it decided nothing."""
    is_open: bool = False
    """Whether the check has left files of the folder open: nothing in it may stay."""
    is_checked: bool = True
    """False for the result of the run alone, sent before the check begins."""


def why_unended(waits: Sequence[str], bound_s: float) -> str:
    """Return in words why a run was ended: it was in a deadlock, or had used its time."""
    return f"came into a deadlock ({'; '.join(waits)})" if waits else f"did not end within {bound_s:.3g} s"


class _Waiting:
    """A task that was sent to a worker."""

    def __init__(self, request: _Request, about: object, timeout_s: float) -> None:
        self.request = request
        self.about = about
        self.timeout_s = timeout_s
        self.ran = Judgement()
        """The result of the run, kept also if the check after it hangs."""


class JudgeWorker:
    """One worker process and its folders, as the exploring process sees them.

    ``waiting`` is in the order of sending. A replacement takes over the ``base`` and the folders of
    the one before it.
    """

    def __init__(self, known: Known, base: Path, folders: Sequence[StateFolder] = ()) -> None:
        self.base = base
        self.base.mkdir(exist_ok=True)
        self.folders = folders or [StateFolder(base / f"state-{place}") for place in range(_FOLDERS)]
        for folder in self.folders:
            folder.forget()  # what an earlier process of this place had open may be written still
        self.waiting: deque[_Waiting] = deque()
        self.deadline_s = float("inf")
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _roomy(self.channel, theirs)
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():  # Python 3.12 warns of threads; pytest's wait for nothing of ours
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _work(known, self.base, theirs, self.channel)
        theirs.close()

    @property
    def free(self) -> int:
        """The number of a folder that no task uses, or -1."""
        used = {task.request.folder for task in self.waiting}
        return next((place for place in range(_FOLDERS) if place not in used), -1)

    def send(self, task: _Waiting) -> None:
        """Hand over a task. If the process has just died, it waits for the replacement."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.channel.send(msgspec.msgpack.encode(task.request))
        if not self.waiting:
            self.deadline_s = time.monotonic() + task.timeout_s
        self.waiting.append(task)

    def end(self) -> bool:
        """End the process and all its descendants; return whether it had exited as grown."""
        self.channel.close()
        for process in tree.descendants(self.pid):
            tree.end(process)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == _GROWN
        except ChildProcessError:
            return False


class Pool:
    """Workers that judge states; a context manager that ends them and all that they started.

    Tasks are handed in, and judgements come back later, in the order in which they are ready.
    ``folder`` is for the states, best on a memory file system; the caller removes it.
    ``cluster.seam`` has one whose tasks other machines judge.
    """

    save_every_s = 2.0
    """The interval at which all that is under way may be waited for, to save the progress."""

    def __init__(self, known: Known, folder: Path, *, jobs: int = 1, timeout_s: float = CHECK_TIMEOUT_S) -> None:
        self._adopted_before = tree.adopt_orphans()
        self._known = known
        self._timeout_s = timeout_s
        self._before = {process.pid for process in tree.descendants(os.getpid())}
        self._workers = [JudgeWorker(known, folder / f"worker-{number}") for number in range(jobs)]
        self._judged: list[tuple[Any, Judgement]] = []
        self.until_s = float("inf")
        """When every task is ended, even before its own deadline (``time.monotonic``)."""
        self.gone = ""
        """Why no further task can be judged; empty as long as they can."""
        self.problems: dict[str, str] = {}
        """What kept tasks from being judged, by its signature."""

    def __enter__(self) -> Self:
        """Return the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all workers."""
        self.close()

    def submit(self, task: StateTask, about: object = None) -> list[tuple[Any, Judgement]]:
        """Hand a task in, and return the judgements that have arrived, each with its ``about``.

        Waits for a free worker. Raises OSError if there is no room to write the state.
        """
        worker = self._free()
        place = worker.free
        folder = worker.folders[place]
        folder.put(task.items)
        if task.directive is not None:
            folder.forget()
        request = _Request(
            place,
            task.marks,
            task.directive,
            task.run_timeout_s,
            task.is_compared,
            task.is_expected,
            task.family,
            folder.is_watched,
        )
        run_s = task.run_timeout_s + 1.0 if task.directive is not None else 0.0
        worker.send(_Waiting(request, about, run_s + self._timeout_s))
        return self._take_judged()

    def drain(self) -> list[tuple[Any, Judgement]]:
        """Wait until everything is judged, and return the judgements."""
        while any(worker.waiting for worker in self._workers):
            self._receive_some()
        return self._take_judged()

    def answers(
        self, things: Iterable[_About], task_of: Callable[[_About], StateTask]
    ) -> Iterator[tuple[_About, Judgement]]:
        """Have the task of each thing judged, and yield each thing with its judgement."""
        for thing in things:
            yield from self.submit(task_of(thing), thing)
        yield from self.drain()

    def judge(self, task: StateTask) -> Judgement:
        """Have one task judged, and wait for it; no other task may be waiting."""
        ((_, judgement),) = [*self.submit(task), *self.drain()]
        return judgement

    def _take_judged(self) -> list[tuple[Any, Judgement]]:
        judged, self._judged = self._judged, []
        return judged

    def renew(self) -> None:
        """Replace the idle workers by fresh ones, which have judged nothing."""
        for place, worker in enumerate(self._workers):
            worker.end()
            self._workers[place] = JudgeWorker(self._known, worker.base, worker.folders)

    def close(self) -> None:
        """End the workers, and all that their checks have left running. Closing twice is fine."""
        for worker in self._workers:
            worker.end()
        self._workers = []
        _reap(self._before)
        tree.adopt_orphans(adopts=self._adopted_before)

    def _free(self) -> JudgeWorker:
        """Wait for a free folder, and return the worker with the fewest tasks.

        Of several such workers it is the one whose last task is the longest ago.
        """
        while True:
            worker = min(self._workers, key=lambda worker: len(worker.waiting))
            if len(worker.waiting) < _FOLDERS:
                self._receive_some(wait_s=0.0)
                break
            self._receive_some()
        worker = min(self._workers, key=lambda worker: len(worker.waiting))
        self._workers.remove(worker)
        self._workers.append(worker)
        return worker

    def _receive_some(self, wait_s: float | None = None) -> None:
        """Receive judgements, and replace workers that are past their deadline.

        Wait until the nearest deadline, or for ``wait_s`` if that is given.
        """
        busy = {worker.channel: worker for worker in self._workers if worker.waiting}
        if not busy:
            return
        nearest_s = min(self.until_s, *(worker.deadline_s for worker in busy.values())) - time.monotonic()
        ready, _, _ = select.select(list(busy), [], [], max(0.0, nearest_s) if wait_s is None else wait_s)
        for channel in ready:
            self._receive(busy[channel])
        now_s = time.monotonic()
        for worker in busy.values():
            if worker in self._workers and worker.waiting and now_s > worker.deadline_s:
                self._replace(worker, _hung(self._timeout_s))
            elif worker in self._workers and worker.waiting and now_s > self.until_s:
                self._replace(worker, None, is_out_of_time=True)

    def _receive(self, worker: JudgeWorker) -> None:
        try:
            content = worker.channel.recv(MESSAGE_BYTES_MAX)
        except OSError:
            content = b""
        if not content:
            self._replace(worker, None)
            return
        judgement = msgspec.msgpack.decode(content, type=Judgement)
        if judgement.findings or judgement.failure or judgement.differences:
            judgement = clean(judgement)
        if not judgement.is_checked:
            worker.waiting[0].ran = judgement
            worker.deadline_s = time.monotonic() + self._timeout_s
            return
        task = worker.waiting.popleft()
        if judgement.is_open:
            worker.folders[task.request.folder].forget()
        if worker.waiting:
            worker.deadline_s = time.monotonic() + worker.waiting[0].timeout_s
        self._judged.append((task.about, judgement))

    def _replace(self, worker: JudgeWorker, finding: Finding | None, *, is_out_of_time: bool = False) -> None:
        """Replace a worker that hangs, has died, or is out of time.

        Its current task is judged with the finding; its other tasks go to the new worker.
        """
        has_grown = worker.end() and not is_out_of_time
        fresh = JudgeWorker(self._known, worker.base, worker.folders)
        self._workers[self._workers.index(worker)] = fresh
        lost = worker.waiting.popleft() if worker.waiting and not (has_grown and finding is None) else None
        for rest in worker.waiting:
            fresh.send(rest)
        if lost is not None:
            found = () if is_out_of_time else (finding or _died(worker),)
            judgement = msgspec.structs.replace(
                lost.ran, findings=found, is_checked=True, is_out_of_time=is_out_of_time
            )
            self._judged.append((lost.about, judgement))


def _roomy(*channels: socket.socket) -> None:
    for channel in channels:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES_MAX)


def _hung(timeout_s: float) -> Finding:
    text = f"the check did not end within {timeout_s:g} s: reopening hangs, or the check does (--check-timeout sets it)"
    return Finding(signature="liveness:check-hangs", text=text, kind="liveness")


def _died(worker: JudgeWorker) -> Finding:
    text = f"the process of the check (pid {worker.pid}) died within it; a crash of the library it uses, or an exit?"
    return Finding(signature="harness:check-died", text=text, kind="harness")


def _reap(before: set[int]) -> None:
    """End processes that checks have left, which this process adopts. Raises AgentError."""

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
    """Judge until the channel is closed; never returns."""
    code = 1
    try:
        other.close()
        os.setsid()
        tree.die_with_parent()
        tree.adopt_orphans()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        outputs = _redirect(base / "output")
        runner = known.source.runner(known.subject.program)
        keys = keys_of(known.marks)
        descriptors = len(os.listdir(_DESCRIPTORS))
        while content := channel.recv(MESSAGE_BYTES_MAX):
            request = msgspec.msgpack.decode(content, type=_Request)
            for judgement in _judge(known, runner, base, request, keys):
                if request.is_watched and judgement.is_checked and _is_open(base, descriptors):
                    judgement = msgspec.structs.replace(judgement, is_open=True)  # noqa: PLW2901 - the same one
                channel.send(msgspec.msgpack.encode(judgement))
            _tidy(base, outputs)
        code = 0
    except BaseException:  # noqa: BLE001 - the process ends here; its output file says why
        traceback.print_exc()
    finally:
        leave(code)


def _is_open(base: Path, before: int) -> bool:
    """Whether this process has files open below its folder.

    ``before`` counts the descriptors that it had at first.
    """
    numbers = os.listdir(_DESCRIPTORS)
    if len(numbers) > before:
        prefix = f"{os.path.realpath(base)}{os.sep}state-"
        for number in numbers:
            with contextlib.suppress(OSError):
                if os.readlink(f"{_DESCRIPTORS}/{number}").startswith(prefix):
                    return True
    return False


def _redirect(path: Path) -> tuple[int, ...]:
    """Redirect standard output and standard error to two files.

    Only printed output makes an empty answer invalid (``target.Subject.examine``).
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    output, errors = os.open(path, flags, 0o600), os.open(path.with_name("errors"), flags, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (errors, 2)):
        os.dup2(source, target)
    print_to_descriptors()
    return (output, errors)


def _tidy(base: Path, outputs: tuple[int, ...]) -> None:
    """Undo what a check may have done to its own process."""
    os.chdir(base)
    for output in outputs:
        if os.fstat(output).st_size > OUTPUT_BYTES_MAX:
            os.ftruncate(output, 0)
    has_grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > _START_BYTES + MEMORY_BYTES_MAX
    if has_grown or threading.active_count() > _THREADS_MAX:
        os._exit(_GROWN)


_THREADS_MAX: Final = 64
"""A worker in which checks have left so many threads is replaced."""
_ENDS_S: Final = 5.0
_START_BYTES: Final = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _judge(
    known: Known, runner: ProgramRunner, base: Path, request: _Request, keys: frozenset[str]
) -> Iterator[Judgement]:
    """Yield the judgement; for a real run, yield the result of the run first.

    ``keys`` are those of the recorded run, whichever marks precede the state.
    """
    directory, marks_file = base / f"state-{request.folder}", base / f"marks-{request.folder}"
    known.subject.judging(request.family, None)
    if request.directive is None:
        findings = _examine(known.subject, directory, marks_file, known.marks[: request.marks], keys)
        yield Judgement(findings=findings, said=getattr(known.subject, "said", ""), left=_end_left())
        return
    seen, ran = _run(known, runner, base, request, request.directive)
    _KEPT.update(tree.children())  # the zygote, which the next run needs
    yield ran
    known.subject.judging(request.family, ran)
    history = History.from_lines(marks_file.read_bytes())
    wrong = not_marks(history.torn, may_be_cut=ran.signal is not None)
    own = None if request.is_expected else _snapshot(base, directory, history)
    keys |= keys_of(history.marks)
    if found := (*wrong, *_examine(known.subject, directory, marks_file, history.marks, keys)):
        drawn = drawn_names(seen, known.steps, known.source.files)
        found = tuple(_as_recorded(finding, drawn) for finding in found)
    elif own is not None:
        shutil.rmtree(own, ignore_errors=True)
        own = None
    output = ran.output if found else ""
    kept = str(own or "")
    yield msgspec.structs.replace(ran, findings=found, is_checked=True, kept=kept, output=output, left=_end_left())


_KEPT: Final[set[int]] = set()
"""The children of this worker that stay when a check is over."""
_HELPERS: Final = (b"from multiprocessing.resource_tracker import", b"from multiprocessing.forkserver import")
"""Processes of Python's own that serve each check of a process, and end with it."""


def _end_left() -> tuple[str, ...]:
    """End what a check has left running, before the next one meets it; return its names."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there is no child: this costs least, and is so for most checks
        return ()
    left: list[str] = []
    deadline_s = time.monotonic() + _ENDS_S
    while (pids := [pid for pid in tree.children() if pid not in _KEPT]) and time.monotonic() < deadline_s:
        for pid in pids:
            process = tree.read(pid)
            if process is not None and process.alive:
                if any(name in _command_line(pid) for name in _HELPERS):
                    _KEPT.add(pid)
                    continue
                left.append("child" if process.name == tree.own().name else process.name)
                tree.end(process)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
    return tuple(left)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _snapshot(base: Path, directory: Path, history: History) -> Path:
    """Copy what a run left, before the check changes it, and its marks; return the folder."""
    number = sum(1 for _ in base.glob("own-*"))
    own = base / f"own-{number}"
    shutil.copytree(directory, own / "directory", symlinks=True)
    (own / "marks.jsonl").write_bytes(history.to_json_lines())
    return own


def _parted_at(steps: Sequence[Step], known: Known) -> int | None:
    """Return the first step of a run that was not the recorded one, None for no such step."""
    comparison = TraceComparison([step for step in known.steps if not step.is_mark], known.source.files)
    return next((step.number for step in steps if not step.is_mark and not comparison.follows(step)), None)


def _as_recorded(finding: Finding, drawn: Mapping[str, str]) -> Finding:
    """Return a finding with the drawn names of the recorded run in place of this run's."""
    signature, text = finding.signature, finding.text
    for name, recorded in drawn.items():
        signature, text = signature.replace(name, recorded), text.replace(name, recorded)
    return msgspec.structs.replace(finding, signature=signature, text=text)


def _run(
    known: Known, runner: ProgramRunner, base: Path, request: _Request, directive: Directive
) -> tuple[Sequence[Step], Judgement]:
    """Return the steps that a run made, and its result."""
    marks_file = base / f"marks-{request.folder}"
    marks_file.unlink(missing_ok=True)
    is_expected = request.is_compared and request.is_expected
    seen, unlike = recorded_run(
        runner,
        known.source.name,
        base / f"state-{request.folder}",
        marks=marks_file,
        directive=directive,
        expected=known.steps if is_expected else (),
        schedule=known.schedule,
        timeout_s=request.run_timeout_s,
        folder=base / f"recording-{request.folder}" if request.is_compared else None,
    )
    ran = Judgement(
        differences=unlike,
        marks=len(History.from_lines(marks_file.read_bytes()).marks),
        fired=seen.fired,
        diverged_at=seen.diverged_at if is_expected else _parted_at(seen.steps, known),
        struck=_named(seen.struck),
        waits=seen.waits,
        exit_code=seen.exit_code,
        signal=seen.signal,
        is_timed_out=seen.is_timed_out,
        failure=seen.failure,
        output=seen.output[-_OUTPUT_CHARACTERS_MAX:],
        is_checked=False,
    )
    return seen.steps, ran


def _named(step: Step | None) -> Step | None:
    """Return a step whose names can be sent: no UTF-8 has all names of files."""
    if step is None or (step.path.isascii() and step.target.isascii()):
        return step
    return msgspec.structs.replace(step, path=readable(step.path), target=readable(step.target))


def _examine(
    subject: Subject, directory: Path, marks_file: Path, marks: Sequence[Mark], keys: frozenset[str]
) -> tuple[Finding, ...]:
    """Return the findings of the target's check; a check that raises is INCONCLUSIVE."""
    try:
        if isinstance(subject, CommandSubject):
            marks_file.write_bytes(History(tuple(marks)).to_json_lines())
            return tuple(subject.check_with_file(directory, marks_file, keys))
        return tuple(subject.examine(directory, marks, keys))
    except CheckError as error:
        signature = f"harness:check-raised:{type(error.__cause__).__name__}" if error.__cause__ else UNCLEAR
        return (Finding(signature=signature, text=readable(str(error)), kind="harness"),)
