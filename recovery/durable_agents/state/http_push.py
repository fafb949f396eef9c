"""Push over HTTP: one POST per entry of the sync queue, with its idempotency key, and an answer that is believed.

The header is that of the IETF draft "The Idempotency-Key HTTP Header Field". An answer counts as an
acknowledgement only if it is a success *and* repeats the key in that header: whatever stands
between the two (a proxy that answers for a server that is down, a captive portal) can say
"accepted" and knows nothing of the entry. That is the end-to-end argument (Saltzer, Reed, Clark,
1984); a receiver that cannot repeat the key is pushed to with ``requires_echo=False``.
"""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from durable_agents.clock import Microseconds
from durable_agents.errors import InvalidSetting, PushFailed
from durable_agents.pipeline.tracker import Deadline

if TYPE_CHECKING:
    from collections.abc import Mapping

    from durable_agents.state.sync_queue import SyncEntry

KEY_HEADER: Final = "Idempotency-Key"
PUSH_TIMEOUT_S: Final = 10.0

_ANSWER_BYTES_MAX: Final = 64 * 1024
_SUCCESS: Final = range(200, 300)


class Payload(msgspec.Struct, frozen=True):
    """The body of a push, as JSON."""

    agent_id: str
    queued_at: Microseconds
    dispatches: tuple[dict[str, object], ...]


_encode: Final = msgspec.json.Encoder().encode


class HttpPush:
    """Pushes entries to ``url``, each on a connection of its own. Redirects are not followed. Raises InvalidSetting.

    ``timeout_s`` bounds a push from connecting to the last byte of its answer (looking up the
    host's name aside); ``headers`` are sent with every push.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = PUSH_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        requires_echo: bool = True,
    ) -> None:
        """Check the address; nothing is connected yet."""
        parts = urlsplit(url)
        try:
            is_port = parts.port is None or parts.port > 0
        except ValueError:
            is_port = False
        is_plain = url.isascii() and url.isprintable() and " " not in url
        is_address = is_port and is_plain and parts.scheme in {"http", "https"} and parts.hostname
        if not is_address or not 0 < timeout_s <= 3600:
            message = (
                f"Expected an http or https address and a timeout_s up to 3600 but got {url!r} and {timeout_s!r}; "
                "give one such as http://127.0.0.1:8000/sync."
            )
            raise InvalidSetting(message)
        _check_headers(headers or {})
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        self._connection = kinds[parts.scheme]
        self._place = parts.netloc.rpartition("@")[2]
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._timeout_s = timeout_s
        self._headers = dict(headers or {})
        self._requires_echo = requires_echo

    def __call__(self, entry: SyncEntry) -> None:
        """Push one entry; its receiver has it when this returns. Raises PushFailed."""
        body = _encode(Payload(entry.agent_id, entry.queued_at, entry.dispatches))
        headers = {**self._headers, "Content-Type": "application/json", KEY_HEADER: entry.key}
        connection = self._connection(self._place, timeout=self._timeout_s)
        deadline = Deadline(connection, self._timeout_s)
        try:
            with deadline:
                connection.connect()
                deadline.check()  # it had nothing to shut down while there was no connection
                connection.request("POST", self._path, body, headers)
                with connection.getresponse() as answer:
                    answer.read(_ANSWER_BYTES_MAX)
            deadline.check()
            self._check(answer, entry.key)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a chunk of negative size
            came = f"{type(error).__name__}: {error}"
            if deadline.is_over or isinstance(error, TimeoutError):
                came = f"it was not done within {self._timeout_s:g} s"
            message = f"Expected {self._place} to take entry {entry.key} but {came}; it is tried again."
            raise PushFailed(message) from error
        finally:
            connection.close()

    def _check(self, answer: http.client.HTTPResponse, key: str) -> None:
        if answer.status not in _SUCCESS:
            message = f"Expected {self._place} to take entry {key} but it answered {answer.status}; it is tried again."
            raise PushFailed(message)
        if self._requires_echo and answer.headers.get(KEY_HEADER) != key:
            message = (
                f"Expected the answer of {self._place} to repeat the key {key} in {KEY_HEADER} but it has "
                f"{answer.headers.get(KEY_HEADER)!r}; it is tried again, or set requires_echo to False."
            )
            raise PushFailed(message)


def _check_headers(headers: Mapping[str, str]) -> None:
    """Raise InvalidSetting for headers that no request can have; what is in them is not told, it may be a secret."""
    for name, value in headers.items():
        is_name = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        if not is_name or not value.isascii() or not value.isprintable():
            message = f"Expected headers of printable ASCII but {name!r:.80} is none or has others; correct it."
            raise InvalidSetting(message)
