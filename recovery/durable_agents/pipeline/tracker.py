"""A deadline of one HTTP exchange: from connecting to the last byte, whatever the other side does meanwhile.

A timeout of a socket starts anew with each byte that arrives, so a server that sends one byte a
second could hold its client for ever; here a timer shuts the connection down.

The tracker as the reconciler asks it: which issues are in a state now, whatever became of the
webhooks about them.

``HttpTracker`` asks over HTTP, one request per page, and believes nothing that it has not checked:
an answer has a bound in bytes and in time, a cursor may not come twice, and an issue in another
state than the one asked for is no answer (a server that ignores the filter would otherwise approve
whatever it holds).

The bound in time holds for a page as a whole (``durable_agents.pipeline.tracker``).
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import socket
import threading
from typing import TYPE_CHECKING, Final, NoReturn, Protocol
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from durable_agents.clock import Clock, Microseconds, SystemClock, microseconds
from durable_agents.errors import InvalidSetting, InvalidTrackerAnswer, TrackerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator


class Deadline:
    """Shuts a connection down when its time is over, whatever it waits for then. Use it as a block.

    The thread that reads sees the end of the stream or an error; ``is_over`` tells it why.
    """

    def __init__(self, connection: http.client.HTTPConnection, timeout_s: float) -> None:
        """Prepare; the time runs from the beginning of the block."""
        self._connection = connection
        self._timer = threading.Timer(timeout_s, self._end)
        self._timer.daemon = True
        self.is_over = False

    def __enter__(self) -> None:
        """Begin."""
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        """End in time."""
        self._timer.cancel()

    def check(self) -> None:
        """Raise TimeoutError if the time is over."""
        if self.is_over:
            raise TimeoutError

    def _end(self) -> None:
        self.is_over = True
        if (connected := self._connection.sock) is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                socket.socket.shutdown(connected, socket.SHUT_RDWR)  # not SSLSocket's, which takes TLS from its reader


PAGE_LIMIT: Final = 100
"""How many issues a page is asked to have."""

PAGES_MAX: Final = 1000
PAGE_BYTES_MAX: Final = 4 * 1024 * 1024
TIMEOUT_S: Final = 10.0
RETRY_AFTER_S_DEFAULT: Final = 60.0
"""The pause after "too many requests" that does not say how long: a minute, as GitHub recommends."""

RETRY_AFTER_S_MAX: Final = 3600.0
"""The longest pause that is kept: a tracker that says "in a year" is asked again after an hour."""

_CURSOR_CHARACTERS_MAX: Final = 2048
_TOO_MANY: Final = 429
_UNAVAILABLE: Final = 503


class Issue(msgspec.Struct, frozen=True):
    """An issue as the tracker has it. ``updated_at`` is the tracker's own text and is not interpreted."""

    key: str
    state: str
    repo: str
    updated_at: str = ""


class Tracker(Protocol):
    """What can be asked for issues. Anything with this method will do."""

    def issues(self, project: str, state: str) -> Iterator[Issue]:
        """Yield the issues of a project that are in a state, page by page as they are taken.

        Raises TrackerUnavailable or InvalidTrackerAnswer, at any page; what came before it stands.
        """
        ...


class _Page(msgspec.Struct, frozen=True):
    issues: list[Issue]
    next_cursor: str | None = None


_decode: Final = msgspec.json.Decoder(_Page).decode


