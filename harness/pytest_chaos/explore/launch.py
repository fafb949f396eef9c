"""The start of an exploration: step source, folder in memory, a process below a guardian.

Three processes: the caller, the guardian (with its stand-in), and the explorer. The guardian is a
child subreaper in a session of its own, so every process that a target starts, a daemon too, is its
descendant. It waits until the caller or the explorer ends, then kills what is left. If the caller
ended, the guardian also removes the folders of the exploration. A parent-death signal alone would
miss daemons, and removes no folder.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import shutil
import signal
import tempfile
import threading
import time
import traceback
import warnings
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, NoReturn, TypeVar

import msgspec

from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.evidence.redact import clean
from pytest_chaos.explore.explorer import ROOM_BYTES_MIN, Explorer
from pytest_chaos.explore.inspection import Judged, judge_one
from pytest_chaos.explore.machine.search import Found, Search, notes_of
from pytest_chaos.explore.machine.subject import MachineSubject, MachineTarget
from pytest_chaos.explore.report import Exploration, ExplorationError, harness_finding
from pytest_chaos.model.values import Finding, Verdict
from pytest_chaos.runtime import owner, processes, scratch
from pytest_chaos.runtime.guardian import become_guardian, end_descendants, stand_in
from pytest_chaos.trace.program import leave
from pytest_chaos.trace.source import source_for, why_not_seccomp
from pytest_chaos.trace.step import KNOWN_FILES, FileKinds

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from pytest_chaos.explore.cluster.engine import ClusterEngine
    from pytest_chaos.explore.options import Options
    from pytest_chaos.explore.session import Progress
    from pytest_chaos.explore.target import Subject
    from pytest_chaos.trace.source import StepSource

_Answer = TypeVar("_Answer")
_GO_ON: Final = b"+"
_STOP: Final = b"-"
_PROGRESS, _ANSWER, _ERROR = b"p", b"a", b"e"


def guarded(
    work: Callable[[Callable[[Progress], None]], _Answer],
    *,
    folders: Sequence[Path],
    listen: Callable[[Progress], None] = lambda _: None,
) -> _Answer:
    """Do ``work`` in a process of its own and return its answer.

    ``folders`` are removed if the calling process is killed. An exception of the work is raised
    here. Ctrl-C goes to the work, which answers with the results so far; a second one ends it.
    Raises ExplorationError when the work's process was killed.
    """
    return _Guarded(work, folders, listen).answer()


class _Guarded(Generic[_Answer]):
    """The caller's end of the channel to the explorer."""

    def __init__(
        self,
        work: Callable[[Callable[[Progress], None]], _Answer],
        folders: Sequence[Path],
        listen: Callable[[Progress], None],
    ) -> None:
        self._listen = listen
        self._interrupts = 0
        self._channel, theirs = Pipe()
        ours = os.pidfd_open(os.getpid())
        with warnings.catch_warnings():  # Python 3.12 warns of threads; a progress bar's hold no lock of ours
            warnings.simplefilter("ignore", DeprecationWarning)
            self._guardian = os.fork()
        if self._guardian == 0:
            self._channel.close()
            guard(work, theirs, ours, folders)
        os.close(ours)
        theirs.close()

    def answer(self) -> _Answer:
        """Receive progress and the answer of the explorer, then end the guardian."""
        try:
            with self._passing_interrupts_on():
                return self._receive_answer()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._guardian, signal.SIGTERM)  # not reaped yet, so its pid is not reused
            os.waitpid(self._guardian, 0)
            self._channel.close()

    def _receive_answer(self) -> _Answer:
        while True:
            try:
                kind, content = _received(self._channel)
            except (EOFError, OSError) as error:
                text = (
                    "the process that explored was killed: by the target it explores, for want of memory, or by "
                    "another process; nothing of it is left running, and another run goes on from there"
                )
                raise ExplorationError(text, signature="harness:explorer-killed") from error
            value = pickle.loads(content)  # noqa: S301 - the explorer is this very program, forked
            if kind == _ANSWER:
                answer: _Answer = value
                return answer
            if kind == _ERROR:
                raise value
            self._tell(value)

    def _tell(self, progress: Progress) -> None:
        try:
            self._listen(progress)
            reply = _GO_ON
        except KeyboardInterrupt:
            reply = _STOP
        with contextlib.suppress(OSError):  # it was killed: the next receive finds out
            self._channel.send_bytes(reply)

    @contextlib.contextmanager
    def _passing_interrupts_on(self) -> Iterator[None]:
        """Pass the first Ctrl-C to the explorer, which returns its result; raise at the second."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def pass_on(*_: object) -> None:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
            os.kill(self._guardian, signal.SIGINT)

        numbers = [signal.SIGINT]
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # else it belongs to who called us
            numbers.append(signal.SIGTERM)
        before = [(number, signal.signal(number, pass_on)) for number in numbers]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)


def _received(channel: Connection) -> tuple[bytes, bytes]:
    content = channel.recv_bytes()
    return content[:1], content[1:]


# In the guardian


class _Ended(Exception):  # noqa: N818 - says what happened
    """The caller has its answer, or has ended."""


def guard(
    work: Callable[[Callable[[Progress], None]], _Answer],
    channel: Connection,
    asking: int,
    folders: Sequence[Path],
    *,
    beside: Sequence[Connection | socket.socket] = (),
    grace_s: float = 0.0,
) -> NoReturn:
    """Start the explorer, wait until it or the caller ends, and clean up; never returns.

    ``asking`` is a pidfd of the caller. What is ``beside`` the channel is the explorer's alone.
    An explorer that notices the caller's end by itself has ``grace_s`` to end what it has.
    """

    def let_go() -> None:
        for each in (channel, *beside):
            each.close()

    try:
        os.setsid()
        become_guardian()
        for folder in folders:
            owner.hold(folder)
        stand_in(asking, folders, let_go=let_go)
        own_pid = os.getpid()
        explorer = os.fork()
        if explorer == 0:
            _explore(work, channel, own_pid, folders)
        let_go()
        _wait(explorer, asking, grace_s)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_descendants()
        if processes.has_ended(asking):
            for folder in folders:
                scratch.remove(folder)
    finally:
        leave(0)


def _wait(explorer: int, asking: int, grace_s: float) -> None:
    """Wait until the explorer or the caller has ended, and pass Ctrl-C on meanwhile."""

    def end(*_: object) -> None:
        raise _Ended

    poll = select.poll()
    poll.register(os.pidfd_open(explorer), select.POLLIN)
    poll.register(asking, select.POLLIN)
    with contextlib.suppress(_Ended):
        signal.signal(signal.SIGINT, lambda *_: os.kill(explorer, signal.SIGINT))
        signal.signal(signal.SIGTERM, end)
        poll.poll()
        poll.unregister(asking)
        poll.poll(grace_s * 1000)


# In the explorer


def _explore(
    work: Callable[[Callable[[Progress], None]], _Answer], channel: Connection, guardian: int, folders: Sequence[Path]
) -> NoReturn:
    """Do the work and send its answer or its exception; never returns."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        processes.die_with_parent(guardian)
        os.environ[owner.VARIABLE] = str(folders[0].resolve())  # the next sweep finds what is left by it

        def tell(progress: Progress) -> None:
            channel.send_bytes(_PROGRESS + pickle.dumps(progress))
            if channel.recv_bytes() == _STOP:
                raise KeyboardInterrupt

        try:
            message = _ANSWER + pickle.dumps(work(tell))
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            message = _ERROR + _pickled(error)
        channel.send_bytes(message)
    finally:
        leave(0)


