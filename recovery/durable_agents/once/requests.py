"""Canonical requests: two requests have one hash exactly when they are the same JSON value.

The canonical form is JSON in UTF-8 with the keys of each object in order and no spaces; its
SHA-256, all of it, is what a request is known by. Some values have no such form, and encoders are
known to write them as something else, so that two different requests would share a key: NaN and the
infinities (as null), bytes (as base64 text), numbers as keys of an object (as text). Each of them
is refused here. A tuple is the same request as a list.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Final

import msgspec

from durable_agents.errors import InvalidKey, InvalidRequest, InvalidResult

KEY_BYTES_MAX: Final = 1024
"""The longest key, in bytes of UTF-8. A longer one is hashed by its owner, who knows what it means."""

_encode: Final = msgspec.json.Encoder(order="sorted").encode
_encode_result: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode


def canonical(request: object) -> bytes:
    """Return the canonical form of a request. Raises InvalidRequest for what has none."""
    try:
        encoded = _encode(request)
        if _decode(encoded) != request:
            encoded = _encode(_plain(request, "the request"))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, InvalidRequest):
            raise
        message = f"Expected a request of JSON values but it cannot be encoded ({error}); give it as JSON."
        raise InvalidRequest(message) from error
    return encoded


def request_hash(request: object) -> str:
    """Return the SHA-256 of the canonical form, in hexadecimal. Raises InvalidRequest."""
    return hashlib.sha256(canonical(request)).hexdigest()


def encoded_result(result: object, bytes_max: int | None = None) -> bytes:
    """Return a result as JSON in UTF-8. Raises InvalidResult unless it comes back equal, and for one that is too large.

    That refuses, without a list of types, what an encoder turns into something else: a tuple, a
    date, NaN, bytes.
    """
    try:
        encoded = _encode_result(result)
        is_faithful = bool(_decode(encoded) == result)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        message = f"Expected a result of JSON values but it cannot be encoded ({error}); return JSON."
        raise InvalidResult(message) from error
    if not is_faithful:
        message = (
            f"Expected a result that JSON gives back unchanged but got {result!r:.200}; return text, finite numbers, "
            "lists and objects with text for keys."
        )
        raise InvalidResult(message)
    if bytes_max is not None and len(encoded) > bytes_max:
        message = f"Expected a result of at most {bytes_max} bytes of JSON but it has {len(encoded)}; store less."
        raise InvalidResult(message)
    return encoded


def decoded_result(encoded: bytes) -> Any:
    """Return the result, as the first caller got it too."""
    return _decode(encoded)


def check_key(key: str) -> None:
    """Raise InvalidKey unless this is text of 1 to KEY_BYTES_MAX bytes that a column gives back as it was put in."""
    try:
        size_bytes = len(key.encode()) if isinstance(key, str) else 0
    except UnicodeEncodeError:
        size_bytes = 0
    if not 0 < size_bytes <= KEY_BYTES_MAX or "\0" in key:
        shown = repr(key) if len(repr(key)) <= 80 else f"a {type(key).__name__} of {len(key)}"
        message = (
            f"Expected a key of 1 to {KEY_BYTES_MAX} bytes of UTF-8 without a zero but got {shown}; "
            "for more, use request_hash() of what it stands for."
        )
        raise InvalidKey(message)


def _plain(value: object, where: str) -> object:
    """Return the value with its tuples as lists. Raises InvalidRequest, which says where there is no JSON."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: _plain(item, f"{where}[{name!r}]") for name, item in value.items()}
    message = (
        f"Expected {where} to be a JSON value but got {value!r:.80} of type {type(value).__name__}; "
        "two different requests might come out the same, so give it as text, a finite number, a list or an object."
    )
    raise InvalidRequest(message)
