"""The examination of evidence: looks at files, runs commands, asks the database and the caller's own functions.

An examination answers with a verdict and does not raise for what it finds, so that recovery can go on to an older
checkpoint; only a database that fails altogether is an error. It ends: hashing is bounded by size, commands and queries
by time. What it does not bound is a file system that hangs and a function of the caller's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from typing import TYPE_CHECKING, Any, Final, Protocol

from recovery.errors import InvalidEvidence, QueryRefused
from recovery.evidence import (
    ITEMS_MAX,
    ArtifactExists,
    CommandExit,
    DbRow,
    Evidence,
    FileSha256,
    OwnEvidence,
    Reason,
    Verdict,
    Verification,
    decoded_verdicts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from recovery.artifacts import Artifacts
    from recovery.evidence import EvidencePolicy
    from recovery.store import Store
    from recovery.store.rows import StoredEvidence

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
                message = f"Expected evidence but got {item!r}; make it with one of the classes of recovery.evidence."
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

    When this returns, its process group is dead, including what the command left in the background; a process that
    moved itself to another group is not found. Raises OSError when it cannot be started.
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
        # The process is not waited for until its group is dead: as long as it is a zombie, the number is its own.
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