def _pickled(error: BaseException) -> bytes:
    """Return an exception pickled, with its traceback as a note.

    An exception that cannot be pickled becomes a RuntimeError with the traceback as its text.
    """
    where = "".join(traceback.format_exception(error))
    try:
        error.add_note(where)
        content = pickle.dumps(error)
        pickle.loads(content)  # noqa: S301 - to see whether the caller can read it
    except Exception:  # noqa: BLE001 - pickling runs code of the user's exception
        return pickle.dumps(RuntimeError(where))
    return content


# The start of an exploration


MEMORY_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - the folders made in it are this user's alone
_MOUNTS: Final = Path("/proc/self/mounts")


def launch(subject: Subject, options: Options, *, listen: Callable[[Progress], None] = lambda _: None) -> Exploration:
    """Explore a target in a folder of its own, by default in memory, which is removed afterwards.

    Raises UsageError for folders that cannot be used. If no steps can be seen on this machine, a
    finding leaves the exploration INCONCLUSIVE.
    """
    base = _base(options)
    try:
        source = step_source(options.source, _files(subject, options))
    except StepsUnavailable as error:
        return _undecided(subject, options, "harness:no-steps-here", error)
    if (subject.is_server or subject.is_by_restart) and source.name == "audit":
        what = "a server" if subject.is_server else "a program without a check"
        text = f"{what} is explored by system calls: {why_not_seccomp() or 'leave out --source'}"
        return _undecided(subject, options, "harness:no-steps-here", StepsUnavailable(text))
    if subject.is_machine:
        return _launch_machine(subject, source, options, listen)
    with work_folders(base, Path(tempfile.gettempdir())) as folders, _cluster(subject, options, source) as engine:

        def explore(tell: Callable[[Progress], None]) -> Exploration:
            place = (subject, source, options, folders[0])
            return Explorer(*place, disk=folders[1], listen=tell, engine=engine).explore()

        try:
            found = guarded(explore, folders=folders, listen=listen)
        except ExplorationError as error:
            return _undecided(subject, options, error.signature, error)
    if source.name == "audit" and options.source is None:
        found = _fallen_back(found)
    if not is_memory(base):
        note = f"states were written to {base}, not to memory: that takes longer, and finds the same"
        found = msgspec.structs.replace(found, notes=(*found.notes, note))
    return clean(found)


