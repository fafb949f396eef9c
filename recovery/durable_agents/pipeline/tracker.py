"""The tracker's client: lists the issues that are in a state now.

``HttpTracker`` sends one request for each page and checks every answer: a page has a bound in bytes
and in time, a cursor may not come twice, and an issue in another state than the one asked for is an
error. A server that ignores the filter would otherwise approve whatever it holds.
"""

from __future__ import annotations

import email.utils
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NoReturn, Protocol
from urllib.parse import quote, urlencode

import msgspec

from durable_agents.clock import Clock, Microseconds, SystemClock, microseconds
from durable_agents.errors import InvalidSetting, InvalidTrackerAnswer, TrackerUnavailable
from durable_agents.http_exchange import TIMEOUT_S, ExchangeFailed, HttpAnswer, HttpExchange

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE_LIMIT: Final = 100
"""How many issues a page is asked to have."""

PAGES_MAX: Final = 1000
PAGE_BYTES_MAX: Final = 4 * 1024 * 1024
RETRY_AFTER_S_DEFAULT: Final = 60.0
"""The pause after status 429 without Retry-After: a minute, as GitHub recommends."""

RETRY_AFTER_S_MAX: Final = 3600.0
"""The longest pause that is kept: a tracker that says "in a year" is asked again after an hour."""

_CURSOR_CHARACTERS_MAX: Final = 2048


class Issue(msgspec.Struct, frozen=True):
    """An issue of the tracker. ``updated_at`` is the tracker's own text, not interpreted."""

    key: str
    state: str
    repo: str
    updated_at: str = ""


