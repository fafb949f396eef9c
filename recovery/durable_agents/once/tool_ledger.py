"""The tool ledger: an effect on the world is begun once, and its outcome is replayed.

The *intent* is committed before the effect, the *outcome* after it. A process that dies in between
may or may not have had its effect, and no database can tell (Helland, "Life beyond Distributed
Transactions", 2007). Such a call is **in doubt**, and the caller decides what follows:

- ``RUN_AGAIN``: the tool may run twice.
- ``Probe(check)``: look into the world and say what happened.
- ``RAISE``: raise InDoubt until a person has found out, and called ``resolve`` or ``forget``.

A call whose process lives is in progress, and other callers wait for it.

| a command ends | its call |
|---|---|
| with exit code 0 | is recorded |
| with another exit code | has failed: the next call runs it again, unless ``keeps_failures`` |
| at its time limit, or by a signal | is in doubt: a timeout makes its outcome unknown |
| by an interrupt of the caller (Ctrl-C) | is in doubt, once the command and its group have ended |

An exception of a tool that is a function is its failure; an interrupt leaves it in doubt.

While a command runs, it holds the owner lock too. If the executor dies and the command goes on, the
call is in progress until the command ends, or until ``claim_s`` after the last renewal.

**Outcomes.** The first caller and later ones get the same value. Bytes come back as bytes, JSON as
what its encoding decodes to, a command with the exit code and signal that the kernel gave. Outputs
over ``INLINE_BYTES_MAX`` are files (``durable_agents.once.outputs``), each stream by itself. A
small JSON value is stored as JSON, with its duration; the rest is one msgpack value, which holds
any bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from durable_agents import commands
from durable_agents.bounds import check_bytes
from durable_agents.clock import Clock, SystemClock
from durable_agents.commands import OUTPUT_BYTES_MAX, CommandLine, CommandOutput
from durable_agents.errors import (
    InDoubt,
    InvalidRequest,
    InvalidSetting,
    OutputTooLarge,
    ProbeFailed,
    RecoveryError,
    RequestConflict,
    ToolNotStarted,
)
from durable_agents.manager import Manager
from durable_agents.once.claims import (
    CLAIM_S,
    EXECUTION_S_MAX,
    WAIT_S,
    ClaimPolicy,
    Done,
    KeyClaim,
    KeyClaims,
    check_duration,
)
from durable_agents.once.crash_points import OncePoint
from durable_agents.once.hit_counters import HitCounters
from durable_agents.once.outputs import SUFFIX, OutputReference, Outputs, checked_folder
from durable_agents.once.owner_lock import OwnerLock
from durable_agents.once.requests import check_key, decoded_result, encoded_result, request_hash
from durable_agents.store.rows import KeyStatus, StoredKey
from durable_agents.work.leases import Lease, LeaseManager, require

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from durable_agents.once.claims import Guard
    from durable_agents.store import Store


class RunAgain(msgspec.Struct, frozen=True):
    """Run the tool again when in doubt: it may run twice."""


class Raise(msgspec.Struct, frozen=True):
    """Raise InDoubt until a person has called ``resolve`` or ``forget``."""


class Happened(msgspec.Struct, frozen=True):
    """A probe's answer: the tool had its effect, and this is its output."""

    output: Any


class Probe(msgspec.Struct, frozen=True):
    """Ask ``check`` when in doubt: it returns Happened, or None to run the tool.

    An exception or another answer raises ProbeFailed, and the call stays in doubt.
    """

    check: Callable[[], Happened | None]


RUN_AGAIN: Final = RunAgain()
RAISE: Final = Raise()

DoubtPolicy: TypeAlias = RunAgain | Raise | Probe
_POLICIES: Final = (RunAgain, Raise, Probe)


def check_policy(policy: object) -> None:
    """Raise InvalidSetting unless this is a doubt policy."""
    if not isinstance(policy, _POLICIES):
        message = f"in_doubt must be RUN_AGAIN, RAISE or a Probe; got {policy!r:.200}. Choose one."
        raise InvalidSetting(message)


def decision(policy: DoubtPolicy, key: str) -> Happened | None:
    """Return the outcome that the policy finds, or None to run the tool.

    Raises InDoubt or ProbeFailed.
    """
    if isinstance(policy, RunAgain):
        return None
    if isinstance(policy, Raise):
        message = (
            f"The outcome of the call with the key {key!r} must be known; got a call that began and has no recorded "
            "end. Find out whether it happened, then call resolve() or forget()."
        )
        raise InDoubt(message)
    try:
        answer: object = policy.check()
    except Exception as error:
        message = f"The probe of {key!r} must answer; got {error!r:.200}. Mend it and call again."
        raise ProbeFailed(message) from error
    if answer is None or isinstance(answer, Happened):
        return answer
    message = f"The probe of {key!r} must return Happened or None; got {answer!r:.200}. Mend it and call again."
    raise ProbeFailed(message)


