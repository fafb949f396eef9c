"""Evidence: what a checkpoint refers to outside itself, the verdict on each item, and the policy that sums them up.

Values and arithmetic only; ``verification`` looks at the world. An item is a claim that can be
examined again at any time: that a file is there, that it has a hash, that a command exits so, that
the database has a row, or anything that a function of the caller's can tell. What a claim was worth
yesterday says nothing: a file can be deleted. So a verdict is kept to be read by people, and
recovery examines again.

**Nothing verifies by default.** A policy asks for at least one item, so that no evidence is never
verified evidence, and an exit status is compared with the one that was expected, so that 137 is not
a success because somebody wrote it down (D9).

The examination of evidence: looks at files, runs commands, asks the database and the caller's own
functions.

An examination answers with a verdict and does not raise for what it finds, so that recovery can go
on to an older checkpoint; only a database that fails altogether is an error. It ends: hashing is
bounded by size, commands and queries by time. What it does not bound is a file system that hangs
and a function of the caller's.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import select
import signal
import subprocess
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

import msgspec

from durable_agents.clock import is_duration
from durable_agents.errors import InvalidEvidence, QueryRefused
from durable_agents.store.rows import Scalar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from durable_agents.store import Store
    from durable_agents.store.rows import StoredEvidence
    from durable_agents.work.artifacts import Artifacts

COMMAND_TIMEOUT_S: Final = 30.0
"""How long a command of evidence may take, in seconds, unless it says otherwise."""

COMMAND_TIMEOUT_S_MAX: Final = 3600.0
ITEMS_MAX: Final = 1000
"""The most items of evidence that one checkpoint can have."""

_EXIT_STATUS_MAX: Final = 255
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Reason(enum.StrEnum):
    """Why an item of evidence verifies, or what is in the way."""

    VERIFIED = "verified"
    NO_FOLDER = "no_folder"
    MISSING = "missing"
    OUTSIDE = "outside"
    NOT_A_FILE = "not_a_file"
    UNREADABLE = "unreadable"
    TOO_LARGE = "too_large"
    CHANGED = "changed"
    OTHER_CONTENT = "other_content"
    CANNOT_RUN = "cannot_run"
    OTHER_EXIT = "other_exit"
    TIMED_OUT = "timed_out"
    NO_ROW = "no_row"
    QUERY_REFUSED = "query_refused"
    NO_VERIFIER = "no_verifier"
    VERIFIER_RAISED = "verifier_raised"
    DENIED = "denied"


class ArtifactExists(msgspec.Struct, frozen=True, tag_field="kind", tag="artifact_exists"):
    """A regular file is there. ``path`` is relative to the artifact folder, and no part of it is a link."""

    path: str

    def __post_init__(self) -> None:
        """Raise InvalidEvidence for a path that could lead out of the folder."""
        check_path(self.path)


class FileSha256(msgspec.Struct, frozen=True, tag_field="kind", tag="file_sha256"):
    """A regular file has this SHA-256, in lower-case hexadecimal. ``path`` is as in ArtifactExists."""

    path: str
    sha256: str

    def __post_init__(self) -> None:
        """Raise InvalidEvidence for a path that could lead out of the folder and for what is no SHA-256."""
        check_path(self.path)
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            message = f"Expected a SHA-256 of 64 lower-case hexadecimal digits but got {self.sha256!r}; compute it."
            raise InvalidEvidence(message)


class CommandExit(msgspec.Struct, frozen=True, tag_field="kind", tag="command_exit"):
    """A command, run again at each examination, exits with ``expected``: so it must be one that changes nothing.

    ``command`` is a program and its arguments, no shell. The end by signal n is 128 + n, as in a
    shell, and is a success only for one who expects just that number. After ``timeout_s`` seconds
    its whole process group is killed.
    """

    command: tuple[str, ...]
    expected: int = 0
    timeout_s: float = COMMAND_TIMEOUT_S

    def __post_init__(self) -> None:
        """Raise InvalidEvidence for an empty command, a status that no process has, and a bound that is none."""
        words = self.command
        if not isinstance(words, tuple) or not words or not all(isinstance(w, str) and "\0" not in w for w in words):
            message = f"Expected a tuple of a program and its arguments but got {words!r}; give texts without NUL."
            raise InvalidEvidence(message)
        if not (isinstance(self.expected, int) and 0 <= self.expected <= _EXIT_STATUS_MAX):
            message = f"Expected an exit status from 0 to {_EXIT_STATUS_MAX} but got {self.expected!r}; 137 is SIGKILL."
            raise InvalidEvidence(message)
        if self.timeout_s == 0 or not is_duration(self.timeout_s, 0, COMMAND_TIMEOUT_S_MAX):
            message = (
                f"Expected timeout_s above 0 and up to {COMMAND_TIMEOUT_S_MAX:g} but got {self.timeout_s!r:.80}; "
                "give seconds."
            )
            raise InvalidEvidence(message)


class DbRow(msgspec.Struct, frozen=True, tag_field="kind", tag="db_row"):
    """The store's own database has a row in ``table`` whose columns have these values, None for NULL.

    What is asked is the committed state, so a row written in the transaction of the checkpoint
    itself is not seen.
    """

    table: str
    values: dict[str, Scalar]

    def __post_init__(self) -> None:
        """Raise InvalidEvidence where any row of the table would do, and for values that no column holds."""
        names = (self.table, *self.values)
        if not self.values or not all(isinstance(name, str) and name and "\0" not in name for name in names):
            message = f"Expected a table and a value for at least one column but got {names!r}; say which row is meant."
            raise InvalidEvidence(message)
        for column, value in cast("dict[str, object]", self.values).items():
            if value is not None and not isinstance(value, str | int | float):
                message = f"Expected a text, a number or None for column {column!r} but got {value!r}; convert it."
                raise InvalidEvidence(message)


class OwnEvidence(msgspec.Struct, frozen=True, tag_field="kind", tag="own"):
    """Whatever a function of the caller's can tell: ``name`` is the one it was given to the manager under.

    ``argument`` is JSON and is handed to the function, which answers True or False.
    """

    name: str
    argument: Any = None

    def __post_init__(self) -> None:
        """Raise InvalidEvidence for a name that is none."""
        if not isinstance(self.name, str) or not self.name:
            message = f"Expected the name of a verifier but got {self.name!r}; give the one it is registered under."
            raise InvalidEvidence(message)


Evidence: TypeAlias = ArtifactExists | FileSha256 | CommandExit | DbRow | OwnEvidence
"""One item of evidence."""


class Verdict(msgspec.Struct, frozen=True):
    """What came of examining one item; ``detail`` is a sentence for people, empty when it verified."""

    evidence: Evidence
    reason: Reason
    detail: str = ""

    @property
    def is_verified(self) -> bool:
        """Whether the claim holds."""
        return self.reason is Reason.VERIFIED


class Verification(msgspec.Struct, frozen=True):
    """The verdicts on all the evidence of a checkpoint; ``required`` is how many of them have to verify."""

    required: int
    verdicts: tuple[Verdict, ...]

    @property
    def is_verified(self) -> bool:
        """Whether enough items verified. Never without one, whatever was required."""
        return sum(verdict.is_verified for verdict in self.verdicts) >= max(1, self.required)


class EvidencePolicy(msgspec.Struct, frozen=True):
    """How much of a checkpoint's evidence has to verify. Make one with ``require_all`` or ``allow_partial``.

    ``min_verified`` is that number, None for all of it. Raises InvalidEvidence for less than one:
    with none required, a checkpoint of which nothing holds would be a verified one.
    """

    min_verified: int | None = None

    def __post_init__(self) -> None:
        """Check the number."""
        number = self.min_verified
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            message = f"Expected min_verified of 1 or more but got {number!r}; what needs no evidence is not verified."
            raise InvalidEvidence(message)

    @classmethod
    def require_all(cls) -> EvidencePolicy:
        """Every item has to verify. What applies unless told otherwise."""
        return _REQUIRE_ALL

    @classmethod
    def allow_partial(cls, *, min_verified: int = 1) -> EvidencePolicy:
        """At least ``min_verified`` items have to verify. Raises InvalidEvidence for less than one."""
        return cls(min_verified)

    def required(self, items: int) -> int:
        """Return how many of so many items have to verify: never none, and possibly more than there are."""
        return max(1, items) if self.min_verified is None else self.min_verified


_REQUIRE_ALL: Final = EvidencePolicy()
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(tuple[Verdict, ...]).decode


def check_path(path: object) -> None:
    """Raise InvalidEvidence unless the path is relative and goes down only."""
    if not parts_inside(path):
        message = (
            f"Expected the path of an artifact to be relative to its folder and to stay in it but got {path!r}; "
            "leave out a leading slash, '..' and NUL."
        )
        raise InvalidEvidence(message)


def parts_inside(path: object) -> list[str]:
    """Return the parts of a relative path that names something below its folder; none for a path that does not.

    Split by hand: pathlib takes ten times as long, and this is on the way of each checkpoint.
    """
    if not isinstance(path, str) or path.startswith("/") or "\0" in path or not _is_encodable(path):
        return []
    parts = [part for part in path.split("/") if part not in {"", "."}]
    return [] if ".." in parts else parts


def encoded_verdicts(verdicts: tuple[Verdict, ...]) -> bytes:
    """Return the verdicts as JSON. Raises InvalidEvidence for evidence that JSON would change."""
    try:
        content = _encode(verdicts)
        is_faithful = all(_is_plain(verdict.evidence) for verdict in verdicts) or bool(_decode(content) == verdicts)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        message = f"Expected evidence that JSON can hold but got {verdicts!r} ({error}); use plain JSON."
        raise InvalidEvidence(message) from error
    if not is_faithful:
        message = f"Expected evidence that JSON gives back unchanged but got {verdicts!r}; use plain JSON."
        raise InvalidEvidence(message)
    return content


def decoded_verdicts(content: bytes) -> tuple[Verdict, ...]:
    """Return the verdicts that were stored. Raises InvalidEvidence for what is of no kind known here, or damaged."""
    try:
        verdicts: tuple[Verdict, ...] = _decode(content)
    except (ValueError, msgspec.MsgspecError) as error:
        message = f"Expected stored evidence of known kinds but got {content[:200]!r} ({error}); update this package."
        raise InvalidEvidence(message) from error
    return verdicts


def _is_plain(evidence: Evidence) -> bool:
    """Tell whether the item's own checks leave nothing in it that JSON could change."""
    return isinstance(evidence, ArtifactExists | FileSha256)


