"""What to do in doubt: a tool was begun, and nobody knows whether it had its effect.

Outcomes of tools as bytes and back, such that what is replayed is what was there the first time.

Bytes come back as bytes, a JSON value as what its encoding decodes to (the first caller gets that,
too), and a command's output with the exit code and the signal that the kernel gave. What is large
is kept as a file (``durable_agents.once.outputs``), each of a command's two streams by itself; the
rest is one msgpack value, which holds any bytes.

The tool ledger: an effect on the world is begun once, and its outcome is there for whoever asks
again.

The *intent* is committed before the effect, the *outcome* after it. Between the two lies what no
database can decide: a process that dies there may or may not have had its effect (Helland, "Life
beyond Distributed Transactions", 2007). Such a call is **in doubt**, and the caller says what then:
``RUN_AGAIN``, for a tool that may run twice; ``Probe(check)``, which looks into the world and says
what happened; or ``RAISE``, which leaves it to a person, who finds out and calls ``resolve`` or
``forget``. A call whose process lives is in progress, and others wait.

A command that ends by itself with an exit code other than 0 has failed, and the next call runs it
again, unless failures are asked to be kept. One that ran out of time, or that a signal ended, is in
doubt: a timeout makes an operation unknown, not failed. So does an interrupt (KeyboardInterrupt, or
what else a signal's handler raises): it leaves the call when the command and its group are seen to
have ended, and the call is in doubt. An exception of a tool that is a function counts as its
failure, an interrupt of one leaves it in doubt too.

While a command runs, the claim is held by it too: if the executor dies and the command goes on, the
call is in progress until the command ends, or the claim does, ``claim_s`` after its last renewal.

What the first caller gets and what later ones get is the same: bytes are bytes, of any content and
length, JSON is decoded from what was stored, exit codes and signals are as the kernel gave them.
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
from durable_agents.commands import OUTPUT_BYTES_MAX, Command, CommandOutput
from durable_agents.errors import (
    ExecutionLost,
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
from durable_agents.once.claims import CLAIM_S, EXECUTION_S_MAX, ClaimPolicy, Claims, Done, Mine, check_duration
from durable_agents.once.hit_counters import UsageCounter
from durable_agents.once.outputs import SUFFIX, OutputReference, Outputs, checked_folder
from durable_agents.once.owner_lock import Presence
from durable_agents.once.requests import check_key, decoded_result, encoded_result, request_hash
from durable_agents.store.rows import KeyStatus, StoredKey
from durable_agents.work.leases import Lease, LeaseManager, require

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from durable_agents.once.claims import Guard
    from durable_agents.store import Store


class RunAgain(msgspec.Struct, frozen=True):
    """Run the tool again: it may run twice."""


class Raise(msgspec.Struct, frozen=True):
    """Raise InDoubt, again and again, until a person has called ``resolve`` or ``forget``."""


class Happened(msgspec.Struct, frozen=True):
    """A probe's answer: the tool had its effect, and this is its output."""

    output: Any


class Probe(msgspec.Struct, frozen=True):
    """Ask ``check``: it returns Happened, or None when nothing happened, and then the tool is run.

    An exception, or another answer, is ProbeFailed, and the call is still in doubt.
    """

    check: Callable[[], Happened | None]


RUN_AGAIN: Final = RunAgain()
RAISE: Final = Raise()

DoubtPolicy: TypeAlias = RunAgain | Raise | Probe
_POLICIES: Final = (RunAgain, Raise, Probe)


def check_policy(policy: object) -> None:
    """Raise InvalidSetting unless this is a policy: that there is one must not be forgotten."""
    if not isinstance(policy, _POLICIES):
        message = f"Expected in_doubt to be RUN_AGAIN, RAISE or a Probe but got {policy!r:.200}; say what happens then."
        raise InvalidSetting(message)


def decision(policy: DoubtPolicy, key: str) -> Happened | None:
    """Return what is known to have happened; None to run the tool. Raises InDoubt or ProbeFailed."""
    if isinstance(policy, RunAgain):
        return None
    if isinstance(policy, Raise):
        message = (
            f"Expected to know what came of the call with the key {key!r} but it began and its end was not recorded; "
            "find out whether it happened, then call resolve() or forget()."
        )
        raise InDoubt(message)
    try:
        answer: object = policy.check()
    except Exception as error:
        message = f"Expected the probe of {key!r} to answer but it raised {error!r:.200}; mend it and call again."
        raise ProbeFailed(message) from error
    if answer is None or isinstance(answer, Happened):
        return answer
    message = f"Expected the probe of {key!r} to return Happened or None but got {answer!r:.200}; mend it."
    raise ProbeFailed(message)


INLINE_BYTES_MAX: Final = 64 * 1024
"""The largest output that is kept in the database itself; a larger one is a file, and its hash in the database."""

