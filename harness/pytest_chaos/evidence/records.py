"""Run records: appended while a session goes on, read and merged to render a matrix.

A session's folder is ``RESULTS/sessions/NAME``; its ``records.jsonl`` holds a
:class:`~pytest_chaos.model.values.SessionHeader` line with the runs that were planned, then one
:class:`~pytest_chaos.model.values.RunRecord` a line, and a
:class:`~pytest_chaos.model.values.SessionEnd`. A session that is resumed has a
:class:`~pytest_chaos.model.values.SessionResumed` where it goes on. Each line is one ``write`` to a
file opened for appending, so a session that is killed keeps all the lines it had.
``RESULTS/latest`` points at the newest session.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from pytest_chaos.errors import ResultsError
from pytest_chaos.evidence.reading import reading
from pytest_chaos.evidence.redact import clean
from pytest_chaos.model import campaign
from pytest_chaos.model.deciding import shards
from pytest_chaos.model.values import RECORD_FORMAT, Account, RunRecord, SessionEnd, SessionHeader, SessionResumed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FILE_NAME: Final = "records.jsonl"

Line = TypeVar("Line", SessionHeader, RunRecord, SessionEnd, SessionResumed)

_UNREAD_SHOWN: Final = 5
_END: Final = b'{"line":"end"'
_RESUMED: Final = b'{"line":"resumed"'
_RUN: Final = msgspec.json.Decoder(RunRecord)
_VERSION: Final = "pytest-chaos"


class Records(NamedTuple):
    """The records of one session, or of several merged ones with the first one's header."""

    header: SessionHeader
    runs: tuple[RunRecord, ...]
    accounts: tuple[Account, ...] = ()
    reasons: tuple[str, ...] = ()


def gathered(header: SessionHeader, runs: tuple[RunRecord, ...], end: SessionEnd | None = None) -> Records:
    """Return the records of a session with an account of the runs that it planned."""
    end = end or SessionEnd()
    return Records(header, runs, campaign.account_for(header, runs, end), end.reasons)