class Tracker(Protocol):
    """The source of issues that a reconciler needs. Any object with this method is one."""

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
    """Polls issues over HTTP, each page on a new connection.

    It asks ``GET {url}/projects/{project}/issues?state=...&limit=100&cursor=...``.
    ``token`` goes into an ``Authorization: Bearer`` header; redirects are not followed, so it goes
    nowhere else. ``timeout_s`` bounds a page from connecting to its last byte. A pause that the
    tracker asks for (Retry-After) is kept, by ``clock``. May be shared by threads. Raises
    InvalidSetting, and MissingPackage without the extra ``http``.

    >>> tracker = HttpTracker("http://127.0.0.1:8000/api", token="secret")
    >>> issues = tracker.issues("core", "In Progress")  # asks when the first is taken
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
        self._exchange = HttpExchange(url, timeout_s=timeout_s, bytes_max=page_bytes_max)
        address = self._exchange.url
        if address.query or address.fragment or address.userinfo or "?" in url or "#" in url:
            message = f"The address must be without user, query and fragment; got {url!r}. Leave them out."
            raise InvalidSetting(message)
        if pages_max < 1 or page_bytes_max < 1:
            message = (
                f"pages_max and page_bytes_max must be 1 or more; got {pages_max!r} and {page_bytes_max!r}. Leave out "
                "the one that is not to change."
            )
            raise InvalidSetting(message)
        if not token.isascii() or not token.isprintable() or " " in token:
            message = "The token must be of printable ASCII without spaces; got others. Give it as it was issued."
            raise InvalidSetting(message)
        self._base = url.rstrip("/")
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        self._headers |= {"Authorization": f"Bearer {token}"} if token else {}
        self._pages_max = pages_max
        self._page_bytes_max = page_bytes_max
        self._clock: Clock = SystemClock() if clock is None else clock
        self._not_before: Microseconds = 0

    def issues(self, project: str, state: str) -> Iterator[Issue]:
        """Yield the issues of ``project`` in ``state``; asks for a page when its first is taken."""
        seen: set[str] = set()
        cursor: str | None = None
        for _ in range(self._pages_max):
            page = self._page(project, state, cursor)
            yield from page.issues
            cursor = page.next_cursor
            if cursor is None:
                return
            if cursor in seen or not 0 < len(cursor) <= _CURSOR_CHARACTERS_MAX:
                rule = f"each cursor once, in 1 to {_CURSOR_CHARACTERS_MAX} characters"
                self._reject(rule, f"{cursor!r:.80}", "its pages")
            seen.add(cursor)
        self._reject(f"up to {self._pages_max} pages", "more", "its pages, or raise pages_max")

    def _page(self, project: str, state: str, cursor: str | None) -> _Page:
        self._check_pause()
        asked = {"state": state, "limit": PAGE_LIMIT} | ({} if cursor is None else {"cursor": cursor})
        query = urlencode(asked, quote_via=quote)
        url = f"{self._base}/projects/{quote(project, safe='')}/issues?{query}"
        try:
            answer = self._exchange.send("GET", url, self._headers)
        except ExchangeFailed as error:
            if error.is_protocol_error:
                self._reject("an answer in HTTP", str(error)[:200], "what listens at its address", error)
            message = f"The tracker {self._exchange.place} must send a page of issues; got {error}. Ask again later."
            raise TrackerUnavailable(message) from error
        if not answer.is_whole:
            rule = f"up to {self._page_bytes_max} bytes a page"
            self._reject(rule, "more", "its pages, or raise page_bytes_max")
        self._check_status(answer)
        return self._decoded(answer, state)

    def _check_status(self, answer: HttpAnswer) -> None:
        status = answer.status
        if status == HTTPStatus.OK:
            return
        pause_s = self._pause_s(status, answer.headers.get("Retry-After"))
        if pause_s is not None:
            self._not_before = self._clock.now() + microseconds(pause_s)
        if pause_s is not None or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            when = "later" if pause_s is None else f"in {pause_s:g} s"
            message = f"The tracker {self._exchange.place} must send issues; got status {status}. Ask again {when}."
            raise TrackerUnavailable(message, retry_after_s=pause_s)
        remedy = "its address and project"
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            remedy = "the token and what it may read"
        elif 300 <= status < 400:
            place = answer.headers.get("Location", "")
            remedy = f"its address, which may be {place!r:.200}: redirects are not followed"
        self._reject("issues", f"status {status}", remedy)

    def _pause_s(self, status: int, text: str | None) -> float | None:
        """Return the pause that the tracker asks for (Retry-After: RFC 9110, 10.2.3), bounded."""
        if status not in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
            return None
        try:
            if text is not None and text.strip().isdecimal():
                return min(float(text), RETRY_AFTER_S_MAX)
            moment_s = email.utils.parsedate_to_datetime(text or "").timestamp()
        except (TypeError, ValueError, OverflowError):
            return RETRY_AFTER_S_DEFAULT if status == HTTPStatus.TOO_MANY_REQUESTS else None
        return min(max(moment_s - self._clock.now() / 1_000_000, 0.0), RETRY_AFTER_S_MAX)

    def _check_pause(self) -> None:
        """Raise TrackerUnavailable before the pause is over.

        A clock that was set back cannot make the pause longer than the longest one.
        """
        left_s = (self._not_before - self._clock.now()) / 1_000_000
        if 0 < left_s <= RETRY_AFTER_S_MAX:
            message = f"The tracker {self._exchange.place} asked for a pause (Retry-After); ask again in {left_s:g} s."
            raise TrackerUnavailable(message, retry_after_s=left_s)

    def _decoded(self, answer: HttpAnswer, state: str) -> _Page:
        try:
            page = _decode(answer.body)
        except (msgspec.DecodeError, RecursionError) as error:
            kind = answer.headers.get("Content-Type", "no type")
            got = f"{kind!r:.80} that cannot be read ({error})"
            self._reject("a page of issues as JSON", got, "its address, and what answers there", error)
        for issue in page.issues:
            if not issue.key or issue.state != state:
                got = f"{issue.key!r:.80} in {issue.state!r:.80}"
                self._reject(f"issues in state {state!r:.80}", got, "its filter")
        return page

    def _reject(self, rule: str, got: str, remedy: str, cause: Exception | None = None) -> NoReturn:
        message = f"The tracker {self._exchange.place} must send {rule}; got {got}. Check {remedy}."
        raise InvalidTrackerAnswer(message) from cause
