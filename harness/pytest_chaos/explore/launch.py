"""The start of an exploration: step source, folder in memory, a process below a guardian.

Three processes: the asking one, the guardian (with another that stands in for it), and the
explorer. The guardian is a child subreaper in a session of its own, so that all that a target
starts and leaves, daemons among it, is its descendant. It waits for either of the other two to end,
however they end, then kills what is left. If it was the asking process, it also removes the folders
of the exploration. A parent-death signal alone would miss daemons, and removes nothing.
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
import traceback
import warnings
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, NoReturn, TypeVar

import msgspec

from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.evidence.redact import clean
from pytest_chaos.explore.explorer import ROOM_BYTES_MIN, Explorer, Judged, judge_one
from pytest_chaos.explore.report import Exploration, ExplorationError, harness_finding
from pytest_chaos.runtime import owner, processes, scratch
from pytest_chaos.runtime.guardian import become_guardian, end_descendants, stand_in
from pytest_chaos.trace.program import leave
from pytest_chaos.trace.source import source_for, why_not_seccomp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
    """Do ``work`` in a process of its own and return its answer; ``folders`` are removed if this process is killed.

    What the work raises is raised here. Ctrl-C goes to the work, which answers with what it has; a
    second one ends it. Raises ExplorationError when the work's process was killed.
    """
    return _Guarded(work, folders, listen).answer()


class _Guarded(Generic[_Answer]):
    """The side of who asks."""

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
        with warnings.catch_warnings():  # Python 3.12 warns of threads, and those that a progress bar has wait on ours
            warnings.simplefilter("ignore", DeprecationWarning)
            self._guardian = os.fork()
        if self._guardian == 0:
            self._channel.close()
            _guard(work, theirs, ours, folders)
        os.close(ours)
        theirs.close()

    def answer(self) -> _Answer:
        """Hear the explorer to its end."""
        try:
            with self._passing_interrupts_on():
                return self._hear()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._guardian, signal.SIGTERM)  # a child that was not reaped: nobody else has its number
            os.waitpid(self._guardian, 0)
            self._channel.close()

    def _hear(self) -> _Answer:
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
        with contextlib.suppress(OSError):  # it was killed, which is found out when it is heard of next
            self._channel.send_bytes(reply)

    @contextlib.contextmanager
    def _passing_interrupts_on(self) -> Iterator[None]:
        """Have the first Ctrl-C end the exploration, with its result; only the second is an exception here."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def pass_on(*_: object) -> None:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
            os.kill(self._guardian, signal.SIGINT)

        before = signal.signal(signal.SIGINT, pass_on)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _received(channel: Connection) -> tuple[bytes, bytes]:
    content = channel.recv_bytes()
    return content[:1], content[1:]


# In the guardian


class _Ended(Exception):  # noqa: N818 - says what happened
    """Who asked has its answer, or wants none any more."""


def _guard(
    work: Callable[[Callable[[Progress], None]], _Answer], channel: Connection, asking: int, folders: Sequence[Path]
) -> NoReturn:
    """Start the explorer, wait for an end, and clean up; never returns."""
    try:
        os.setsid()
        become_guardian()
        for folder in folders:
            owner.hold(folder)
        stand_in(asking, folders, let_go=channel.close)
        own_pid = os.getpid()
        explorer = os.fork()
        if explorer == 0:
            _explore(work, channel, own_pid, folders)
        channel.close()
        _wait(explorer, asking)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_descendants()
        if processes.has_ended(asking):
            for folder in folders:
                scratch.remove(folder)
    finally:
        leave(0)


def _wait(explorer: int, asking: int) -> None:
    """Wait until the explorer or who asked has ended, and pass Ctrl-C on meanwhile."""

    def end(*_: object) -> None:
        raise _Ended

    poll = select.poll()
    poll.register(os.pidfd_open(explorer), select.POLLIN)
    poll.register(asking, select.POLLIN)
    with contextlib.suppress(_Ended):
        signal.signal(signal.SIGINT, lambda *_: os.kill(explorer, signal.SIGINT))
        signal.signal(signal.SIGTERM, end)
        poll.poll()


