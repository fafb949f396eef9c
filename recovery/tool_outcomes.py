"""Outcomes of tools as bytes and back, such that what is replayed is what was there the first time.

Bytes come back as bytes, a JSON value as what its encoding decodes to (the first caller gets that, too), and a
command's output with the exit code and the signal that the kernel gave. What is large is kept as a file
(``recovery.outputs``), each of a command's two streams by itself; the rest is one msgpack value, which holds any bytes.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from recovery.commands import CommandOutput
from recovery.errors import OutputTooLarge
from recovery.outputs import OutputReference, Outputs
from recovery.requests import decoded_result, encoded_result

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