def _is_encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


QUERY_TIMEOUT_S: Final = 10.0
"""How long the question for a row may take, in seconds."""

_SIGNAL_BASE: Final = 128
_DETAIL_CHARACTERS_MAX: Final = 2000


class OwnVerifier(Protocol):
    """A caller's own verifier. Anything that is called so will do."""

    def __call__(self, argument: Any, /) -> bool:
        """Tell whether the claim holds; True and nothing else means that it does."""
        ...


class Verifier:
    """Examines evidence against one folder of artifacts, one store, and the caller's own verifiers by name."""

    def __init__(
        self, store: Store, artifacts: Artifacts | None = None, own: Mapping[str, OwnVerifier] | None = None
    ) -> None:
        """Use these; without ``artifacts``, no evidence about a file verifies."""
        self._store = store
        self._artifacts = artifacts
        self._own = {} if own is None else dict(own)

    def require(self, evidence: Sequence[object]) -> None:
        """Raise InvalidEvidence for what could never be examined here: a slip of the program, not of the world."""
        if len(evidence) > ITEMS_MAX:
            message = f"Expected at most {ITEMS_MAX} items of evidence but got {len(evidence)}; put them into one file."
            raise InvalidEvidence(message)
        for item in evidence:
            if not isinstance(item, Evidence):
                message = f"Expected evidence but got {item!r}; make it with a class of durable_agents.work.evidence."
                raise InvalidEvidence(message)
            if isinstance(item, ArtifactExists | FileSha256) and self._artifacts is None:
                message = f"Expected a folder for the file of {item!r} but there is none; give the manager artifacts."
                raise InvalidEvidence(message)
            if isinstance(item, OwnEvidence) and item.name not in self._own:
                message = f"Expected a verifier named {item.name!r} but there is none; give it to the manager."
                raise InvalidEvidence(message)

    def examine(self, evidence: Sequence[Evidence], policy: EvidencePolicy) -> Verification:
        """Return the verdicts on new evidence. Raises InvalidEvidence as ``require`` does, or a StoreError."""
        self.require(evidence)
        return Verification(policy.required(len(evidence)), tuple(self.verdict(item) for item in evidence))

    def examine_again(self, stored: StoredEvidence) -> Verification:
        """Return the verdicts on stored evidence as things are now. May raise a StoreError."""
        try:
            items = [verdict.evidence for verdict in decoded_verdicts(stored.verdicts)]
        except InvalidEvidence as error:
            unknown = Verdict(OwnEvidence("unknown"), Reason.NO_VERIFIER, str(error))
            return Verification(stored.required, (unknown,))
        return Verification(stored.required, tuple(self.verdict(item) for item in items))

    def verdict(self, evidence: Evidence) -> Verdict:
        """Examine one item."""
        match evidence:
            case ArtifactExists() | FileSha256():
                return self._file_verdict(evidence)
            case CommandExit():
                return _command_verdict(evidence, self._artifacts)
            case DbRow():
                return self._row_verdict(evidence)
            case OwnEvidence():
                return self._own_verdict(evidence)

    def _file_verdict(self, evidence: ArtifactExists | FileSha256) -> Verdict:
        if self._artifacts is None:
            return Verdict(evidence, Reason.NO_FOLDER, "the manager was given no artifacts to look in")
        if isinstance(evidence, ArtifactExists):
            look = self._artifacts.look(evidence.path)
            return Verdict(evidence, look.reason, look.detail)
        look = self._artifacts.look(evidence.path, with_hash=True)
        if look.reason is Reason.VERIFIED and look.sha256 != evidence.sha256:
            return Verdict(evidence, Reason.OTHER_CONTENT, f"{evidence.path}: has the SHA-256 {look.sha256}")
        return Verdict(evidence, look.reason, look.detail)

    def _row_verdict(self, evidence: DbRow) -> Verdict:
        try:
            if self._store.has_row(evidence.table, evidence.values, timeout_s=QUERY_TIMEOUT_S):
                return Verdict(evidence, Reason.VERIFIED)
        except QueryRefused as error:
            return Verdict(evidence, Reason.QUERY_REFUSED, str(error))
        return Verdict(evidence, Reason.NO_ROW, f"{evidence.table}: has no row with {evidence.values!r}")

    def _own_verdict(self, evidence: OwnEvidence) -> Verdict:
        verifier = self._own.get(evidence.name)
        if verifier is None:
            return Verdict(evidence, Reason.NO_VERIFIER, f"the manager was given no verifier named {evidence.name!r}")
        try:
            answer = verifier(evidence.argument)
        except Exception as error:  # noqa: BLE001 - a verifier that fails has not verified, whatever its error
            return Verdict(evidence, Reason.VERIFIER_RAISED, f"{evidence.name}: {type(error).__name__}: {_told(error)}")
        if answer is True:
            return Verdict(evidence, Reason.VERIFIED)
        return Verdict(evidence, Reason.DENIED, f"{evidence.name}: answered {_told(answer)}")