INLINE_BYTES_MAX: Final = 64 * 1024
"""The largest output in the database itself, in bytes. A larger one is a file."""

_JSON, _BYTES, _COMMAND = range(3)
_IS_JSON: Final = b"["  # the first byte of an outcome that is stored as JSON: one decoder less on each replay


class StoredOutcome(msgspec.Struct, frozen=True, array_like=True):
    """A stored outcome.

    ``parts`` are its outputs, each inline or by reference. A command has two, other tools one.
    """

    kind: int
    parts: list[bytes | OutputReference]
    duration_us: int = 0
    exit_code: int | None = None
    signal: int | None = None
    has_timed_out: bool = False


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(StoredOutcome).decode


class Outcomes:
    """The encoding of outcomes.

    Large outputs go to ``outputs``. None may exceed ``bytes_max`` bytes.
    """

    __slots__ = ("_bytes_max", "_outputs")

    def __init__(self, outputs: Outputs, bytes_max: int) -> None:
        """Use the folder and the bound."""
        self._outputs = outputs
        self._bytes_max = bytes_max

    def encoded(self, output: Any, duration_us: int = 0) -> tuple[bytes, Any]:
        """Return the bytes to store, and the output as it will come back.

        Large parts are durable when this returns. Raises InvalidResult, OutputTooLarge or
        ArtifactNotWritten.
        """
        if isinstance(output, CommandOutput):
            parts = [self._part(output.stdout), self._part(output.stderr)]
            ending = (output.exit_code, output.signal, output.has_timed_out)
            return _encode(StoredOutcome(_COMMAND, parts, output.duration_us, *ending)), output
        if isinstance(output, bytes):
            return _encode(StoredOutcome(_BYTES, [self._part(output)], duration_us)), bytes(output)
        encoded = encoded_result(output)
        if len(encoded) <= INLINE_BYTES_MAX:
            return b"[%d,%b]" % (max(duration_us, 0), encoded), decoded_result(encoded)
        return _encode(StoredOutcome(_JSON, [self._part(encoded)], duration_us)), decoded_result(encoded)

    def decoded(self, content: bytes) -> tuple[Any, int]:
        """Return the output as the first caller got it, and its duration in microseconds.

        Raises OutputLost.
        """
        if content.startswith(_IS_JSON):
            duration_us, output = decoded_result(content)
            return output, duration_us
        outcome = _decode(content)
        parts = [part if isinstance(part, bytes) else self._outputs.get(part) for part in outcome.parts]
        if outcome.kind == _JSON:
            return decoded_result(parts[0]), outcome.duration_us
        if outcome.kind == _BYTES:
            return parts[0], outcome.duration_us
        command = CommandOutput(
            exit_code=outcome.exit_code,
            signal=outcome.signal,
            has_timed_out=outcome.has_timed_out,
            stdout=parts[0],
            stderr=parts[1],
            duration_us=outcome.duration_us,
        )
        return command, outcome.duration_us

    def _part(self, content: bytes) -> bytes | OutputReference:
        if len(content) > self._bytes_max:
            message = (
                f"An output must have at most {self._bytes_max} bytes; got {len(content)}. The tool has run: find "
                "out what it did, then let it return less, or raise output_bytes_max."
            )
            raise OutputTooLarge(message)
        return content if len(content) <= INLINE_BYTES_MAX else self._outputs.put(content)


def references(content: bytes) -> list[str]:
    """Return the hashes of the files that a stored outcome refers to."""
    if content.startswith(_IS_JSON):
        return []
    return [part.sha256 for part in _decode(content).parts if isinstance(part, OutputReference)]


TTL_S: Final = 30 * 24 * 3600.0
"""How long an outcome is kept by default, in seconds: thirty days."""
_OUTPUT_GRACE_S: Final = 3600.0


class ToolRun(msgspec.Struct, frozen=True):
    """The output of a call (a CommandOutput for a command), and whether it was recorded already."""

    output: Any
    is_replay: bool


class ToolStatistics(msgspec.Struct, frozen=True):
    """Executions, replays, and the seconds that the replayed executions had taken."""

    executions: int
    replays: int
    time_saved_s: float

    @property
    def replay_rate(self) -> float:
        """The share of calls that were replays; 0 without any calls."""
        calls = self.executions + self.replays
        return self.replays / calls if calls else 0.0


