"""Evidence: claims about the world outside a checkpoint, their examination, and the policy.

An item of evidence can be examined again at any time: a file exists, or has a hash; a command exits
with a status; the database has a row; or a function of the caller's says so. A verdict of yesterday
proves nothing: the file may be deleted. So verdicts are kept for people to read, and recovery
examines again.

**Nothing verifies by default.** A policy needs at least one item, so an empty pack never verifies.
An exit status is compared with the expected one, so 137 is no success because it was recorded (D9).

An examination returns a verdict and does not raise for what it finds, so recovery can go on to an
older checkpoint; only a database that fails is an error. It ends: hashing is bounded by size,
commands and queries by time. A hanging file system and the caller's functions are not bounded.
"""

from __future__ import annotations

import enum
import re
import subprocess
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

import msgspec

from durable_agents.clock import is_duration
from durable_agents.commands import ChildRunner
from durable_agents.errors import InvalidEvidence, QueryRefused, ToolNotStarted
from durable_agents.store.rows import Scalar

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from durable_agents.store import Store
    from durable_agents.store.rows import StoredEvidence
    from durable_agents.work.artifacts import Artifacts

COMMAND_TIMEOUT_S: Final = 30.0
"""How long a command of evidence may take by default, in seconds."""

COMMAND_TIMEOUT_S_MAX: Final = 3600.0
ITEMS_MAX: Final = 1000
"""The most items of evidence that one checkpoint can have."""

_EXIT_STATUS_MAX: Final = 255
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Reason(enum.StrEnum):
    """Why an item of evidence verifies, or does not."""

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
    """A regular file exists.

    ``path`` is relative to the artifact folder. No part of it is a link.
    """

    path: str

    def __post_init__(self) -> None:
        """Raise InvalidEvidence for a path that leads out of the folder."""
        check_path(self.path)


class FileSha256(msgspec.Struct, frozen=True, tag_field="kind", tag="file_sha256"):
    """A regular file has this SHA-256, in lower-case hexadecimal.

    ``path`` is as in ArtifactExists.
    """

    path: str
    sha256: str

    def __post_init__(self) -> None:
        """Raise InvalidEvidence for a path that leads out of the folder, or a malformed SHA-256."""
        check_path(self.path)
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            message = f"sha256 must be 64 lower-case hexadecimal digits; got {self.sha256!r}. Compute it."
            raise InvalidEvidence(message)


class CommandExit(msgspec.Struct, frozen=True, tag_field="kind", tag="command_exit"):
    """A command exits with the status ``expected``.

    It runs again at each examination, so it must change nothing.

    ``command`` is a program and its arguments, without a shell. An end by signal n is 128 + n, as
    in a shell. After ``timeout_s`` seconds its whole process group is killed.
    """

    command: tuple[str, ...]
    expected: int = 0
    timeout_s: float = COMMAND_TIMEOUT_S

    def __post_init__(self) -> None:
        """Raise InvalidEvidence for an empty command, an impossible status, or an invalid bound."""
        words = self.command
        if not isinstance(words, tuple) or not words or not all(isinstance(w, str) and "\0" not in w for w in words):
            message = f"command must be a tuple of a program and its arguments; got {words!r}. Give texts without NUL."
            raise InvalidEvidence(message)
        if not (isinstance(self.expected, int) and 0 <= self.expected <= _EXIT_STATUS_MAX):
            message = f"expected must be a status of 0 to {_EXIT_STATUS_MAX}; got {self.expected!r}. 137 is SIGKILL."
            raise InvalidEvidence(message)
        if self.timeout_s == 0 or not is_duration(self.timeout_s, 0, COMMAND_TIMEOUT_S_MAX):
            rule = f"above 0 and up to {COMMAND_TIMEOUT_S_MAX:g}"
            message = f"timeout_s must be {rule}; got {self.timeout_s!r:.80}. Give seconds."
            raise InvalidEvidence(message)


