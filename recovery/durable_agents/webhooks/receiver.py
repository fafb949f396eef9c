"""The receiver: an ASGI application that takes signed deliveries and answers when they are durable, and not before.

``POST /hooks/SOURCE`` takes a delivery of one of the configured sources; ``GET /status`` says how
things are. What a sender is told:

    202  it is in the inbox, on disk        200  it was there already (sent again, or replayed)
    202  with ``"ignored"``: it is of a kind that nobody needs, and is not kept
    400  the body is not what that source sends    401  the signature, its time or the id is not right
    404  405  no such source, no such method       408  the body did not come in time
    413  the body is too large                     503  the store cannot take it now: send it again

Deliveries that arrive at the same time share a commit: one thread writes, and takes with it
whatever has come while it was writing before. Nobody waits for company.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable_agents.clock import Clock, SystemClock
from durable_agents.errors import InvalidDelivery, InvalidSetting, InvalidSignature, RecoveryError
from durable_agents.store.rows import StoredDelivery
from durable_agents.webhooks import events

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping

    from durable_agents.webhooks.inbox import Inbox
    from durable_agents.webhooks.signatures import SignatureScheme

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_BYTES_MAX: Final = 1024 * 1024
READ_TIMEOUT_S: Final = 10.0
_BATCH_MAX: Final = 200
_WARNED_MAX: Final = 1000
_PREFIX: Final = "/hooks/"
_log: Final = logging.getLogger("durable_agents.webhooks.receiver")
_encode: Final = msgspec.json.Encoder().encode


class _Refusal(Exception):  # noqa: N818 - an answer to the sender
    """The request is answered with this status and sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Receiver:
    """The application. ``schemes`` says, by source, how its deliveries are signed; ``status`` what ``/status`` shows.

    Raises InvalidSetting. Belongs to one event loop.
    """

    def __init__(
        self,
        inbox: Inbox,
        schemes: Mapping[str, SignatureScheme],
        *,
        clock: Clock | None = None,
        status: Callable[[], Mapping[str, object]] | None = None,
        on_accepted: Callable[[], None] | None = None,
        body_bytes_max: int = BODY_BYTES_MAX,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        """``on_accepted`` is called after deliveries became durable: the moment to handle them."""
        if not schemes or body_bytes_max < 1 or read_timeout_s <= 0:
            message = "Expected one source or more and bounds above 0; a receiver without either takes nothing."
            raise InvalidSetting(message)
        self._schemes = dict(schemes)
        self._clock: Clock = SystemClock() if clock is None else clock
        self._status = status
        self._body_bytes_max = body_bytes_max
        self._read_timeout_s = read_timeout_s
        self._writer = _Writer(inbox, on_accepted)
        self._warned: set[tuple[str, str]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or go through the life of the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._writer.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            status, content = await self._respond(scope, receive)
        except _Refusal as refusal:
            status, content = refusal.status, {"error": str(refusal)}
        body = _encode(content)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(b"connection", b"close")] if status in {408, 413} else []  # the rest of the body is not read
        headers += [(b"retry-after", b"1")] if status == 503 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _respond(self, scope: Scope, receive: Receive) -> tuple[int, object]:
        path, method = scope["path"], scope["method"]
        if path == "/status":
            if method not in {"GET", "HEAD"}:
                raise _Refusal(405, f"Expected GET /status but got {method}; ask with GET.")
            try:
                return 200, await asyncio.to_thread(self._describe)
            except RecoveryError as error:
                _log.warning("the status could not be read: %s", error)
                raise _Refusal(503, "The status could not be read; ask again.") from error
        source = path.removeprefix(_PREFIX)
        if not path.startswith(_PREFIX) or source not in self._schemes:
            raise _Refusal(404, f"Expected /status or a source under {_PREFIX} but there is no {path!r:.100}.")
        if method != "POST":
            raise _Refusal(405, f"Expected a delivery by POST but got {method}; send it with POST.")
        return await self._take(source, scope, receive)

    async def _take(self, source: str, scope: Scope, receive: Receive) -> tuple[int, object]:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        body = await self._body(headers, receive)
        delivery = self._checked(source, headers, body)
        if delivery is None:
            return 202, {"ignored": "no handler needs this kind of event"}
        try:
            is_new = await self._writer.write(delivery)
        except RecoveryError as error:
            _log.warning("a delivery from %s could not be kept: %s", source, error)
            raise _Refusal(503, "The delivery could not be kept; send it again.") from error
        return (202, {"accepted": True}) if is_new else (200, {"accepted": False, "known": True})

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """Return the whole body, within its bounds of size and time."""
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._body_bytes_max:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._read_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Refusal(400, "The sender hung up before its body was whole.")
                    body += message.get("body", b"")
                    if len(body) > self._body_bytes_max:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            text = f"Expected the whole body within {self._read_timeout_s:g} s; send it faster."
            raise _Refusal(408, text) from error

    def _checked(self, source: str, headers: Mapping[str, str], body: bytes) -> StoredDelivery | None:
        """Return the delivery if its signature and body are right; None where it is of no use to anybody."""
        now = self._clock.now()
        try:
            sender = self._schemes[source].verify(headers, body, now)
            text = body.decode()
            event = events.parse(source, sender.event, text)
        except InvalidSignature as error:
            raise _Refusal(401, str(error)) from error
        except UnicodeDecodeError as error:
            text = f"Expected a body of JSON in UTF-8, not compressed, but {error}; send it so."
            raise _Refusal(400, text) from error
        except InvalidDelivery as error:
            raise _Refusal(400, str(error)) from error
        if event is None:
            self._warn(source, sender.event)
            return None
        return StoredDelivery(0, source, sender.identity, sender.delivery_id, sender.event, text, now)

    def _too_large(self) -> _Refusal:
        return _Refusal(413, f"Expected up to {self._body_bytes_max} bytes of body; send less.")

    def _warn(self, source: str, event: str) -> None:
        """Say once of each kind of event that nobody needs it."""
        if (source, event) not in self._warned and len(self._warned) < _WARNED_MAX:
            self._warned.add((source, event))
            _log.warning("deliveries of %r from %s are ignored: no handler needs them", event, source)

    def _describe(self) -> Mapping[str, object]:
        return self._status() if self._status is not None else {}


class _Writer:
    """Puts deliveries into the inbox from one thread, with one commit for all that wait."""

    def __init__(self, inbox: Inbox, on_accepted: Callable[[], None] | None) -> None:
        self._inbox = inbox
        self._on_accepted = on_accepted
        self._waiting: list[tuple[StoredDelivery, asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="inbox")

    async def write(self, delivery: StoredDelivery) -> bool:
        """Return whether the delivery is new, once it is durable. Raises what the store raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._waiting.append((delivery, future))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._write_all())
        return await future

    async def close(self) -> None:
        """Wait for what is under way and end the thread."""
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[:_BATCH_MAX], self._waiting[_BATCH_MAX:]
            deliveries = [delivery for delivery, _ in batch]
            try:
                are_new = await loop.run_in_executor(self._thread, self._inbox.accept, deliveries)
            except Exception as error:  # noqa: BLE001 - whatever it is, each sender has to be told
                self._tell(batch, [error] * len(batch))
            else:
                self._tell(batch, are_new)
                if self._on_accepted is not None:
                    self._on_accepted()

    @staticmethod
    def _tell(batch: list[tuple[StoredDelivery, asyncio.Future[bool]]], outcomes: list[Any]) -> None:
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():  # its sender hung up
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