class _Call(msgspec.Struct, frozen=True):
    """One call: its key, the hash of its request, the tool, and the caller's options."""

    key: str
    hashed: str
    tool: Callable[[OwnerLock | None], Any]
    in_doubt: DoubtPolicy
    lease: Lease | None
    keeps_failures: bool
    wait_s: float


class ToolLedger(Manager):
    """Tool calls by key, in a store or in the database at ``db_path``.

    It opens and closes the store of ``db_path`` itself.

    >>> with ToolLedger(db_path=tmp_path / "core.db") as ledger:
    ...     for _ in range(2):
    ...         call = ledger.run("send_mail", {"to": "a@b.c"}, lambda: "sent", in_doubt=RAISE)
    >>> call.output, call.is_replay
    ('sent', True)

    Outcomes are kept for ``ttl_s`` seconds. A caller waits for another execution at most
    ``wait_s``. ``claim_s`` and ``execution_s_max`` are those of ``IdempotencyStore``; an execution
    that loses its claim is in doubt. Large outputs lie in a folder of the scope below ``outputs``,
    by default beside the database; it belongs to one database alone. Raises InvalidSetting, and any
    StoreError on opening. May be shared by threads.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        db_path: str | os.PathLike[str] | None = None,
        outputs: str | os.PathLike[str] | None = None,
        clock: Clock | None = None,
        ttl_s: float = TTL_S,
        wait_s: float = WAIT_S,
        claim_s: float = CLAIM_S,
        execution_s_max: float | None = EXECUTION_S_MAX,
        output_bytes_max: int = OUTPUT_BYTES_MAX,
        scope: str = "tool",
    ) -> None:
        """Use ``store``, or the store at ``db_path``; exactly one of them."""
        check_duration("ttl_s", ttl_s)
        check_duration("wait_s", wait_s, least_s=0)
        check_bytes("output_bytes_max", output_bytes_max)
        given = None if outputs is None else checked_folder(outputs)
        super().__init__(store, db_path=db_path, clock=clock)
        self._path = self._store.place.path
        folder = given if given is not None or self._path is None else Path(self._path + SUFFIX)
        if folder is None:
            message = "outputs must be a folder, since the store has no file; got None. Give outputs=."
            raise InvalidSetting(message)
        self._ttl_s, self._wait_s = ttl_s, wait_s
        self._output_bytes_max = output_bytes_max
        policy = ClaimPolicy(scope=scope, claim_s=claim_s, execution_s_max=execution_s_max, keeps_doubt=True)
        self._claims = KeyClaims(self._store, policy, self._clock)
        self._outputs = Outputs(folder / scope)
        self._leases = LeaseManager(self._store, clock=self._clock)
        self._outcomes = Outcomes(self._outputs, output_bytes_max)
        self._counters = HitCounters(self._store, scope, self._clock)

    @property
    def outputs(self) -> Outputs:
        """The large outputs."""
        return self._outputs

    def close(self) -> None:
        """Flush the counts, stop the renewals, and close the store if this opened it.

        Raises any StoreError.
        """
        try:
            self._counters.flush()
        finally:
            self._claims.close()
            super().close()

    def run(
        self,
        name: str,
        arguments: object,
        tool: Callable[[], object],
        *,
        in_doubt: DoubtPolicy,
        key: str | None = None,
        lease: Lease | None = None,
        wait_s: float | None = None,
    ) -> ToolRun:
        """Return the outcome of this call, or call ``tool`` and record what it returns.

        A tool returns JSON or bytes.

        Without a ``key``, name and arguments identify the call; with one, they must be those of its
        first call. Under a ``lease``, intent and outcome are recorded only while it is held.

        Raises the errors of ``tool``; InDoubt or ProbeFailed, as ``in_doubt`` says; InvalidKey,
        InvalidRequest, RequestConflict; InProgress, RecursiveExecution. InvalidResult,
        ArtifactNotWritten, a ClaimLost or a StoreError at the end mean that the tool has run and
        its call is in doubt.
        """
        check_policy(in_doubt)
        hashed = request_hash([name, arguments])
        found = self._replayed(hashed if key is None else key, hashed)
        if found is not None:
            return found
        return self._run(self._call(hashed, lambda _: tool(), key, in_doubt, lease, wait_s))

    def run_command(
        self,
        argv: Sequence[str],
        *,
        in_doubt: DoubtPolicy,
        directory: str | None = None,
        environment: dict[str, str] | None = None,
        stdin: bytes = b"",
        timeout_s: float | None = None,
        key: str | None = None,
        lease: Lease | None = None,
        wait_s: float | None = None,
        keeps_failures: bool = False,
    ) -> ToolRun:
        """Return the outcome of this command, or run it and record the outcome.

        ``durable_agents.commands`` runs it. A shell command is ``["sh", "-c", text]``.
        ``timeout_s`` is not part of a command's identity. With ``keeps_failures``, every ending is
        recorded. Raises as ``run`` does, ToolNotStarted when it cannot be started, and
        OutputTooLarge.
        """
        commands.check_words(argv, stdin)
        texts, added = list(argv), dict(environment or {})
        digest = hashlib.sha256(stdin).hexdigest() if stdin else ""
        hashed = request_hash(["command", texts, directory, added, digest])

        def call(owner: OwnerLock | None) -> CommandOutput:
            handed = () if owner is None else (owner.descriptor,)
            return commands.run(command, bytes_max=self._output_bytes_max, pass_fds=handed)

        check_policy(in_doubt)
        found = self._replayed(hashed if key is None else key, hashed)
        if found is not None:
            return found
        made = self._call(hashed, call, key, in_doubt, lease, wait_s, keeps_failures=keeps_failures)
        command = CommandLine(tuple(texts), directory, tuple(added.items()), stdin, timeout_s)
        commands.check_command(command)
        return self._run(made, None if self._path is None else OwnerLock(self._path))

    def statistics(self) -> ToolStatistics:
        """Return the flushed counts of all processes and those of this object.

        Raises any StoreError.
        """
        usage = self._counters.total()
        return ToolStatistics(usage.misses, usage.hits, usage.time_saved_us / 1_000_000)

    def in_doubt(self) -> list[str]:
        """Return the keys of calls that began and have no living executor.

        Raises any StoreError.
        """
        return [key for key, row in self._pending() if self._claims.look(key, row.request_hash) is None]

    def resolve(self, key: str, output: object) -> None:
        """Record the outcome that a person has found out.

        Raises RequestConflict unless the call is in doubt.
        """
        claim = self._doubted(key)
        try:
            content, _ = self._outcomes.encoded(output)
            self._claims.finish(claim, content, ttl_s=self._ttl_s)
        except BaseException:
            self._doubt(claim)
            raise

    def forget(self, key: str) -> None:
        """Let the next call run the tool.

        Call this when a person has found out that it had no effect. Raises as ``resolve`` does.
        """
        self._claims.abandon(self._doubted(key))

    def discard_expired(self) -> int:
        """Delete expired outcomes and unreferenced outputs; return how many outcomes were deleted.

        Outputs of the last hour stay: an outcome that refers to them may not be committed yet.
        """
        discarded = self._claims.discard_expired()
        self._outputs.discard(self._referred(), before_s=SystemClock().now() / 1_000_000 - _OUTPUT_GRACE_S)
        return discarded

    def _call(
        self,
        hashed: str,
        tool: Callable[[OwnerLock | None], Any],
        key: str | None,
        in_doubt: DoubtPolicy,
        lease: Lease | None,
        wait_s: float | None,
        *,
        keeps_failures: bool = False,
    ) -> _Call:
        if key is not None:
            check_key(key)
        waits_s = self._wait_s if wait_s is None else wait_s
        check_duration("wait_s", waits_s, least_s=0)
        return _Call(hashed if key is None else key, hashed, tool, in_doubt, lease, keeps_failures, waits_s)

    def _run(self, call: _Call, owner: OwnerLock | None = None) -> ToolRun:
        try:
            name = None if owner is None else owner.name
            settled = self._claims.settle(
                call.key, call.hashed, wait_s=call.wait_s, guard=self._guard(call.lease), owner=name
            )
            if isinstance(settled, Done):
                return self._replay(settled.result)
            return self._begun(call, settled, owner)
        finally:
            if owner is not None:
                owner.leave()

    def _replayed(self, key: str, hashed: str) -> ToolRun | None:
        """Return the recorded outcome, by one read and without a write, or None."""
        result = self._claims.recorded(key, hashed)
        return None if result is None else self._replay(result)

    def _replay(self, content: bytes) -> ToolRun:
        output, duration_us = self._outcomes.decoded(content)
        self._counters.hit(time_saved_us=duration_us)
        return ToolRun(output, is_replay=True)

    def _begun(self, call: _Call, claim: KeyClaim, owner: OwnerLock | None) -> ToolRun:
        if claim.is_in_doubt:
            known = self._decide(call, claim)
            if known is not None:
                return self._record(call, claim, known.output)
        sys.audit(OncePoint.BEFORE_EFFECT, claim.key)
        began = self._clock.monotonic()
        output = self._effect(call, claim, owner)
        sys.audit(OncePoint.AFTER_EFFECT, claim.key)
        try:
            return self._record(call, claim, output, self._clock.monotonic() - began)
        finally:
            self._counters.miss()

    def _decide(self, call: _Call, claim: KeyClaim) -> Happened | None:
        """Apply the caller's doubt policy. After an error the call is in doubt as before."""
        try:
            with self._claims.executing(claim):
                return decision(call.in_doubt, call.key)
        except BaseException:
            self._doubt(claim)
            raise

    def _effect(self, call: _Call, claim: KeyClaim, owner: OwnerLock | None) -> Any:
        """Run the tool if its claim and its lease can still be trusted.

        After an error the key is free, or the call is in doubt.
        """
        try:
            self._claims.check(claim)
            if call.lease is not None:
                self._leases.check(call.lease)
        except BaseException:
            self._leave(claim)
            raise
        try:
            with self._claims.executing(claim):
                return call.tool(owner)
        except (ToolNotStarted, InvalidRequest):
            self._leave(claim)
            raise
        except Exception as error:
            self._doubt(claim) if isinstance(error, OutputTooLarge) else self._abandon(claim)
            raise
        except BaseException:
            self._doubt(claim)
            raise

    def _record(self, call: _Call, claim: KeyClaim, output: Any, duration_us: int = 0) -> ToolRun:
        """Record the outcome, and return it as later callers get it.

        After a failure, free the key or put the call in doubt instead.
        """
        if isinstance(output, CommandOutput) and output.has_failed and not call.keeps_failures:
            if output.has_timed_out or output.signal is not None:
                self._doubt(claim)
            else:
                self._abandon(claim)
            return ToolRun(output, is_replay=False)
        try:
            content, returned = self._outcomes.encoded(output, duration_us)
            failed = isinstance(output, CommandOutput) and output.has_failed
            other = self._claims.finish_or_wait(
                claim,
                content,
                call.hashed,
                ttl_s=self._ttl_s,
                wait_s=call.wait_s,
                has_failed=failed,
                guard=self._guard(call.lease),
            )
        except BaseException:
            self._doubt(claim)
            raise
        return ToolRun(returned, is_replay=False) if other is None else self._replay(other.result)

    def _guard(self, lease: Lease | None) -> Guard | None:
        """Return the fence of the lease, to be called in the transaction that writes under it."""
        if lease is None:
            return None
        return lambda transaction: require(transaction, lease, lease.task_id, self._clock)

    def _pending(self) -> Iterator[tuple[str, StoredKey]]:
        for status in (KeyStatus.IN_DOUBT, KeyStatus.EXECUTING):
            yield from ((row.key.partition("/")[2], row) for row in self._claims.rows(status))

    def _referred(self) -> set[str]:
        """Return the hashes of all outputs that outcomes refer to."""
        rows = (row for status in (KeyStatus.DONE, KeyStatus.FAILED) for row in self._claims.rows(status))
        return {digest for row in rows for digest in references(row.result or b"")}

    def _doubted(self, key: str) -> KeyClaim:
        """Claim a call that is in doubt, on behalf of a person.

        Raises RequestConflict for any other call.
        """
        check_key(key)
        row = self._store.key(self._claims.stored(key))
        if row is not None and row.result is None:
            found = self._claims.begin(key, row.request_hash)
            if isinstance(found, KeyClaim) and found.is_in_doubt:
                return found
            if isinstance(found, KeyClaim):
                self._abandon(found)
        state = "no such call" if row is None else f"one that is {row.status.value}"
        message = f"The call with the key {key!r} must be in doubt; got {state}. Nothing was changed."
        raise RequestConflict(message)

    def _leave(self, claim: KeyClaim) -> None:
        """End a claim without having run the tool: in doubt if it was before, else free."""
        if claim.is_in_doubt:
            self._doubt(claim)
        else:
            self._abandon(claim)

    def _doubt(self, claim: KeyClaim) -> None:
        """Put the call in doubt; if the database refuses, it is in doubt when the claim expires."""
        with contextlib.suppress(RecoveryError):
            self._claims.doubt(claim)

    def _abandon(self, claim: KeyClaim) -> None:
        """Free the key; if the database refuses, the call is in doubt when the claim expires."""
        with contextlib.suppress(RecoveryError):
            self._claims.abandon(claim)