class DbRow(msgspec.Struct, frozen=True, tag_field="kind", tag="db_row"):
    """The store's own database has a row in ``table`` with these values.

    ``values`` has a value for each column that counts, None for NULL. The committed state counts: a
    row written in the checkpoint's own transaction is not seen.
    """

    table: str
    values: dict[str, Scalar]

    def __post_init__(self) -> None:
        """Raise InvalidEvidence for no column, or for an impossible name or value."""
        names = (self.table, *self.values)
        if not self.values or not all(isinstance(name, str) and name and "\0" not in name for name in names):
            message = f"DbRow must have a table and a value for a column; got {names!r}. Say which row is meant."
            raise InvalidEvidence(message)
        for column, value in cast("dict[str, object]", self.values).items():
            if value is not None and not isinstance(value, str | int | float):
                message = f"Column {column!r} must be a text, a number or None; got {value!r}. Convert it."
                raise InvalidEvidence(message)


class OwnEvidence(msgspec.Struct, frozen=True, tag_field="kind", tag="own"):
    """A function of the caller's verifies. ``name`` is its name among the manager's ``verifiers``.

    ``argument`` is JSON and is passed to the function, which answers True or False.
    """

    name: str
    argument: Any = None

    def __post_init__(self) -> None:
        """Raise InvalidEvidence for an empty name."""
        if not isinstance(self.name, str) or not self.name:
            message = f"name must be that of a verifier; got {self.name!r}. Give the one it is registered under."
            raise InvalidEvidence(message)


Evidence: TypeAlias = ArtifactExists | FileSha256 | CommandExit | DbRow | OwnEvidence
"""One item of evidence."""


class Verdict(msgspec.Struct, frozen=True):
    """The outcome of examining one item.

    ``detail`` is a sentence for people, empty if the item verified.
    """

    evidence: Evidence
    reason: Reason
    detail: str = ""

    @property
    def is_verified(self) -> bool:
        """Whether the item verified."""
        return self.reason is Reason.VERIFIED


class Verification(msgspec.Struct, frozen=True):
    """The verdicts on a checkpoint's evidence; ``required`` is how many must verify."""

    required: int
    verdicts: tuple[Verdict, ...]

    @property
    def is_verified(self) -> bool:
        """Whether enough items verified, and at least one."""
        return sum(verdict.is_verified for verdict in self.verdicts) >= max(1, self.required)


class EvidencePolicy(msgspec.Struct, frozen=True):
    """How much of a checkpoint's evidence must verify.

    Make one with ``require_all`` or ``allow_partial``.

    ``min_verified`` is that number, None for all. Raises InvalidEvidence for less than one: a
    checkpoint would be verified though nothing holds.
    """

    min_verified: int | None = None

    def __post_init__(self) -> None:
        """Check the number."""
        number = self.min_verified
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            message = f"min_verified must be 1 or more; got {number!r}. Without evidence nothing is verified."
            raise InvalidEvidence(message)

    @classmethod
    def require_all(cls) -> EvidencePolicy:
        """Every item must verify: the default."""
        return _REQUIRE_ALL

    @classmethod
    def allow_partial(cls, *, min_verified: int = 1) -> EvidencePolicy:
        """At least ``min_verified`` items must verify. Raises InvalidEvidence for less than one."""
        return cls(min_verified)

    def required(self, items: int) -> int:
        """Return how many of ``items`` items must verify.

        At least one, and possibly more than there are.
        """
        return max(1, items) if self.min_verified is None else self.min_verified


_REQUIRE_ALL: Final = EvidencePolicy()
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(tuple[Verdict, ...]).decode


def check_path(path: object) -> None:
    """Raise InvalidEvidence unless the path is relative and goes down only."""
    if not parts_inside(path):
        message = (
            f"The path of an artifact must be relative to its folder and stay in it; got {path!r}. "
            "Leave out a leading slash, '..' and NUL."
        )
        raise InvalidEvidence(message)


def parts_inside(path: object) -> list[str]:
    """Return the parts of a relative path below its folder; an empty list for any other path.

    Split by hand: pathlib takes ten times as long, and every checkpoint passes here.
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
        message = f"Evidence must be JSON values; got {verdicts!r} ({error}). Use plain JSON."
        raise InvalidEvidence(message) from error
    if not is_faithful:
        message = f"Evidence must come back from JSON unchanged; got {verdicts!r}. Use plain JSON."
        raise InvalidEvidence(message)
    return content


def decoded_verdicts(content: bytes) -> tuple[Verdict, ...]:
    """Return the stored verdicts. Raises InvalidEvidence for unknown kinds and damaged content."""
    try:
        verdicts: tuple[Verdict, ...] = _decode(content)
    except (ValueError, msgspec.MsgspecError) as error:
        message = f"Stored evidence must be of known kinds; got {content[:200]!r} ({error}). Update this package."
        raise InvalidEvidence(message) from error
    return verdicts


def _is_plain(evidence: Evidence) -> bool:
    """Whether the item's own checks exclude any value that JSON would change."""
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
"""How long the query for a row may take, in seconds."""