class SessionFolder:
    """The folder of one session: its records, reports and evidence."""

    def __init__(self, results: Path, name: str) -> None:
        self.results = results
        self.path = results / "sessions" / name
        self._held = -1

    @property
    def evidence(self) -> Path:
        """The folder of the session's evidence packs."""
        return self.path / "evidence"

    def create(self, header: SessionHeader) -> None:
        """Make the folder, write the header and let ``latest`` point here.

        Raises ResultsError when the results folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            ignore = self.results / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
            self._append(header)
            self._point_latest_here()
        except OSError as error:
            msg = (
                f"the results folder {self.results} cannot be written ({error.strerror or error}). "
                "Give another with --chaos-results=DIR"
            )
            raise ResultsError(msg) from error

    def resume(self, line: SessionResumed) -> None:
        """Go on with the folder of a session that ended. Raises ResultsError."""
        self._cut_torn_line()
        self.append(line)
        with contextlib.suppress(OSError):
            self._point_latest_here()

    def hold(self) -> bool:
        """Hold the records for this process, until it ends; return whether no other one does."""
        import fcntl  # rarely needed

        descriptor = os.open(self.path / FILE_NAME, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._held = descriptor
        return True

    def end(self, end: SessionEnd) -> None:
        """Add the last line, with the digest of all lines before it. Raises ResultsError."""
        digest = hashlib.sha256()
        with contextlib.suppress(OSError), reading(self.path / FILE_NAME) as stream:
            for line in stream:
                digest.update(line)
            end = msgspec.structs.replace(end, digest=digest.hexdigest())
        self.append(end)

    def append(self, record: RunRecord | SessionEnd | SessionResumed) -> None:
        """Add one line, whole or (when the disk is full) not at all. Raises ResultsError."""
        try:
            self._append(record)
        except OSError as error:
            msg = f"a record could not be added to {self.path / FILE_NAME}: {error.strerror or error}"
            raise ResultsError(msg) from error

    def add_orphan(self, header: SessionHeader, record: RunRecord) -> None:
        """Add the record of a run whose session died, and the header, unless they are there.

        Several processes that outlived the session may call it at once. Raises ResultsError.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with _locked(self.path):
                if self._cut_torn_line() == 0:
                    self.create(header)
                if all(known.run_id != record.run_id for known in read(self.path).runs):
                    self.append(record)
        except OSError as error:
            msg = f"the record of a run that was cut short could not be added to {self.path}: {error.strerror or error}"
            raise ResultsError(msg) from error

    def _cut_torn_line(self) -> int:
        """Remove a last line that a kill cut off (no other writer is left); return the size."""
        path = self.path / FILE_NAME
        if not path.exists():
            return 0
        size = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, size)
        return size

    def _append(self, value: SessionHeader | RunRecord | SessionEnd | SessionResumed) -> None:
        line = msgspec.json.encode(clean(value)) + b"\n"
        descriptor = os.open(self.path / FILE_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if (written := os.write(descriptor, line)) != len(line):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                msg = "the disk is full"
                raise OSError(msg)
        finally:
            os.close(descriptor)

    def _point_latest_here(self) -> None:
        latest = self.results / "latest"
        fresh = self.results / f".latest-{self.path.name}"
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        fresh.symlink_to(Path("sessions") / self.path.name)
        fresh.replace(latest)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import fcntl  # rarely needed

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(session: Path) -> Records:
    """Read a session's folder, or the ``records.jsonl`` itself.

    A last line that was cut off by a crash is left out. Raises ResultsError when there are no
    records, when a line is not a record, or when they are of a newer format.
    """
    path, lines = _lines_of(session)
    gathering = _Gathering(path)
    for number, line in enumerate(lines, start=1):
        if number == 1:
            gathering.header = _decode(line, SessionHeader, path, number)
        elif line.startswith(_END):
            gathering.note_end(_decode(line, SessionEnd, path, number), number)
        elif line.startswith(_RESUMED):
            gathering.drop(_decode(line, SessionResumed, path, number))
        else:
            gathering.add(_decode(line, RunRecord, path, number), number)
        gathering.note_line(line)
    if gathering.header is None:
        msg = f"{path} must have run records; got none, as the session ended before its first line. Give another"
        raise ResultsError(msg)
    return gathering.found(gathering.header)


def read_all_that_can_be(session: Path) -> Records:
    """Read a session's folder as far as it can be read, for a report that says what cannot.

    Lines that are no records, records of a newer format, and a header that is none are reasons: the
    records are then not whole, and no report of them is green. Raises ResultsError when there is no
    file at all.
    """
    path, lines = _lines_of(session)
    gathering = _Gathering(path)
    reasons: list[str] = []
    unread = 0
    newest = 0
    for number, line in enumerate(lines, start=1):
        try:
            newest = max(newest, gathering.take(line, number))
        except (msgspec.DecodeError, UnicodeError) as error:
            if number == 1:
                reasons.append(_no_header(path, str(error)))
            else:
                unread += 1
                if unread <= _UNREAD_SHOWN:
                    reasons.append(f"line {number} of {path.name} is no record of a run ({error}): it is not counted")
        gathering.note_line(line)
    if unread > _UNREAD_SHOWN:
        reasons.append(f"{unread - _UNREAD_SHOWN} more lines of {path.name} are no records")
    if newest > RECORD_FORMAT:
        reasons.append(
            f"{path.name} is of format {newest}, newer than {RECORD_FORMAT}: only what is known is shown. "
            "Upgrade pytest-chaos"
        )
    if gathering.header is None and not reasons:
        reasons.append(_no_header(path, "the file is empty"))
    found = gathering.found(gathering.header or SessionHeader(session=path.parent.name, seed="not known", started=""))
    return found._replace(reasons=(*found.reasons, *reasons))


class _Gathering:
    """The lines of a file of records as they come: what counts, comes twice, or was changed."""

    def __init__(self, path: Path) -> None:
        self.header: SessionHeader | None = None
        self._name = path.name
        self._runs: dict[str, RunRecord] = {}
        self._end: SessionEnd | None = None
        self._digest = hashlib.sha256()
        self._twice: list[int] = []
        self._is_changed = False

    def take(self, line: bytes, number: int) -> int:
        """Take a line of any kind; return its format. Raises DecodeError and UnicodeError."""
        if number == 1:
            self.header = msgspec.json.decode(line, type=SessionHeader)
            return self.header.format
        if line.startswith(_END):
            self.note_end(msgspec.json.decode(line, type=SessionEnd), number)
        elif line.startswith(_RESUMED):
            self.drop(msgspec.json.decode(line, type=SessionResumed))
        else:
            run = _RUN.decode(line)
            self.add(run, number)
            return run.format
        return 0

    def add(self, run: RunRecord, number: int) -> None:
        """Add a run, unless there is one of its name: names are unique within a session."""
        if run.run_id in self._runs:
            self._twice.append(number)
        else:
            self._runs[run.run_id] = run

    def drop(self, resumed: SessionResumed) -> None:
        """Forget the runs that were cut short and are made again."""
        again = set(resumed.again)
        if again:
            self._runs = {name: run for name, run in self._runs.items() if (run.node_id, run.iteration) not in again}

    def note_end(self, end: SessionEnd, number: int) -> None:
        """Take the last line of a session, and compare the lines before it with its digest."""
        self._end = end
        self._is_changed |= bool(end.digest) and number > 1 and end.digest != self._digest.hexdigest()

    def note_line(self, line: bytes) -> None:
        """Add a line to the digest."""
        self._digest.update(line + b"\n")

    def found(self, header: SessionHeader) -> Records:
        """Return the records, with what is wrong with them."""
        reasons = []
        if self._twice:
            lines = f"{len(self._twice)} lines" if len(self._twice) > 1 else "a line"
            reasons.append(
                f"{self._name} has {lines} with a run that stands there before, first line {self._twice[0]}: "
                "each run is counted once"
            )
        if self._is_changed:
            reasons.append(
                f"{self._name} was changed after the session had written it, so nothing of it is certain. "
                "Give an undamaged copy"
            )
        found = gathered(header, tuple(self._runs.values()), self._end)
        return found._replace(reasons=(*found.reasons, *reasons))


def _no_header(path: Path, why: str) -> str:
    return f"{path.name} has no header that can be read ({why}): what was planned is not known"


def _lines_of(session: Path) -> tuple[Path, Iterator[bytes]]:
    """Return the file of a session, and its whole lines. Raises ResultsError without a file."""
    path = session / FILE_NAME if session.is_dir() else session
    if not path.exists() and (session / "latest" / FILE_NAME).exists():
        path = session / "latest" / FILE_NAME
    lines = _whole_lines(session, path)
    first = next(lines, None)
    return path, iter(()) if first is None else itertools.chain((first,), lines)


def _whole_lines(session: Path, path: Path) -> Iterator[bytes]:
    try:
        with reading(path) as stream:  # a pipe would block, a device never end
            for line in stream:
                if line.endswith(b"\n"):
                    yield line[:-1]
                    continue
                with contextlib.suppress(msgspec.DecodeError, UnicodeError):  # a kill may cut off the last line
                    msgspec.json.decode(line, type=SessionEnd if line.startswith(_END) else RunRecord)
                    yield line
    except OSError as error:
        what = error.strerror or error
        msg = f"{session} must have run records; got none: {what}. Give a results folder of a chaos session"
        raise ResultsError(msg) from error


def merge(parts: Iterable[Records]) -> Records:
    """Join the records of several sessions (machines, shards, days) under the earliest header.

    What makes them no runs of one campaign is a reason: another version, other code, a shard that
    is missing. Raises ResultsError when there are none, or when two of them have a run in common:
    a run that is counted twice makes the bound a lie.
    """
    ordered: Sequence[Records] = sorted(parts, key=lambda part: part.header.started)
    if not ordered:
        msg = "records to merge must be at least one; got none. Give a results folder"
        raise ResultsError(msg)
    if len(ordered) == 1:
        return ordered[0]
    _refuse_overlap(ordered)
    header = ordered[0].header
    return Records(
        msgspec.structs.replace(header, shard="", planned=()),
        tuple(run for part in ordered for run in part.runs),
        campaign.join_accounts(account for part in ordered for account in part.accounts),
        (*(reason for part in ordered for reason in part.reasons), *_differences([part.header for part in ordered])),
    )


def _refuse_overlap(parts: Sequence[Records]) -> None:
    of: dict[int, int] = {}
    for place, part in enumerate(parts):
        for run in part.runs:
            if of.setdefault(shards.identity(run), place) != place:
                other = parts[of[shards.identity(run)]].header
                msg = (
                    f"each run must be counted once; got run {run.iteration + 1} of {run.node_id} with seed {run.seed} "
                    f"in {_named(other)} and in {_named(part.header)}. Leave one of them out"
                )
                raise ResultsError(msg)


def _named(header: SessionHeader) -> str:
    return f"{header.session} (shard {header.shard})" if header.shard else header.session


def _differences(headers: Sequence[SessionHeader]) -> Iterator[str]:
    """Yield why sessions are no parts of one campaign. ``suite`` is compared among shards alone."""
    first = headers[0]
    parts = [shards.parse(each.shard) for each in headers if each.shard]
    if lacking := shards.missing(parts):
        named = ", ".join(map(str, lacking[:_UNREAD_SHOWN])) + (", ..." if len(lacking) > _UNREAD_SHOWN else "")
        yield f"{len(lacking)} shard{'s are' if len(lacking) > 1 else ' is'} missing: {named}. Give all of them"
    if len({each.of for each in parts}) > 1:
        yield "the shards are of campaigns that were divided into different numbers of parts"
    for each in headers[1:]:
        both = f"{_named(first)} and {_named(each)}"
        if (mine := first.versions.get(_VERSION)) != (other := each.versions.get(_VERSION)):
            yield f"{both} are of different versions of pytest-chaos: {mine} and {other}"
        changed = sorted(name for name, digest in each.code.items() if first.code.get(name, digest) != digest)
        if changed:
            more = f" and {len(changed) - 1} more files" if len(changed) > 1 else ""
            yield f"{changed[0]}{more} differ between {both}: runs of two programs are no sample of one"
        elif first.shard and each.shard and first.suite != each.suite:
            yield f"{both} are of different suites: they have collected other tests"
        if (first.prove, first.pass_rate_min) != (each.prove, each.pass_rate_min):
            yield f"{both} ask for different pass rates"
        if first.shard and each.shard and (first.seed, first.iterations) != (each.seed, each.iterations):
            yield f"{both} are shards of different campaigns: their seeds or iterations differ"


def _decode(line: bytes, kind: type[Line], path: Path, number: int) -> Line:
    try:
        value = msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        msg = f"{path}, line {number}, must be a {kind.__name__}; got: {error}. Give an undamaged copy"
        raise ResultsError(msg) from error
    if isinstance(value, SessionHeader | RunRecord) and value.format > RECORD_FORMAT:
        msg = f"{path} must be of format {RECORD_FORMAT} at most; got {value.format}. Upgrade pytest-chaos"
        raise ResultsError(msg)
    return value