def _launch_machine(
    subject: Subject, source: StepSource, options: Options, listen: Callable[[Progress], None]
) -> Exploration:
    """Draw workloads of a state machine, and explore the smallest that fails, or the longest."""
    begun_s = time.monotonic()
    try:
        found = _searched(subject, source, options, listen)
    except ExplorationError as error:
        return _undecided(subject, options, error.signature, error)
    if found.plain:
        finding = Finding(signature="clean-run:machine", text=found.plain, kind="clean-run", checker="explore")
        return clean(Exploration(target=subject.name, seed=options.seed, findings=(finding,)))
    if found.workload is None:
        text = "no workload made a durable step: let the rules write in self.directory, or give a larger budget"
        return _undecided(subject, options, "harness:no-steps", ExplorationError(text))
    if options.budget_s is not None:
        options = msgspec.structs.replace(options, budget_s=max(1.0, options.budget_s - time.monotonic() + begun_s))
    explored = launch(_subject_of(subject, found), options, listen=listen)
    findings = list(explored.findings)
    if found.fails and explored.verdict is not Verdict.VIOLATED:
        text = f"a workload failed while it was searched for, and held when it was explored whole: {found.workload}"
        findings.append(harness_finding("harness:workload-not-again", text))
    if found.is_over and not found.fails:
        text = f"the budget was over after {found.tried:,} of {options.workloads:,} workloads: give a larger one"
        findings.append(harness_finding("harness:incomplete:workloads", text))
    notes = (*notes_of(found), *explored.notes)
    workload = str(found.workload)
    return clean(msgspec.structs.replace(explored, findings=tuple(findings), notes=notes, workload=workload))


def _searched(subject: Subject, source: StepSource, options: Options, listen: Callable[[Progress], None]) -> Found:
    assert isinstance(subject, MachineTarget)  # noqa: S101 - see is_machine
    if source.name == "audit":
        text = f"a state machine is explored by system calls: {why_not_seccomp() or 'leave out --source'}"
        raise ExplorationError(text, signature="harness:no-steps-here")
    cls, examples = subject.cls, options.kept.parent / "examples" if options.kept is not None else None
    with work_folders(_base(options)) as folders:
        return guarded(
            lambda tell: Search(cls, source, options, folders[0], examples=examples, listen=tell).search(),
            folders=folders, listen=listen,
        )  # fmt: skip


def _subject_of(subject: Subject, found: Found) -> Subject:
    assert isinstance(subject, MachineTarget)  # noqa: S101 - see is_machine
    assert found.workload is not None  # noqa: S101 - asked before
    return MachineSubject(subject.cls, found.workload, place=subject.place)


