"""The receiver: an ASGI application that answers a delivery once it is durable.

``POST /hooks/SOURCE`` takes a delivery of a configured source; ``GET /status`` shows the state of
the application. The answers to a sender:

    202  it is in the inbox, on disk        200  it was there already (sent again, or replayed)
    202  with ``"ignored"``: no handler needs this kind of event, and it is not kept
    400  the body is not that of this source       401  the signature, its time or the id is wrong
    404  405  no such source, no such method       408  the body did not come in time
    413  the body is too large                     503  the store cannot take it now: send it again

Deliveries that arrive at the same time share a commit: one thread writes, and takes all that have
come while it wrote the batch before. No delivery waits for company.

Starlette's Request and Response cost 6 of the 125 us of processor time of a delivery. Its router
would cost 40 us more, and its application 70, so neither is used for these two routes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable_agents.clock import Clock, SystemClock
from durable_agents.errors import InvalidDelivery, InvalidSetting, InvalidSignature, RecoveryError
from durable_agents.extras import optional_import
from durable_agents.store.rows import StoredDelivery
from durable_agents.webhooks import events

with optional_import("server"):
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.types import Receive, Scope, Send

    from durable_agents.webhooks.inbox import Inbox
    from durable_agents.webhooks.signatures import SignatureScheme

BODY_BYTES_MAX: Final = 1024 * 1024
READ_TIMEOUT_S: Final = 10.0
_BATCH_MAX: Final = 200
_WARNED_MAX: Final = 1000
_PREFIX: Final = "/hooks/"
_CLOSE: Final = {"connection": "close"}
"""With an answer before the end of the body: the rest of it is not read."""

_RETRY: Final = {"retry-after": "1"}
_log: Final = logging.getLogger(__name__)
_encode: Final = msgspec.json.Encoder().encode


class Receiver:
    """The ASGI application. Belongs to one event loop.

    ``schemes`` maps each source to its signatures; ``status`` returns what ``/status`` shows;
    ``on_accepted`` is called after deliveries became durable: the moment to handle them. Raises
    InvalidSetting.
    """

    def __init__(
        self,
        inbox: Inbox,
        schemes: Mapping[str, SignatureScheme],
        *,
        clock: Clock | None = None,
        status: Callable[[], Mapping[str, object]] = dict,
        on_accepted: Callable[[], None] = lambda: None,
        body_bytes_max: int = BODY_BYTES_MAX,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        """Check the settings."""
        if not schemes or body_bytes_max < 1 or read_timeout_s <= 0:
            message = (
                "A receiver must have one source or more and bounds above 0; got sources "
                f"{', '.join(schemes) or 'none'}, body_bytes_max={body_bytes_max!r}, "
                f"read_timeout_s={read_timeout_s!r}. Correct these."
            )
            raise InvalidSetting(message)
        self._schemes = dict(schemes)
        self._clock: Clock = SystemClock() if clock is None else clock
        self._status = status
        self._body_bytes_max = body_bytes_max
        self._read_timeout_s = read_timeout_s
        self._writer = _Writer(inbox, on_accepted)
        self._warned: set[tuple[str, str]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or follow the lifespan of the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            try:
                response = await self._respond(Request(scope, receive))
            except HTTPException as refusal:
                response = _json(refusal.status_code, {"error": refusal.detail}, refusal.headers)
            await response(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._writer.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _respond(self, request: Request) -> Response:
        path, method = request.scope["path"], request.method
        if path == "/status":
            if method not in {"GET", "HEAD"}:
                raise HTTPException(405, f"/status must be read with GET; got {method}. Ask with GET.")
            try:
                return _json(200, await asyncio.to_thread(self._status))
            except RecoveryError as error:
                _log.warning("the status could not be read: %s", error)
                raise HTTPException(503, "The status could not be read; ask again.", _RETRY) from error
        source = path.removeprefix(_PREFIX)
        if not path.startswith(_PREFIX) or source not in self._schemes:
            text = f"The path must be /status, or {_PREFIX} and a known source; got {path!r:.100}. Correct the address."
            raise HTTPException(404, text)
        if method != "POST":
            raise HTTPException(405, f"A delivery must be sent with POST; got {method}. Send it with POST.")
        return await self._take(source, request)

    async def _take(self, source: str, request: Request) -> Response:
        # A dict: a look-up in Starlette's Headers decodes and compares one name after the other.
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}
        delivery = self._checked(source, headers, await self._body(headers, request))
        if delivery is None:
            return _json(202, {"ignored": "no handler needs this kind of event"})
        try:
            is_new = await self._writer.write(delivery)
        except RecoveryError as error:
            _log.warning("a delivery from %s could not be kept: %s", source, error)
            raise HTTPException(503, "The delivery could not be kept; send it again.", _RETRY) from error
        return _json(202, {"accepted": True}) if is_new else _json(200, {"accepted": False, "known": True})

    async def _body(self, headers: Mapping[str, str], request: Request) -> bytes:
        """Return the whole body, within its bounds of size and time."""
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._body_bytes_max:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._read_timeout_s):
                async for piece in request.stream():
                    body += piece
                    if len(body) > self._body_bytes_max:
                        raise self._too_large()
        except ClientDisconnect as error:
            text = "The body must be whole; got the end of the connection first. Send it again."
            raise HTTPException(400, text) from error
        except TimeoutError as error:
            text = f"The body must be whole within {self._read_timeout_s:g} s; got a part of it. Send it faster."
            raise HTTPException(408, text, _CLOSE) from error
        return bytes(body)

    def _too_large(self) -> HTTPException:
        text = f"The body must have {self._body_bytes_max} bytes or less; got more. Send less."
        return HTTPException(413, text, _CLOSE)

    def _checked(self, source: str, headers: Mapping[str, str], body: bytes) -> StoredDelivery | None:
        """Return the verified delivery; None for an event that no handler needs."""
        now = self._clock.now()
        try:
            sender = self._schemes[source].verify(headers, body, now)
            text = body.decode()
            event = events.parse(source, sender.event, text)
        except InvalidSignature as error:
            raise HTTPException(401, str(error)) from error
        except UnicodeDecodeError as error:
            raise HTTPException(400, f"The body must be JSON in UTF-8, not compressed; got {error}.") from error
        except InvalidDelivery as error:
            raise HTTPException(400, str(error)) from error
        if event is None:
            self._warn(source, sender.event)
            return None
        return StoredDelivery(0, source, sender.identity, sender.delivery_id, sender.event, text, now)

    def _warn(self, source: str, event: str) -> None:
        """Warn once for each kind of event that no handler needs."""
        if (source, event) not in self._warned and len(self._warned) < _WARNED_MAX:
            self._warned.add((source, event))
            _log.warning("deliveries of %r from %s are ignored: no handler needs them", event, source)


def _json(status: int, content: object, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_encode(content), status, headers, media_type="application/json")


class _Writer:
    """Puts deliveries into the inbox from one thread, with one commit for all that wait."""

    def __init__(self, inbox: Inbox, on_accepted: Callable[[], None]) -> None:
        self._inbox = inbox
        self._on_accepted = on_accepted
        self._waiting: list[tuple[StoredDelivery, asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="inbox")

    async def write(self, delivery: StoredDelivery) -> bool:
        """Return whether the delivery is new, once it is durable. Raises any StoreError."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._waiting.append((delivery, future))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._write_all())
        return await future

    async def close(self) -> None:
        """Wait for the batch under way and end the thread."""
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
            except Exception as error:  # noqa: BLE001 - any error is the answer to each sender of the batch
                self._answer(batch, [error] * len(batch))
            else:
                self._answer(batch, are_new)
                self._on_accepted()

    @staticmethod
    def _answer(batch: list[tuple[StoredDelivery, asyncio.Future[bool]]], outcomes: list[Any]) -> None:
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():  # the sender has closed its connection
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
