"""Signatures: proof of a delivery's sender, and of whether it is a replay.

Three schemes: Standard Webhooks (standardwebhooks.com), which signs id, time and body, and the two
that sign the body alone, GitHub's ``X-Hub-Signature-256`` and Gitea's ``X-Gitea-Signature``, both
HMAC-SHA256 in hexadecimal. Where the id is signed, it identifies a delivery. Where it is not,
any reader of a delivery can send it again under another id, so the hash of the body
identifies it.

A delivery that is signed with its time is refused when that is further from the receiver's clock
than ``TOLERANCE_S``, in either direction. Comparisons take constant time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from durable_agents.errors import InvalidSetting, InvalidSignature, StaleDelivery
from durable_agents.extras import optional_import

if TYPE_CHECKING:
    from collections.abc import Mapping

    from durable_agents.clock import Microseconds

TOLERANCE_S: Final = 300.0
"""The largest distance of a signed time from our clock, as Standard Webhooks recommends."""

ID_CHARACTERS_MAX: Final = 256
SECRET_BYTES_MIN: Final = 16
_SIGNATURE: Final = "webhook-signature"


class Sender(msgspec.Struct, frozen=True):
    """A verified delivery: its id, the identity by which it is accepted once, its kind of event.

    ``event`` is as the sender's header has it, empty without one.
    """

    delivery_id: str
    identity: str
    event: str


class SignatureScheme(Protocol):
    """A way to sign deliveries. ``headers`` have names in small letters."""

    def verify(self, headers: Mapping[str, str], body: bytes, now: Microseconds) -> Sender:
        """Return the verified sender. Raises InvalidSignature or StaleDelivery."""
        ...


class StandardWebhooks:
    """Standard Webhooks, version 1: HMAC-SHA256 over id, time and body, by its own library.

    Several signatures are allowed, for the time in which secrets are exchanged; one must match.
    ``secret`` is base64, with or without ``whsec_``. Raises InvalidSetting, and MissingPackage
    without the extra ``server``.
    """

    def __init__(self, secret: str, *, tolerance_s: float = TOLERANCE_S) -> None:
        """Check the secret; no message contains any of it."""
        with optional_import("server"):
            from standardwebhooks import Webhook

        if not (math.isfinite(tolerance_s) and tolerance_s > 0):
            message = f"tolerance_s must be finite and more than 0 s; got {tolerance_s!r}. Five minutes are usual."
            raise InvalidSetting(message)
        key = _decoded(secret.strip().removeprefix("whsec_"))
        _check_secret(key)
        self._webhook = Webhook(key)
        self._tolerance = round(tolerance_s * 1_000_000)

    def verify(self, headers: Mapping[str, str], body: bytes, now: Microseconds) -> Sender:
        """Compare the signatures, then the time."""
        delivery_id = _id(headers, "webhook-id")
        sent_at = _moment(headers.get("webhook-timestamp", ""))
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            message = "The body must be UTF-8, which Standard Webhooks signs; got other bytes. Send JSON."
            raise InvalidSignature(message) from error
        expected = self._webhook.sign(delivery_id, sent_at, text)
        given = headers.get(_SIGNATURE, "").split(" ")
        if not any(_equal(each, expected) for each in given):
            raise _mismatch(_SIGNATURE)
        distance = abs(round(sent_at.timestamp() * 1_000_000) - now)
        if distance > self._tolerance:
            message = (
                f"The delivery must be signed within {self._tolerance / 1_000_000:g} s of now; got a time "
                f"{distance / 1_000_000:.0f} s away. Send it with its own time, and set the clocks."
            )
            raise StaleDelivery(message)
        return Sender(delivery_id, f"id:{delivery_id}", headers.get("webhook-event", ""))


class BodyHmac:
    """HMAC-SHA256 of the body, in hexadecimal, in one header, as GitHub and Gitea send it.

    ``header`` is its name in small letters; ``prefix`` stands before the digest. Id and kind of
    event are in ``X-FORGE-Delivery`` and ``X-FORGE-Event``. Raises InvalidSetting.
    """

    def __init__(self, secret: str, *, forge: str, header: str, prefix: str = "") -> None:
        """Check the secret; no message contains any of it."""
        self._secret = secret.encode()
        _check_secret(self._secret)
        self._header = header
        self._prefix = prefix
        self._id_header = f"x-{forge}-delivery"
        self._event_header = f"x-{forge}-event"

    def verify(self, headers: Mapping[str, str], body: bytes, now: Microseconds) -> Sender:  # noqa: ARG002 - no time is signed here
        """Compare the signature."""
        expected = self._prefix + hmac.new(self._secret, body, hashlib.sha256).hexdigest()
        if not _equal(headers.get(self._header, ""), expected):
            raise _mismatch(self._header)
        identity = f"body:{hashlib.sha256(body).hexdigest()}"
        return Sender(_id(headers, self._id_header), identity, headers.get(self._event_header, ""))


def github(secret: str) -> BodyHmac:
    """Return GitHub's scheme, with ``X-Hub-Signature-256: sha256=...``."""
    return BodyHmac(secret, forge="github", header="x-hub-signature-256", prefix="sha256=")


def gitea(secret: str) -> BodyHmac:
    """Return Gitea's scheme, with ``X-Gitea-Signature: ...``."""
    return BodyHmac(secret, forge="gitea", header="x-gitea-signature")


def _decoded(text: str) -> bytes:
    """Decode base64 strictly, padded or not: a skipped character would make another secret."""
    bare = text.rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        message = "The secret must be base64, with or without 'whsec_'; got other text. Copy it whole, as it was given."
        raise InvalidSetting(message) from error


def _check_secret(key: bytes) -> None:
    if len(key) < SECRET_BYTES_MIN:
        message = f"The secret must have {SECRET_BYTES_MIN} bytes or more; got {len(key)}. Draw a longer one."
        raise InvalidSetting(message)


def _id(headers: Mapping[str, str], name: str) -> str:
    delivery_id = headers.get(name, "")
    if not delivery_id or len(delivery_id) > ID_CHARACTERS_MAX or not delivery_id.isprintable():
        message = (
            f"The header {name} must be the delivery's id, in 1 to {ID_CHARACTERS_MAX} printable characters; got "
            f"{delivery_id!r:.80}. Send one."
        )
        raise InvalidSignature(message)
    return delivery_id


def _moment(text: str) -> datetime:
    try:
        return datetime.fromtimestamp(int(text), tz=UTC)
    except (ValueError, OverflowError, OSError) as error:
        message = f"The header webhook-timestamp must be seconds since 1970; got {text!r:.80}. Sign with the time."
        raise InvalidSignature(message) from error


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _mismatch(header: str) -> InvalidSignature:
    message = f"The header {header} must match the body; got another signature, or none. Sign with the agreed secret."
    return InvalidSignature(message)