@contextlib.contextmanager
def _cluster(subject: Subject, options: Options, source: StepSource) -> Iterator[ClusterEngine | None]:
    """Yield an engine for the cluster of the options, None without one, or for audit events.

    Raises UsageError for a wrong address, and for a target that cannot leave its process.
    """
    if not options.cluster or source.name == "audit":
        yield None
        return
    from pytest_chaos.explore.cluster.engine import check_address, engine_of  # only where there is a cluster
    from pytest_chaos.explore.cluster.parcel import pickled

    check_address(options.cluster)
    pickled(subject)
    with contextlib.closing(engine_of(options.cluster)) as engine:
        yield engine


def judge_state(subject: Subject, options: Options, code: str, destination: Path) -> Judged:
    """Record a target, keep the state of a code in ``destination``, and judge a copy of it.

    ``destination`` is emptied first. Raises UsageError for a code of another target,
    ExplorationError for a target that cannot be recorded, StepsUnavailable on a machine where
    nothing can be recorded.
    """
    source = step_source(files=_files(subject, options))
    if subject.is_machine:
        found = _searched(subject, source, options, lambda _: None)
        if found.workload is None:
            msg = f"state code must name a state of {subject.name}, of which no workload makes a step; got {code}"
            raise UsageError(msg)
        subject = _subject_of(subject, found)
    shutil.rmtree(destination, ignore_errors=True)
    with work_folders(_base(options)) as folders:
        return guarded(lambda _: judge_one(subject, source, options, folders[0], code, destination), folders=folders)


def _base(options: Options) -> Path:
    """Return the folder in which states are written. Raises UsageError."""
    base = options.scratch or default_base()
    if not base.is_dir():
        msg = f"scratch must be a folder that exists; got {base}. Give another with --scratch"
        raise UsageError(msg)
    return base


def _undecided(subject: Subject, options: Options, signature: str, error: Exception) -> Exploration:
    finding = harness_finding(signature, str(error))
    return clean(Exploration(target=subject.name, seed=options.seed, findings=(finding,)))


@contextlib.contextmanager
def work_folders(*bases: Path) -> Iterator[list[Path]]:
    """Make a folder of this process in each base, and remove them at the end.

    Folders whose owner is gone are removed first.
    """
    made: list[Path] = []
    try:
        for base in bases:
            scratch.sweep(base)
            made.append(scratch.create(base))
        yield made
    finally:
        for folder in made:
            scratch.remove(folder)


def _files(subject: Subject, options: Options) -> FileKinds:
    """Return the files that are no data, of the target and of the options."""
    files = subject.files
    volatile = [each for each in options.volatile if not (subject.is_by_restart and ":" in each)]
    return FileKinds((*files.ignored, *options.ignore), (*files.volatile, *volatile))


def step_source(name: str | None = None, files: FileKinds = KNOWN_FILES) -> StepSource:
    """Return the step source of this name, or the best one on this machine.

    Raises StepsUnavailable, and UsageError for an unknown name.
    """
    return source_for(name, files)


def default_base() -> Path:
    """Return the folder for states: memory if it has room, else the temporary directory."""
    if is_memory(MEMORY_FOLDER) and shutil.disk_usage(MEMORY_FOLDER).free >= ROOM_BYTES_MIN:
        return MEMORY_FOLDER
    return Path(tempfile.gettempdir())


def is_memory(folder: Path) -> bool:
    """Whether a folder lies on a memory file system."""
    if not folder.is_dir():
        return False
    device = folder.stat().st_dev
    try:
        mounts = [line.split() for line in _MOUNTS.read_text(errors="replace").splitlines()]
    except OSError:
        return False
    points = [Path(fields[1]) for fields in mounts if fields[2] in {"tmpfs", "ramfs"}]
    return any(_device(point) == device for point in points)


def _device(point: Path) -> int:
    try:
        return point.stat().st_dev
    except OSError:
        return -1


def _fallen_back(found: Exploration) -> Exploration:
    """Return a result that is not HELD: only audit events were explored, without --source audit."""
    text = f"only named audit events were explored, which --source audit accepts, since {why_not_seccomp()}"
    finding = harness_finding("harness:named-events-only", text)
    return msgspec.structs.replace(found, findings=(*found.findings, finding))