def _told(answer: object) -> str:
    """Return what a caller's function raised or answered as text that can be stored, whatever it makes of itself."""
    try:
        text = str(answer) if isinstance(answer, BaseException) else repr(answer)
    except Exception as error:  # noqa: BLE001 - whatever it is, it has not verified
        return f"what cannot be told ({type(error).__name__})"
    return text[:_DETAIL_CHARACTERS_MAX].encode(errors="backslashreplace").decode()


def _command_verdict(evidence: CommandExit, artifacts: Artifacts | None) -> Verdict:
    folder = None if artifacts is None else artifacts.folder
    try:
        status = exit_status(evidence.command, timeout_s=evidence.timeout_s, folder=folder)
    except (OSError, ValueError) as error:
        return Verdict(evidence, Reason.CANNOT_RUN, f"{evidence.command[0]}: {error}")
    if status is None:
        return Verdict(evidence, Reason.TIMED_OUT, f"{evidence.command[0]}: took longer than {evidence.timeout_s:g} s")
    if status == evidence.expected:
        return Verdict(evidence, Reason.VERIFIED)
    return Verdict(evidence, Reason.OTHER_EXIT, f"{evidence.command[0]}: exited with {status}, not {evidence.expected}")


def exit_status(
    command: Sequence[str], *, timeout_s: float, folder: str | os.PathLike[str] | None = None
) -> int | None:
    """Run a command without input or output and return its exit status, 128 + n after signal n, None after the bound.

    When this returns, its process group is dead, including what the command left in the background;
    a process that moved itself to another group is not found. Raises OSError when it cannot be
    started.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        start_new_session=True,
    )
    try:
        is_over = _has_ended(process.pid, timeout_s)
    finally:
        # The process is not waited for until its group is dead: as long as it is a zombie, the
        # number is its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    if not is_over:
        return None
    return _SIGNAL_BASE - status if status < 0 else status


def _has_ended(pid: int, timeout_s: float) -> bool:
    """Wait until the process is a zombie, at most this long."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(descriptor)
