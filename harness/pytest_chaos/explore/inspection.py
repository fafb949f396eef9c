"""What is known of a held state: where it struck, what was acknowledged, what is missing.

A state is held by an exploration, by ``chaos explore --state`` (``judge_one``), or is built here
from a recording that an exploration kept. Nothing of the program is run for that: an I/O error, an
interrupted recovery and the death of one process need the program, and are built by
``chaos explore --state``.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.evidence.redact import clean
from pytest_chaos.explore.explorer import rebuilt, write_state
from pytest_chaos.explore.families.victim import victim_of
from pytest_chaos.explore.judge import Pool, StateTask
from pytest_chaos.explore.record import Recorded, record
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.target import CommandSubject
from pytest_chaos.model.history import History
from pytest_chaos.model.story import FILE_NAME as STORY, LostItem, Story
from pytest_chaos.model.values import Finding, Json, Mark, MarkKind, Verdict
from pytest_chaos.trace.recording import Recording
from pytest_chaos.trace.schedule import Schedule
from pytest_chaos.trace.source import source_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_chaos.explore.options import Options
    from pytest_chaos.explore.target import Subject
    from pytest_chaos.model.story import CauseStory
    from pytest_chaos.trace.source import StepSource

FORMAT: Final = 1
FILE_NAME: Final = "known.json"
"""Beside the state's ``directory`` and ``marks.jsonl``: what is known of it."""
FILES_MAX: Final = 10_000
_MARKS: Final = "marks.jsonl"
_DIRECTORY: Final = "directory"
_BUILT: Final = frozenset({"crash", "power"})
_PLACE: Final = re.compile(r"^(?:crash|power:\w+):(\d+)")
_RECORDING: Final = "recording"
_ANEW: Final = "; no recording of it is kept here, so the program was recorded anew, and need not have done the same"


class StateFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file of the state. ``promised`` compares it with the promised state, if that was kept.

    It is same, other, or new; a file that was promised and is not there is gone.
    """

    path: str
    kind: str
    size_bytes: int = 0
    target: str = ""
    promised: str = ""


class SaidMark(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An operation that the program had begun, or acknowledged. ``order`` counts marks from 0."""

    operation: str
    key: str | int | None = None
    value: Json = None
    agent: str = ""
    order: int = 0


class StateDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a held state. ``state`` says in words where it struck and what it lacks.

    ``step`` is the durable step that did not happen any more, of ``steps``; ``at`` is that step in
    words, ``line`` the program line that makes it. ``begun`` are operations without an ack, whose
    outcome is unknown. ``missing`` are acknowledged operations that a finding names, each with the
    step it relied on. ``verdict`` is empty where no check has judged the state.
    """

    folder: str
    code: str = ""
    state: str = ""
    target: str = ""
    seed: str = ""
    verdict: str = ""
    step: int = 0
    steps: int = 0
    at: str = ""
    line: str = ""
    findings: tuple[str, ...] = ()
    acknowledged: tuple[SaidMark, ...] = ()
    begun: tuple[SaidMark, ...] = ()
    missing: tuple[LostItem, ...] = ()
    files: tuple[StateFile, ...] = ()
    files_omitted: int = 0
    again: str = ""
    format: int = FORMAT


def inspect_folder(folder: Path) -> StateDocument:
    """Return what is known of a held state. Raises UsageError for a folder that holds none."""
    folder = folder.parent if folder.name == _DIRECTORY and (folder.parent / _MARKS).is_file() else folder
    if not (folder / _DIRECTORY).is_dir() or not (folder / _MARKS).is_file():
        msg = f"a state must be a folder with {_DIRECTORY}/ and {_MARKS}; got {folder}. Give one that a report names"
        raise UsageError(msg)
    known = _read(folder / FILE_NAME)
    story, cause = _story_of(folder)
    if known is None and story is not None and cause is not None:
        known = told(story, cause, folder)
    return described(known or StateDocument(folder=str(folder)), folder)


def build(code: str, states: Path, destination: Path) -> StateDocument:
    """Build the state of a code from the recording that an exploration kept; nothing is run.

    ``states`` is the folder of failing states. ``destination`` is emptied if it holds a state.
    Raises UsageError for a code that the recording does not have, and for a folder in use.
    """
    plain, _, number = code.partition("@")
    if plain.partition(":")[0] not in list(Family):
        msg = f"a state must be a folder that is there, or a state code such as crash:2; got {code!r}. Copy one"
        raise UsageError(msg)
    if plain.partition(":")[0] not in _BUILT or victim_of(plain) is not None:
        msg = (
            f"a state that is built without the program must be of a crash of all or a power loss; got {code}. "
            f"Build it with chaos explore TARGET --state '{code}'"
        )
        raise UsageError(msg)
    folder = states / (_RECORDING if number in {"", "0"} else f"{_RECORDING}-{number}")
    story = _story(states)
    with tempfile.TemporaryDirectory(prefix="chaos-inspect-") as scratch, Recording(folder) as recording:
        program = CommandSubject(run=("true",), check=("true",))  # never run: the recording has all
        recorded = Recorded(
            program, source_for("audit"), recording, Path(scratch), seed=story.seed if story is not None else ""
        )
        try:
            if (found := rebuilt(recorded, plain, Path(scratch), timeout_s=0)) is None:
                msg = f"state code must name a state of the recording in {folder}; got {code}. Copy it from a report"
                raise UsageError(msg)
            _make_room(destination)
            write_state(found, destination)
        finally:
            recorded.store.close()
        steps = recording.durable()
        step = int(match[1]) if (match := _PLACE.match(plain)) else 0
        at = str(steps[step - 1]) if 0 < step <= len(steps) else ""
    known = StateDocument(folder="", code=code, state=found.text, step=step, steps=len(steps), at=at)
    if story is not None:
        known = msgspec.structs.replace(known, target=story.target, seed=story.seed, again=again(story, code))
        for cause in story.causes:
            if cause.code == code:
                known = told(story, cause, states)
    written = described(known, destination)
    write_known(written, destination)
    return written


def told(story: Story, cause: CauseStory, folder: Path) -> StateDocument:
    """Return what the story of an exploration tells of a state."""
    return StateDocument(
        folder=str(folder), code=cause.code, state=cause.state, target=story.target, seed=story.seed,
        verdict="VIOLATED", step=cause.step, steps=story.steps, at=cause.at, line=cause.line, findings=(cause.text,),
        missing=cause.lost, again=cause.again,
    )  # fmt: skip


def described(known: StateDocument, folder: Path) -> StateDocument:
    """Return what is known of a state with its marks and files, without secrets."""
    history = History.from_lines((folder / _MARKS).read_bytes())
    files = list(_files(folder / _DIRECTORY, folder / "promised"))
    acked = [mark for mark in history.marks if mark.kind is MarkKind.ACK]
    begun = [
        pair.intent
        for name in dict.fromkeys(mark.operation for mark in history.marks)
        for pair in history.operations(name)
        if not pair.acknowledged
    ]
    return clean(
        msgspec.structs.replace(
            known, folder=str(folder), acknowledged=_said(acked), begun=_said(begun), files=tuple(files[:FILES_MAX]),
            files_omitted=max(0, len(files) - FILES_MAX),
        )
    )  # fmt: skip


def write_known(known: StateDocument, folder: Path) -> None:
    """Write what is known of a state beside it."""
    (folder / FILE_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(known), indent=1) + b"\n")


def again(story: Story, code: str) -> str:
    """Return the command that builds the state with the program, and judges it."""
    return f"{story.command} --seed {story.seed} --state '{code}'" if story.command else ""


def newest_states(results: Path) -> Path | None:
    """Return the folder of failing states that was written last, if it has a recording."""
    found = [path.parent for path in (results / "explore").glob(f"*/states-*/{_RECORDING}")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _make_room(destination: Path) -> None:
    if destination.exists() and any(destination.iterdir()):
        if not (destination / FILE_NAME).is_file():
            msg = f"--output must be a new folder, or one of an earlier state; got {destination}. Give another"
            raise UsageError(msg)
        shutil.rmtree(destination)


def _read(path: Path) -> StateDocument | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=StateDocument)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"{path} must be what is known of a state; got {error}. Remove it, or build the state again"
        raise UsageError(msg) from error


def _story(states: Path) -> Story | None:
    try:
        return msgspec.json.decode((states / STORY).read_bytes(), type=Story)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None  # the state itself is what was asked for


def _story_of(folder: Path) -> tuple[Story | None, CauseStory | None]:
    story = _story(folder.resolve().parent)
    causes = story.causes if story is not None else ()
    return story, next((each for each in causes if each.folder == folder.resolve().name), None)


def _said(marks: Iterable[Mark]) -> tuple[SaidMark, ...]:
    return tuple(
        SaidMark(operation=mark.operation, key=mark.key, value=mark.value, agent=mark.agent, order=mark.order)
        for mark in marks
    )


def _files(directory: Path, promised: Path) -> Iterator[StateFile]:
    """Yield the files of a state, then those that were promised and are gone."""
    kept = promised.is_dir()
    seen: set[str] = set()
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        seen.add(name)
        yield _file(path, name, _compared(path, promised / name) if kept else "")
    for path in sorted(promised.rglob("*")) if kept else ():
        if (name := path.relative_to(promised).as_posix()) not in seen:
            yield _file(path, name, "gone")


def _file(path: Path, name: str, promised: str) -> StateFile:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return StateFile(path=name, kind="link", target=str(path.readlink()), promised=promised)
    if stat.S_ISDIR(status.st_mode):
        return StateFile(path=name, kind="folder", promised=promised)
    kind = "file" if stat.S_ISREG(status.st_mode) else "other"
    return StateFile(path=name, kind=kind, size_bytes=status.st_size, promised=promised)


def _compared(path: Path, promised: Path) -> str:
    if not os.path.lexists(promised):
        return "new"
    if path.is_symlink() or promised.is_symlink():
        is_same = path.is_symlink() and promised.is_symlink() and path.readlink() == promised.readlink()
    elif path.is_file() and promised.is_file():
        is_same = path.stat().st_size == promised.stat().st_size and path.read_bytes() == promised.read_bytes()
    else:
        is_same = path.is_dir() and promised.is_dir()
    return "same" if is_same else "other"


class Judged(NamedTuple):
    """One state in words, and the findings of the check."""

    state: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings."""
        return Verdict.worst([*(finding.verdict for finding in self.findings), Verdict.HELD])