_JSON, _BYTES, _COMMAND = range(3)
_IS_JSON: Final = b"["  # a small JSON value is stored as JSON, with how long it took: one decoder less on each replay


class StoredOutcome(msgspec.Struct, frozen=True, array_like=True):
    """What is stored. ``parts`` are the outputs, each in place or by reference: one, or a command's two."""

    kind: int
    parts: list[bytes | OutputReference]
    duration_us: int = 0
    exit_code: int | None = None
    signal: int | None = None
    has_timed_out: bool = False


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(StoredOutcome).decode


class Outcomes:
    """Encodes and decodes outcomes; large outputs go to ``outputs``, none may have more than ``bytes_max`` bytes."""

    __slots__ = ("_bytes_max", "_outputs")

    def __init__(self, outputs: Outputs, bytes_max: int) -> None:
        """Prepare."""
        self._outputs = outputs
        self._bytes_max = bytes_max

    def encoded(self, output: Any, duration_us: int = 0) -> tuple[bytes, Any]:
        """Return what is to be stored, large parts being durable by then, and the output as it will come back.

        Raises InvalidResult, OutputTooLarge or ArtifactNotWritten.
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
        """Return the output as the first caller got it, and how long it took, in microseconds. Raises OutputLost."""
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
                f"Expected an output of at most {self._bytes_max} bytes but it has {len(content)}; the tool has run, "
                "so find out what it did, let it put out less, or raise output_bytes_max."
            )
            raise OutputTooLarge(message)
        return content if len(content) <= INLINE_BYTES_MAX else self._outputs.put(content)


def references(content: bytes) -> list[str]:
    """Return the hashes of the files that a stored outcome refers to."""
    if content.startswith(_IS_JSON):
        return []
    return [part.sha256 for part in _decode(content).parts if isinstance(part, OutputReference)]


TOOL_CRASH_POINTS: Final = ("recovery.tool.before_effect", "recovery.tool.after_effect")
"""The audit events right before a tool is run, when its intent is durable, and right after; the argument is the key.