_SIGNAL_BASE: Final = 128
_DETAIL_CHARACTERS_MAX: Final = 2000


class OwnVerifier(Protocol):
    """A verifier of the caller's: any function of one argument."""

    def __call__(self, argument: Any, /) -> bool:
        """Return True, and nothing else, if the claim holds."""
        ...


class Verifier:
    """Examines evidence against one folder of artifacts, one store, and the caller's verifiers."""

    def __init__(
        self, store: Store, artifacts: Artifacts | None = None, own: Mapping[str, OwnVerifier] | None = None
    ) -> None:
        """Use these. Without ``artifacts``, no evidence about a file verifies."""
        self._store = store
        self._artifacts = artifacts
        self._own = {} if own is None else dict(own)

    def require(self, evidence: Sequence[object]) -> None:
        """Raise InvalidEvidence for items that this verifier can never examine.

        They are a mistake of the program.
        """
        if len(evidence) > ITEMS_MAX:
            message = f"evidence must have at most {ITEMS_MAX} items; got {len(evidence)}. Put them into one file."
            raise InvalidEvidence(message)
        for item in evidence:
            if not isinstance(item, Evidence):
                message = f"evidence must hold Evidence; got {item!r}. Use a class of durable_agents.work.evidence."
                raise InvalidEvidence(message)
            if isinstance(item, ArtifactExists | FileSha256) and self._artifacts is None:
                message = f"{item!r} must have a folder to look in; got no artifacts. Give them to the manager."
                raise InvalidEvidence(message)
            if isinstance(item, OwnEvidence) and item.name not in self._own:
                message = f"name must be that of a verifier; got {item.name!r}. Give it to the manager."
                raise InvalidEvidence(message)

    def examine(self, evidence: Sequence[Evidence], policy: EvidencePolicy) -> Verification:
        """Return the verdicts on new evidence.

        Raises InvalidEvidence as ``require`` does, or any StoreError.
        """
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
    """Return what the caller's function raised or answered as text that can be stored."""
    try:
        text = str(answer) if isinstance(answer, BaseException) else repr(answer)
    except Exception as error:  # noqa: BLE001 - a broken __repr__ has not verified
        return f"a value without a text ({type(error).__name__})"
    return text[:_DETAIL_CHARACTERS_MAX].encode(errors="backslashreplace").decode()


def _command_verdict(evidence: CommandExit, artifacts: Artifacts | None) -> Verdict:
    folder = None if artifacts is None else artifacts.folder
    try:
        status = exit_status(evidence.command, timeout_s=evidence.timeout_s, folder=folder)
    except (OSError, ValueError, ToolNotStarted) as error:
        return Verdict(evidence, Reason.CANNOT_RUN, f"{evidence.command[0]}: {error}")
    if status is None:
        return Verdict(evidence, Reason.TIMED_OUT, f"{evidence.command[0]}: took longer than {evidence.timeout_s:g} s")
    if status == evidence.expected:
        return Verdict(evidence, Reason.VERIFIED)
    return Verdict(evidence, Reason.OTHER_EXIT, f"{evidence.command[0]}: exited with {status}, not {evidence.expected}")


def exit_status(
    command: Sequence[str], *, timeout_s: float, folder: str | os.PathLike[str] | None = None
) -> int | None:
    """Run a command; return its exit status, 128 + n after signal n, None after the bound.

    When this returns, its process group is dead, background processes included; a process that left
    the group goes on. Raises OSError when it cannot be started.
    """
    nothing = subprocess.DEVNULL

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, stdin=nothing, stdout=nothing, stderr=nothing, cwd=folder, start_new_session=True
        )

    status, has_timed_out = ChildRunner(start, timeout_s).run()
    if has_timed_out:
        return None
    return _SIGNAL_BASE - status if status < 0 else status
