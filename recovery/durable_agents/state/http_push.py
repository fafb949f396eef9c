"""Push over HTTP: one POST for each entry of the sync queue, with its idempotency key.

The header is that of the IETF draft "The Idempotency-Key HTTP Header Field". An answer counts as an
acknowledgement only if it is a success *and* repeats the key in that header: a proxy that answers
for a server that is down, or a captive portal, can say "accepted" and knows nothing of the entry.
That is the end-to-end argument (Saltzer, Reed, Clark, 1984). For a receiver that cannot repeat the
key there is ``requires_echo=False``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from durable_agents.clock import Microseconds
from durable_agents.errors import InvalidSetting, PushFailed
from durable_agents.http_exchange import TIMEOUT_S, ExchangeFailed, HttpExchange

if TYPE_CHECKING:
    from collections.abc import Mapping

    from durable_agents.state.sync_queue import SyncEntry

KEY_HEADER: Final = "Idempotency-Key"

_ANSWER_BYTES_MAX: Final = 64 * 1024
_SUCCESS: Final = range(200, 300)
_encode: Final = msgspec.json.Encoder().encode


class Payload(msgspec.Struct, frozen=True):
    """The body of a push, as JSON."""

    agent_id: str
    queued_at: Microseconds
    dispatches: tuple[dict[str, object], ...]


class HttpPush:
    """The push of a ``SyncQueue``: sends entries to ``url``, each on a connection of its own.

    ``timeout_s`` bounds a push from connecting to the last byte of its answer; ``headers`` are sent
    with every push. Redirects are not followed. Raises InvalidSetting, and MissingPackage without
    the extra ``http``.

    >>> push = HttpPush("http://127.0.0.1:8000/sync", headers={"Authorization": "Bearer secret"})

    A sync queue calls it: ``SyncQueue(roots, state, push)``.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        requires_echo: bool = True,
    ) -> None:
        """Check the settings; nothing is connected yet."""
        self._exchange = HttpExchange(url, timeout_s=timeout_s, bytes_max=_ANSWER_BYTES_MAX)
        self._headers = _checked(headers or {})
        self._requires_echo = requires_echo

    def __call__(self, entry: SyncEntry) -> None:
        """Push one entry; its receiver has it when this returns. Raises PushFailed."""
        body = _encode(Payload(entry.agent_id, entry.queued_at, entry.dispatches))
        headers = {**self._headers, "Content-Type": "application/json", KEY_HEADER: entry.key}
        place = self._exchange.place
        try:
            answer = self._exchange.send("POST", self._exchange.url, headers, body)
        except ExchangeFailed as error:
            message = f"{place} must take entry {entry.key}; got {error}. It is tried again."
            raise PushFailed(message) from error
        if answer.status not in _SUCCESS:
            message = f"{place} must take entry {entry.key}; got status {answer.status}. It is tried again."
            raise PushFailed(message)
        echo = answer.headers.get(KEY_HEADER)
        if self._requires_echo and echo != entry.key:
            message = (
                f"The answer of {place} must repeat the key {entry.key} in {KEY_HEADER}; got {echo!r:.200}. It is "
                "tried again; set requires_echo to False if the receiver cannot repeat it."
            )
            raise PushFailed(message)


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    """Return valid headers. Raises InvalidSetting without their values: they may be secrets."""
    for name, value in headers.items():
        is_name = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        if not is_name or not value.isascii() or not value.isprintable():
            message = f"Headers must be of printable ASCII; got {name!r:.80} with other characters. Correct it."
            raise InvalidSetting(message)
    return {name: value.strip() for name, value in headers.items()}