Around them lie those of the claim (``durable_agents.once.claims``): the intent is a claim, and its
end is the outcome.
"""

BEFORE_EFFECT, AFTER_EFFECT = TOOL_CRASH_POINTS

TTL_S: Final = 30 * 24 * 3600.0
"""How long an outcome is kept, in seconds, unless told otherwise: thirty days."""
WAIT_S: Final = 60.0
_PAGE_ROWS: Final = 1000
_OUTPUT_GRACE_S: Final = 3600.0


class ToolRun(msgspec.Struct, frozen=True):
    """What a call came to: the output (a CommandOutput for a command), and whether it was there already."""

    output: Any
    is_replay: bool


class ToolStatistics(msgspec.Struct, frozen=True):
    """How often tools were run, how often an outcome was there already, and how long those had taken, in seconds."""

    executions: int
    replays: int
    time_saved_s: float

    @property
    def replay_rate(self) -> float:
        """The share of calls that needed no run; 0 without any calls."""
        calls = self.executions + self.replays
        return self.replays / calls if calls else 0.0


class _Call(msgspec.Struct, frozen=True):
    """One call: its key, the hash of its request, the tool, and what the caller wants."""

    key: str
    hashed: str
    tool: Callable[[Presence | None], Any]
    in_doubt: DoubtPolicy
    lease: Lease | None
    keeps_failures: bool
    wait_s: float


class ToolLedger(Manager):
    """Tool calls by key. Give it a store, or the path of a database file, which it opens and closes.

    Outcomes are kept for ``ttl_s`` seconds; a caller waits for another at most ``wait_s``;
    ``claim_s`` and ``execution_s_max`` are those of ``IdempotencyStore``, and an execution that
    loses its claim is in doubt. Large outputs are in a folder of the scope below ``outputs``, which
    is beside the database unless told otherwise, and belongs to one database alone. Raises
    InvalidSetting, and any StoreError when it opens the file. May be shared by threads.
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
            message = "Expected a folder for large outputs but got none, and the store has no file; give outputs=."
            raise InvalidSetting(message)
        self._ttl_s, self._wait_s, self._scope = ttl_s, wait_s, scope
        self._prefix = f"{scope}/"
        self._output_bytes_max = output_bytes_max
        policy = ClaimPolicy(scope=scope, claim_s=claim_s, execution_s_max=execution_s_max, keeps_doubt=True)
        self._claims = Claims(self._store, policy, self._clock)
        self._outputs = Outputs(folder / scope)
        self._leases = LeaseManager(self._store, clock=self._clock)
        self._outcomes = Outcomes(self._outputs, output_bytes_max)
        self._usage = UsageCounter(self._store, scope, self._clock)

    @property
    def outputs(self) -> Outputs:
        """Where large outputs are."""
        return self._outputs

    def close(self) -> None:
        """Store the counts, end the renewals, and close the store if this opened it. Raises any StoreError."""
        try:
            self._usage.flush()
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
        """Return the outcome of this call, or call ``tool`` and record what it returns: a JSON value, or bytes.

        Without a ``key``, name and arguments are what a call is known by; with one, they must be
        those of its first call. Under a ``lease``, intent and outcome are recorded only while it is
        held.

        Raises whatever ``tool`` raises; InDoubt or ProbeFailed, as ``in_doubt`` says; InvalidKey,
        InvalidRequest, RequestConflict; InProgress, RecursiveExecution; InvalidResult,
        ArtifactNotWritten, ExecutionLost, LeaseLost or LeaseExpired at the end, or any StoreError:
        the tool has run, and its call is in doubt.
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
        """Return the outcome of this command, or run it (``durable_agents.commands``) and record what came of it.

        A shell command is ``["sh", "-c", text]``. The time limit, in seconds, is not part of what a
        command is known by. With ``keeps_failures``, every ending is recorded, whatever it was.
        Raises as ``run`` does, ToolNotStarted when it could not be started, and OutputTooLarge.
        """
        commands.check_words(argv, stdin)
        texts, added = list(argv), dict(environment or {})
        digest = hashlib.sha256(stdin).hexdigest() if stdin else ""
        hashed = request_hash(["command", texts, directory, added, digest])

        def call(presence: Presence | None) -> CommandOutput:
            handed = () if presence is None else (presence.descriptor,)
            return commands.run(command, bytes_max=self._output_bytes_max, pass_fds=handed)

        check_policy(in_doubt)
        found = self._replayed(hashed if key is None else key, hashed)
        if found is not None:
            return found
        made = self._call(hashed, call, key, in_doubt, lease, wait_s, keeps_failures=keeps_failures)
        command = Command(tuple(texts), directory, tuple(added.items()), stdin, timeout_s)
        commands.check_command(command)
        return self._run(made, None if self._path is None else Presence(self._path))

    def statistics(self) -> ToolStatistics:
        """Return the counts of all processes, except those that still wait in another process's memory."""
        usage = self._usage.total()
        return ToolStatistics(usage.misses, usage.hits, usage.time_saved_us / 1_000_000)

    def in_doubt(self) -> list[str]:
        """Return the keys of calls that began, and of which nobody will record what came. Raises any StoreError."""
        return [key for key, row in self._pending() if self._claims.look(key, row.request_hash) is None]

    def resolve(self, key: str, output: object) -> None:
        """Record the outcome that a person has found. Raises RequestConflict unless the call is in doubt."""
        mine = self._doubted(key)
        try:
            content, _ = self._outcomes.encoded(output)
            self._claims.finish(mine, content, ttl_s=self._ttl_s)
        except BaseException:
            self._doubt(mine)
            raise

    def forget(self, key: str) -> None:
        """Let the next call run the tool: a person has found that it had no effect. Raises as ``resolve`` does."""
        self._claims.abandon(self._doubted(key))

    def discard_expired(self) -> int:
        """Delete outcomes that have expired, and outputs that nothing refers to any more; return how many outcomes.

        An output that was stored within the last hour stays: somebody may be about to refer to it.
        """
        discarded, after = 0, 0
        while True:
            with self._store.transaction() as transaction:
                count, after = transaction.delete_expired_keys(
                    self._scope, now=self._clock.now(), after=after, limit=_PAGE_ROWS
                )
            discarded += count
            if not after:
                break
        self._outputs.discard(self._referred(), before_s=SystemClock().now() / 1_000_000 - _OUTPUT_GRACE_S)
        return discarded

    def _call(
        self,
        hashed: str,
        tool: Callable[[Presence | None], Any],
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

    def _run(self, call: _Call, presence: Presence | None = None) -> ToolRun:
        try:
            owner = None if presence is None else presence.name
            settled = self._claims.settle(
                call.key, call.hashed, wait_s=call.wait_s, guard=self._guard(call.lease), owner=owner
            )
            if isinstance(settled, Done):
                return self._replay(settled.result)
            return self._begun(call, settled, presence)
        finally:
            if presence is not None:
                presence.leave()

    def _replayed(self, key: str, hashed: str) -> ToolRun | None:
        """Return the recorded outcome, by one read and without a write, or None."""
        stored = self._store.result(f"{self._prefix}{key}")
        if stored is None or stored.expires_at <= self._clock.now():
            return None
        if stored.request_hash != hashed:
            self._claims.look(key, hashed)
            return None
        return self._replay(stored.result)

    def _replay(self, content: bytes) -> ToolRun:
        output, duration_us = self._outcomes.decoded(content)
        self._usage.hit(time_saved_us=duration_us)
        return ToolRun(output, is_replay=True)

    def _begun(self, call: _Call, mine: Mine, presence: Presence | None) -> ToolRun:
        if mine.is_in_doubt:
            known = self._decide(call, mine)
            if known is not None:
                return self._record(call, mine, known.output)
        sys.audit(BEFORE_EFFECT, mine.key)
        began = self._clock.monotonic()
        output = self._effect(call, mine, presence)
        sys.audit(AFTER_EFFECT, mine.key)
        try:
            return self._record(call, mine, output, self._clock.monotonic() - began)
        finally:
            self._usage.miss()

    def _decide(self, call: _Call, mine: Mine) -> Happened | None:
        """Do in doubt what the caller wants. Raises InDoubt, and then the call is in doubt as before."""
        try:
            with self._claims.executing(mine):
                return decision(call.in_doubt, call.key)
        except BaseException:
            self._doubt(mine)
            raise

    def _effect(self, call: _Call, mine: Mine, presence: Presence | None) -> Any:
        """Run the tool, if the claim and the lease may still be trusted; after an exception the key is not stuck."""
        try:
            self._claims.check(mine)
            if call.lease is not None:
                self._leases.check(call.lease)
        except BaseException:
            self._leave(mine)
            raise
        try:
            with self._claims.executing(mine):
                return call.tool(presence)
        except (ToolNotStarted, InvalidRequest):
            self._leave(mine)
            raise
        except Exception as error:
            self._doubt(mine) if isinstance(error, OutputTooLarge) else self._abandon(mine)
            raise
        except BaseException:
            self._doubt(mine)
            raise

    def _record(self, call: _Call, mine: Mine, output: Any, duration_us: int = 0) -> ToolRun:
        """Record the outcome, or what follows from its not being one; return it as later callers will get it."""
        if isinstance(output, CommandOutput) and output.has_failed and not call.keeps_failures:
            if output.has_timed_out or output.signal is not None:
                self._doubt(mine)
            else:
                self._abandon(mine)
            return ToolRun(output, is_replay=False)
        try:
            content, returned = self._outcomes.encoded(output, duration_us)
            failed = isinstance(output, CommandOutput) and output.has_failed
            guard = self._guard(call.lease)
            self._claims.finish(mine, content, ttl_s=self._ttl_s, has_failed=failed, guard=guard)
        except ExecutionLost:
            other = self._claims.ended(call.key, call.hashed, wait_s=call.wait_s)
            if other is None:
                raise
            return self._replay(other.result)
        except BaseException:
            self._doubt(mine)
            raise
        return ToolRun(returned, is_replay=False)

    def _guard(self, lease: Lease | None) -> Guard | None:
        """Return what refuses to write when the lease is not held, in the transaction that would."""
        if lease is None:
            return None
        return lambda transaction: require(transaction, lease, lease.task_id, self._clock)

    def _pending(self) -> Iterator[tuple[str, StoredKey]]:
        for status in (KeyStatus.IN_DOUBT, KeyStatus.EXECUTING):
            yield from ((row.key.partition("/")[2], row) for row in self._rows(status))

    def _rows(self, status: KeyStatus) -> Iterator[StoredKey]:
        after = ""
        while page := self._store.keys(self._scope, status, after=after, limit=_PAGE_ROWS):
            yield from page
            after = page[-1].key

    def _referred(self) -> set[str]:
        """Return the hashes of all outputs that an outcome refers to."""
        rows = (row for status in (KeyStatus.DONE, KeyStatus.FAILED) for row in self._rows(status))
        return {digest for row in rows for digest in references(row.result or b"")}

    def _doubted(self, key: str) -> Mine:
        """Claim a call that is in doubt, for a person. Raises RequestConflict for any other."""
        check_key(key)
        row = self._store.key(f"{self._scope}/{key}")
        if row is not None and row.result is None:
            found = self._claims.begin(key, row.request_hash)
            if isinstance(found, Mine) and found.is_in_doubt:
                return found
            if isinstance(found, Mine):
                self._abandon(found)
        state = "no such call" if row is None else f"it is {row.status.value}"
        message = f"Expected the call with the key {key!r} to be in doubt but {state}; nothing was changed."
        raise RequestConflict(message)

    def _leave(self, mine: Mine) -> None:
        """End a claim under which nothing was done: in doubt if it was so before, else free."""
        if mine.is_in_doubt:
            self._doubt(mine)
        else:
            self._abandon(mine)

    def _doubt(self, mine: Mine) -> None:
        """Leave the call in doubt; if the database refuses, it is so when the claim ends by itself."""
        with contextlib.suppress(RecoveryError):
            self._claims.doubt(mine)

    def _abandon(self, mine: Mine) -> None:
        """Give the key to the next caller; if the database refuses, the call is in doubt when the claim ends."""
        with contextlib.suppress(RecoveryError):
            self._claims.abandon(mine)