# In the explorer


def _explore(
    work: Callable[[Callable[[Progress], None]], _Answer], channel: Connection, guardian: int, folders: Sequence[Path]
) -> NoReturn:
    """Do the work and say what came of it; never returns."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        processes.die_with_parent(guardian)
        os.environ[owner.VARIABLE] = str(folders[0].resolve())  # by which the next one's sweep knows what is left

        def tell(progress: Progress) -> None:
            channel.send_bytes(_PROGRESS + pickle.dumps(progress))
            if channel.recv_bytes() == _STOP:
                raise KeyboardInterrupt

        try:
            message = _ANSWER + pickle.dumps(work(tell))
        except BaseException as error:  # noqa: BLE001 - who asked decides what becomes of it
            message = _ERROR + _pickled(error)
        channel.send_bytes(message)
    finally:
        leave(0)


def _pickled(error: BaseException) -> bytes:
    """Return an exception in a form that can travel, with its traceback as a note; one that cannot, in words."""
    where = "".join(traceback.format_exception(error))
    try:
        error.add_note(where)
        content = pickle.dumps(error)
        pickle.loads(content)  # noqa: S301 - to see whether it can be read where it arrives
    except Exception:  # noqa: BLE001 - whatever an exception of the user's does when it is pickled
        return pickle.dumps(RuntimeError(where))
    return content


# The start of an exploration


MEMORY_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - the folders made in it are this user's alone
_MOUNTS: Final = Path("/proc/self/mounts")


def launch(subject: Subject, options: Options, *, listen: Callable[[Progress], None] = lambda _: None) -> Exploration:
    """Explore a target in a folder of its own, by default in memory, which is removed afterwards.

    Raises UsageError for folders that cannot be used. That no steps can be seen here is a finding,
    which leaves the exploration INCONCLUSIVE.
    """
    base = _base(options)
    try:
        source = step_source(options.source)
    except StepsUnavailable as error:
        return _undecided(subject, options, "harness:no-steps-here", error)
    with work_folders(base, Path(tempfile.gettempdir())) as folders:

        def explore(tell: Callable[[Progress], None]) -> Exploration:
            return Explorer(subject, source, options, folders[0], disk=folders[1], listen=tell).explore()

        try:
            found = guarded(explore, folders=folders, listen=listen)
        except ExplorationError as error:
            return _undecided(subject, options, error.signature, error)
    if source.name == "audit" and options.source is None:
        found = _fallen_back(found)
    if not is_memory(base):
        note = f"states were written to {base}, which is no memory file system: it takes longer, and finds the same"
        found = msgspec.structs.replace(found, notes=(*found.notes, note))
    return clean(found)


def judge_state(subject: Subject, options: Options, code: str, destination: Path) -> Judged:
    """Record a target, keep the state of this code in ``destination`` (which is emptied) and judge a copy of it.

    Raises UsageError for a code that is none of this target's, ExplorationError for a target that
    cannot be recorded, StepsUnavailable where nothing can be.
    """
    source = step_source()
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
    """Make a folder of this process in each base, and remove them at the end; those that others left go, too."""
    made: list[Path] = []
    try:
        for base in bases:
            scratch.sweep(base)
            made.append(scratch.create(base))
        yield made
    finally:
        for folder in made:
            scratch.remove(folder)


def step_source(name: str | None = None) -> StepSource:
    """Return the source of steps of this name, or the best of this machine. Raises StepsUnavailable, UsageError."""
    return source_for(name)


def default_base() -> Path:
    """Return where states are written: memory, or the folder for temporary files if there is none, or no room."""
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
    """Return a result that does not pass: only named events were explored, and nobody asked for that."""
    text = f"only named audit events were explored, which --source audit accepts, since {why_not_seccomp()}"
    finding = harness_finding("harness:named-events-only", text)
    return msgspec.structs.replace(found, findings=(*found.findings, finding))
