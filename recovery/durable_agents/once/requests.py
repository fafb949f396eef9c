"""Canonical requests: two requests have the same hash exactly if they are the same JSON value.

The canonical form is JSON in UTF-8, with sorted keys and no spaces; a request is identified by its
SHA-256. Some values have no such form, and encoders silently write them as something else, so that
two requests would share a key: NaN and infinities (as null), bytes (as base64), numbers as keys of
an object (as text). They are refused. A tuple is the same request as a list.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Final

import msgspec

from durable_agents.bounds import is_text
from durable_agents.errors import InvalidKey, InvalidRequest, InvalidResult

KEY_BYTES_MAX: Final = 1024
"""The longest key, in bytes of UTF-8. Hash longer ones."""

_encode: Final = msgspec.json.Encoder(order="sorted").encode
_encode_result: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode


def canonical(request: object) -> bytes:
    """Return the canonical form of a request. Raises InvalidRequest if it has none.

    >>> canonical({"b": (1, 2), "a": None})
    b'{"a":null,"b":[1,2]}'
    """
    try:
        encoded = _encode(request)
        if _decode(encoded) != request:
            encoded = _encode(_plain(request, "The request"))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, InvalidRequest):
            raise
        message = f"A request must consist of JSON values; got '{error}'. Give it as JSON."
        raise InvalidRequest(message) from error
    return encoded


def request_hash(request: object) -> str:
    """Return the SHA-256 of the canonical form, in hexadecimal. Raises InvalidRequest."""
    return hashlib.sha256(canonical(request)).hexdigest()


def encoded_result(result: object, bytes_max: int | None = None) -> bytes:
    """Return a result as JSON.

    Raises InvalidResult unless it comes back equal and within the bound. That refuses values that
    an encoder changes: a tuple, a date, NaN, bytes.
    """
    try:
        encoded = _encode_result(result)
        is_faithful = bool(_decode(encoded) == result)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        message = f"A result must consist of JSON values; got '{error}'. Return JSON."
        raise InvalidResult(message) from error
    if not is_faithful:
        fix = "Return text, finite numbers, lists, and objects with text for keys."
        message = f"A result must come back from JSON unchanged; got {result!r:.200}. {fix}"
        raise InvalidResult(message)
    if bytes_max is not None and len(encoded) > bytes_max:
        message = f"A result must have at most {bytes_max} bytes of JSON; got {len(encoded)}. Store less."
        raise InvalidResult(message)
    return encoded


def decoded_result(encoded: bytes) -> Any:
    """Return the result that was encoded."""
    return _decode(encoded)


def check_key(key: str) -> None:
    """Raise InvalidKey unless this is text of 1 to KEY_BYTES_MAX bytes.

    A text column must keep it unchanged.
    """
    if not is_text(key) or len(key.encode()) > KEY_BYTES_MAX:
        shown = repr(key) if len(repr(key)) <= 80 else f"a {type(key).__name__} of {len(key)}"
        rule = f"1 to {KEY_BYTES_MAX} bytes of UTF-8 without NUL"
        message = f"A key must be {rule}; got {shown}. For a longer one, use its request_hash()."
        raise InvalidKey(message)


def _plain(value: object, where: str) -> object:
    """Return the value with tuples as lists.

    Raises InvalidRequest with the place of an invalid value.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: _plain(item, f"{where}[{name!r}]") for name, item in value.items()}
    message = (
        f"{where} must be a JSON value; got {value!r:.80} of type {type(value).__name__}. Two different requests "
        "might encode the same: give text, a finite number, a list or an object."
    )
    raise InvalidRequest(message)
