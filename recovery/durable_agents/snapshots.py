"""Snapshots as bytes and back, unchanged.

One rule: a value is accepted if decoding its encoding gives an equal value. Without a list of types
that refuses every value that an encoder changes silently: NaN into null, a tuple into a list, a
date into a string, a key 1 into "1". With msgspec, both directions and the comparison cost less
than ``json.dumps`` alone.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Final

import msgspec

from durable_agents.errors import CorruptCheckpoint, InvalidSnapshot, SnapshotTooLarge

SNAPSHOT_BYTES_MAX: Final = 64 * 1024 * 1024
"""The largest snapshot that a manager accepts by default."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_sha256 = hashlib.sha256


def encoded(snapshot: object, bytes_max: int | None) -> tuple[bytes, str, Any]:
    """Return the snapshot's JSON, its SHA-256 in hexadecimal, and a copy that no caller shares.

    Raises InvalidSnapshot, with the place of the offending value, and SnapshotTooLarge.
    """
    try:
        content = _encode(snapshot)
        copy = _decode(content)
        is_faithful = bool(copy == snapshot)
    except RecursionError:
        message = "A snapshot must be JSON; got one in which it contains itself, or is nested too deeply. Make it flat."
        raise InvalidSnapshot(message) from None
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidSnapshot(_complaint(snapshot)) from error
    if not is_faithful:
        raise InvalidSnapshot(_complaint(snapshot))
    if bytes_max is not None and len(content) > bytes_max:
        message = (
            f"A snapshot must have at most {bytes_max} bytes of JSON; got {len(content)}. "
            "Keep large content in files and refer to them, or raise snapshot_bytes_max."
        )
        raise SnapshotTooLarge(message)
    return content, _sha256(content).hexdigest(), copy


def decoded(content: bytes, content_hash: str, task_id: str, sequence_number: int) -> Any:
    """Return the decoded snapshot. Raises CorruptCheckpoint unless the bytes match the hash."""
    if _sha256(content).hexdigest() != content_hash:
        message = (
            f"Checkpoint {sequence_number} of task {task_id!r} must have the SHA-256 {content_hash}; got "
            f"{_sha256(content).hexdigest()}. Go back to an older checkpoint."
        )
        raise CorruptCheckpoint(message)
    return _decode(content)


def _complaint(snapshot: object) -> str:
    place, what = _offence(snapshot, "snapshot") or ("snapshot", f"a {type(snapshot).__name__}")
    return (
        f"A snapshot must come back from JSON unchanged; got one in which {place} is {what}. Replace it by plain JSON."
    )


def _offence(value: object, place: str) -> tuple[str, str] | None:
    """Return the place and a description of the first value that JSON cannot hold."""
    if isinstance(value, dict):
        for key, item in value.items():
            inner = f"{place}[{key!r}]"
            if not isinstance(key, str):
                return inner, f"under a key of type {type(key).__name__}"
            if found := _text_offence(key, inner) or _offence(item, inner):
                return found
        return None
    if isinstance(value, list):
        found_in = (_offence(item, f"{place}[{index}]") for index, item in enumerate(value))
        return next((found for found in found_in if found), None)
    return _scalar_offence(value, place)


def _scalar_offence(value: object, place: str) -> tuple[str, str] | None:
    if isinstance(value, str):
        return _text_offence(value, place)
    if isinstance(value, float) and not math.isfinite(value):
        return place, repr(value)
    if value is None or isinstance(value, bool | int | float):
        return None
    return place, f"a {type(value).__name__}"


def _text_offence(text: str, place: str) -> tuple[str, str] | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return place, "text with lone surrogates"
    return None