def _recorded_for(subject: Subject, source: StepSource, options: Options, folder: Path, number: str) -> Recorded:
    """Return the recording that a code names, kept or new. Raises UsageError."""
    if number and not number.isdecimal():
        msg = f"a state code must end with @ and the number of a schedule; got @{number}. Take one from a report"
        raise UsageError(msg)
    kept = (options.kept or folder) / (f"recording-{number}" if number not in {"", "0"} else "recording")
    if number and kept.is_dir():
        return Recorded(subject, source, Recording(kept), folder, seed=options.seed)
    recorded, _ = record(subject, source, folder, seed=options.seed, timeout_s=options.run_timeout_s)
    if number in {"", "0"}:
        return recorded
    recorded.close()
    schedule = Schedule(number=int(number), seed=options.seed, calls=len(recorded.recording.steps))
    timeout_s = options.run_timeout_s
    return record(subject, source, folder, seed=options.seed, timeout_s=timeout_s, schedule=schedule)[0]


def judge_one(
    subject: Subject, source: StepSource, options: Options, folder: Path, code: str, destination: Path
) -> Judged:
    """Record the target, keep the state of a code, and judge a copy. See ``judge_state``."""
    code, _, number = code.partition("@")
    subject.limit(options)
    recorded = _recorded_for(subject, source, options, folder, number)
    try:
        state = rebuilt(recorded, code, folder, timeout_s=options.run_timeout_s)
        if state is None:
            msg = (
                f"state code must name a state of {subject.name}, which made {recorded.steps} steps; got {code}. "
                "If the target was changed, explore it again"
            )
            raise UsageError(msg)
        write_state(state, destination)
        subject.learn(folder, source.files, timeout_s=options.run_timeout_s)
        known = recorded.known._replace(marks=state.marks)
        with Pool(known, folder, timeout_s=options.check_timeout_s) as pool:
            judgement = pool.judge(StateTask(state.items, len(state.marks), family=code.partition(":")[0]))
        is_kept = recorded.recording.folder.parent == options.kept
        return clean(Judged(f"{state.text}{_ANEW if number and not is_kept else ''}", judgement.findings))
    finally:
        recorded.close()