class HttpTracker:
    """Asks ``GET {url}/projects/{project}/issues?state=...&limit=100&cursor=...``, each page on a new connection.

    ``token`` goes into an ``Authorization: Bearer`` header, and nowhere else: redirects are not
    followed. ``timeout_s`` bounds a page from connecting to its last byte (looking up the host's
    name aside). Where the tracker asked for a pause, nobody asks it before that is over by
    ``clock``. May be shared by threads. Raises InvalidSetting.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        timeout_s: float = TIMEOUT_S,
        pages_max: int = PAGES_MAX,
        page_bytes_max: int = PAGE_BYTES_MAX,
        clock: Clock | None = None,
    ) -> None:
        """Check the settings; nothing is connected yet."""
        parts = urlsplit(url)
        _check_address(url)
        if not 0 < timeout_s <= RETRY_AFTER_S_MAX or pages_max < 1 or page_bytes_max < 1:
            message = (
                f"Expected a timeout_s up to 3600 and bounds of 1 or more but got timeout_s={timeout_s!r}, "
                f"pages_max={pages_max!r}, page_bytes_max={page_bytes_max!r}; leave out what is not to be changed."
            )
            raise InvalidSetting(message)
        if not token.isascii() or not all(character.isprintable() and character != " " for character in token):
            message = "Expected a token of printable ASCII without spaces but it has others; give it as it was issued."
            raise InvalidSetting(message)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        self._connection = kinds[parts.scheme]
        self._place = parts.netloc
        self._path = parts.path.rstrip("/")
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        self._headers |= {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s
        self._pages_max = pages_max
        self._page_bytes_max = page_bytes_max
        self._clock: Clock = SystemClock() if clock is None else clock
        self._not_before: Microseconds = 0

    def issues(self, project: str, state: str) -> Iterator[Issue]:
        """Yield the issues of ``project`` that are in ``state``; a page is asked for when its first issue is wanted."""
        seen: set[str] = set()
        cursor: str | None = None
        for _ in range(self._pages_max):
            page = self._page(project, state, cursor)
            yield from page.issues
            cursor = page.next_cursor
            if cursor is None:
                return
            if cursor in seen or not 0 < len(cursor) <= _CURSOR_CHARACTERS_MAX:
                self._reject(f"each cursor once and short but got {cursor!r:.80} again, empty or too long", "its pages")
            seen.add(cursor)
        self._reject(f"up to {self._pages_max} pages but there are more", "its pages, or raise pages_max")

    def _page(self, project: str, state: str, cursor: str | None) -> _Page:
        self._check_pause()
        asked = {"state": state, "limit": PAGE_LIMIT} | ({} if cursor is None else {"cursor": cursor})
        query = urlencode(asked, quote_via=quote)
        path = f"{self._path}/projects/{quote(project, safe='')}/issues?{query}"
        status, headers, body = self._ask(path)
        self._check_status(status, headers)
        return self._decoded(body, headers, state)

    def _ask(self, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Return status, headers and body of one answer, all of it within the bounds."""
        connection = self._connection(self._place, timeout=self._timeout_s)
        deadline = Deadline(connection, self._timeout_s)
        try:
            with deadline:
                connection.connect()
                deadline.check()  # it had nothing to shut down while there was no connection
                connection.request("GET", path, headers=self._headers)
                with connection.getresponse() as answer:
                    body = self._body(answer)
            deadline.check()
        except (OSError, http.client.HTTPException) as error:
            self._fail(error, is_late=deadline.is_over)
        finally:
            connection.close()
        if len(body) > self._page_bytes_max:
            self._reject(f"up to {self._page_bytes_max} bytes a page but there are more", "it, or raise page_bytes_max")
        return answer.status, answer.headers, body

    def _body(self, answer: http.client.HTTPResponse) -> bytes:
        """Return the body, or one byte more than is allowed.

        By ``read1``, which takes what is there: ``read`` believes a chunk's negative size, and then
        takes everything.
        """
        promised = answer.length  # None: it ends with its chunks, or with the stream
        bytes_max = self._page_bytes_max + 1 if promised is None else min(promised, self._page_bytes_max + 1)
        body = bytearray()
        while len(body) < bytes_max and (piece := answer.read1(bytes_max - len(body))):
            body += piece
        if promised is not None and len(body) < bytes_max:
            raise http.client.IncompleteRead(bytes(body[:0]), promised - len(body))
        return bytes(body)

    def _fail(self, error: Exception, *, is_late: bool) -> NoReturn:
        """Raise for a request that had no whole answer."""
        is_protocol = isinstance(error, http.client.HTTPException) and not isinstance(error, OSError)
        if is_late or isinstance(error, TimeoutError):
            came = f"it was not there within {self._timeout_s:g} s"
        elif isinstance(error, http.client.IncompleteRead):
            came = "it was cut short"
        elif is_protocol:
            message = (
                f"Expected the tracker {self._place} to answer with HTTP but {type(error).__name__}: {error!s:.200}; "
                "check what listens at that address."
            )
            raise InvalidTrackerAnswer(message) from error
        else:
            came = f"{type(error).__name__}: {error}"
        message = f"Expected an answer of the tracker {self._place} but {came}; ask again later."
        raise TrackerUnavailable(message) from error

    def _check_status(self, status: int, headers: http.client.HTTPMessage) -> None:
        if status == http.client.OK:
            return
        pause_s = self._pause_s(status, headers.get("Retry-After"))
        if pause_s is not None:
            self._not_before = self._clock.now() + microseconds(pause_s)
        if pause_s is not None or status >= http.client.INTERNAL_SERVER_ERROR:
            when = "later" if pause_s is None else f"in {pause_s:g} s"
            message = f"Expected issues of the tracker {self._place} but it answered {status}; ask again {when}."
            raise TrackerUnavailable(message, retry_after_s=pause_s)
        remedy = "its address and project"
        if status in {http.client.UNAUTHORIZED, http.client.FORBIDDEN}:
            remedy = "the token and what it may read"
        elif 300 <= status < 400:
            remedy = f"its address, which may be {headers.get('Location', '')!r:.200}: redirects are not followed"
        self._reject(f"issues but got status {status}", remedy)

    def _pause_s(self, status: int, text: str | None) -> float | None:
        """Return how long the tracker wants to be left alone (Retry-After: RFC 9110, 10.2.3), within a bound."""
        if status not in {_TOO_MANY, _UNAVAILABLE}:
            return None
        try:
            if text is not None and text.strip().isdecimal():
                return min(float(text), RETRY_AFTER_S_MAX)
            moment_s = email.utils.parsedate_to_datetime(text or "").timestamp()
        except (TypeError, ValueError, OverflowError):
            return RETRY_AFTER_S_DEFAULT if status == _TOO_MANY else None
        return min(max(moment_s - self._clock.now() / 1_000_000, 0.0), RETRY_AFTER_S_MAX)

    def _check_pause(self) -> None:
        """Refuse to ask before the moment that the tracker has named.

        A clock that was set back cannot make the pause longer than the longest one.
        """
        left_s = (self._not_before - self._clock.now()) / 1_000_000
        if 0 < left_s <= RETRY_AFTER_S_MAX:
            message = (
                f"Expected to be let alone for {left_s:g} s more, said the tracker {self._place}, but it was to be "
                "asked; wait that long."
            )
            raise TrackerUnavailable(message, retry_after_s=left_s)

    def _decoded(self, body: bytes, headers: http.client.HTTPMessage, state: str) -> _Page:
        try:
            page = _decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            kind = headers.get("Content-Type", "no type")
            message = (
                f"Expected a page of issues as JSON from the tracker {self._place} but got {kind!r:.80} that cannot be "
                f"read ({error}); check its address, and what answers there."
            )
            raise InvalidTrackerAnswer(message) from error
        strange = next((issue for issue in page.issues if not issue.key or issue.state != state), None)
        if strange is not None:
            self._reject(
                f"issues in state {state!r:.80} but got {strange.key!r:.80} in {strange.state!r:.80}", "its filter"
            )
        return page

    def _reject(self, text: str, remedy: str) -> NoReturn:
        message = f"Expected of the tracker {self._place} {text}; check {remedy}."
        raise InvalidTrackerAnswer(message)


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    try:
        is_port = parts.port is None or parts.port > 0
    except ValueError:
        is_port = False
    is_plain = not (parts.query or parts.fragment or "@" in parts.netloc) and url.isascii() and url.isprintable()
    if not is_port or not is_plain or parts.scheme not in {"http", "https"} or not parts.hostname or " " in url:
        message = (
            f"Expected an http or https address without user, query and fragment but got {url!r}; give one such as "
            "http://127.0.0.1:8000/api."
        )
        raise InvalidSetting(message)
