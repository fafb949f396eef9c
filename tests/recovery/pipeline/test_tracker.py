"""The tracker's client, before a real server: issues come page by page,
and every bad answer has its error.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from durable_agents import ManualClock
from durable_agents.errors import InvalidSetting, InvalidTrackerAnswer, RecoveryError, TrackerError, TrackerUnavailable
from durable_agents.pipeline.tracker import PAGE_LIMIT, HttpTracker, Issue

from scenarios.webhooks.tracker import TOKEN, Client, make_server
from scenarios.webhooks.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STATE = "In Progress"
SENTENCE = re.compile(
    r"\AThe tracker \S+ must send .+; got .+\. (Check|Ask again) .+\.\Z|.+ asked for a pause .+", re.DOTALL
)


@pytest.fixture(name="world")
def _world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(name="url")
def _url(world: World) -> Iterator[str]:
    with make_server(world) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@contextmanager
def answering(*pieces: bytes) -> Iterator[str]:
    """Answer one connection with these bytes, and close it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def fill(world: World, count: int, state: str = STATE) -> list[str]:
    """Make so many issues of the project ``core``; return their keys."""
    keys = [f"CORE-{number}" for number in range(count)]
    for key in keys:
        world.set_issue("core", key, state, "core/app")
    return keys


def keys_of(tracker: HttpTracker, state: str = STATE) -> list[str]:
    """Return the keys of all issues that the tracker tells of."""
    return [issue.key for issue in tracker.issues("core", state)]


def refused(tracker: HttpTracker, kind: type[TrackerError], text: str) -> TrackerError:
    """Return the error of asking for all issues: of this kind, with this in its one sentence."""
    with pytest.raises(kind, match=text) as caught:
        keys_of(tracker)
    assert SENTENCE.match(str(caught.value)), str(caught.value)
    assert TOKEN not in str(caught.value)
    return caught.value


def test_all_pages_are_read(world: World, url: str) -> None:
    """Of several pages each issue comes once, in order; other states and projects do not."""
    keys = fill(world, 2 * PAGE_LIMIT + 5)
    world.set_issue("core", "CORE-done", "Done", "core/app")
    world.set_issue("else", "ELSE-1", STATE, "else/app")
    assert keys_of(HttpTracker(url, token=TOKEN)) == keys


def test_a_page_that_is_just_full_is_not_the_last_one(world: World, url: str) -> None:
    """As many issues as a page has, and an empty page after them."""
    keys = fill(world, PAGE_LIMIT)
    assert keys_of(HttpTracker(url, token=TOKEN)) == keys


def test_nothing_is_asked_for_before_it_is_wanted(world: World, url: str) -> None:
    """The second page is read when its first issue is taken,
    so what goes wrong there stops nothing before it.
    """
    fill(world, PAGE_LIMIT + 1)
    issues = HttpTracker(url, token=TOKEN).issues("core", STATE)
    world.set_mood("broken")
    with pytest.raises(TrackerUnavailable):
        next(issues)
    world.cheer_up()
    issues = HttpTracker(url, token=TOKEN).issues("core", STATE)
    first = [next(issues).key for _ in range(PAGE_LIMIT)]
    world.set_mood("html")
    assert len(set(first)) == PAGE_LIMIT
    with pytest.raises(InvalidTrackerAnswer):
        next(issues)


def test_an_issue_has_what_the_tracker_says(world: World, url: str) -> None:
    """Key, state, repository and the moment of the last change;
    names with odd characters go through the address.
    """
    world.set_issue("a/b &c?", "Ä 1", "In Progress", "core/app")
    (issue,) = HttpTracker(f"{url}/", token=TOKEN).issues("a/b &c?", STATE)
    assert issue == Issue("Ä 1", STATE, "core/app", issue.updated_at)
    assert int(issue.updated_at) > 0


@pytest.mark.parametrize(
    ("mood", "value", "kind", "text"),
    [
        ("broken", "500", TrackerUnavailable, "got status 500. Ask again later"),
        ("broken", "502", TrackerUnavailable, "status 502"),
        ("unavailable", "", TrackerUnavailable, "status 503. Ask again later"),
        ("refused", "401", InvalidTrackerAnswer, "status 401. Check the token"),
        ("refused", "404", InvalidTrackerAnswer, "status 404. Check its address and project"),
        ("redirected", "http://127.0.0.1:9/elsewhere", InvalidTrackerAnswer, "elsewhere.*redirects are not followed"),
        ("html", "", InvalidTrackerAnswer, "as JSON.*text/html"),
        ("wrong-types", "", InvalidTrackerAnswer, "Expected `array`, got `object`"),
        ("wrong-types", '{"issues": [{"key": 1, "state": "In Progress", "repo": "r"}]}', InvalidTrackerAnswer, "`int`"),
        ("wrong-types", '{"issues": [{"key": "", "state": "In Progress", "repo": "r"}]}', InvalidTrackerAnswer, "''"),
        ("wrong-types", '{"issues": [], "next_cursor": 7}', InvalidTrackerAnswer, "next_cursor"),
        ("wrong-types", '{"issues": [], "next_cursor": ""}', InvalidTrackerAnswer, "in 1 to 2048 characters"),
        (
            "wrong-types",
            f'{{"issues": [], "next_cursor": "{"c" * 9000}"}}',
            InvalidTrackerAnswer,
            "in 1 to 2048 characters",
        ),
        ("wrong-types", "[" * 100_000, InvalidTrackerAnswer, "as JSON"),
        ("wrong-types", '{"x": ' + "[" * 100_000, InvalidTrackerAnswer, "as JSON"),
        ("wrong-types", "null", InvalidTrackerAnswer, "as JSON"),
        ("too-large", "200001", InvalidTrackerAnswer, "up to 200000 bytes"),
        ("cut", "", TrackerUnavailable, "cut short"),
        ("turning-in-a-circle", "", InvalidTrackerAnswer, "cursor once.*'2'"),
        ("endless", "", InvalidTrackerAnswer, "up to 20 pages"),
        (
            "unfiltered",
            "Approved",
            InvalidTrackerAnswer,
            "'In Progress'; got 'CORE-0' in 'Approved'. Check its filter",
        ),
    ],
)
def test_a_bad_answer_has_its_error(
    world: World, url: str, mood: str, value: str, kind: type[TrackerError], text: str
) -> None:
    """Each with one sentence that says what was expected, what came and what to do;
    and none is the end.
    """
    fill(world, 3)
    fill(world, 1, state="Approved")
    world.set_mood(mood, value=value)
    tracker = HttpTracker(url, token=TOKEN, pages_max=20, page_bytes_max=200_000)
    assert isinstance(refused(tracker, kind, text), RecoveryError)
    world.cheer_up()
    assert keys_of(tracker, "Approved") == ["CORE-0"]


def test_another_token_is_refused(url: str) -> None:
    """The token is what the tracker knows its callers by, and is in no message."""
    refused(HttpTracker(url, token=TOKEN[1:]), InvalidTrackerAnswer, "status 401. Check the token")
    refused(HttpTracker(url), InvalidTrackerAnswer, "status 401")


def test_a_pause_that_was_asked_for_is_kept(world: World, url: str) -> None:
    """Nobody asks before the moment that the tracker has named, by the clock that is passed in;
    then it is asked.
    """
    clock = ManualClock()
    tracker = HttpTracker(url, token=TOKEN, clock=clock)
    keys = fill(world, 2)
    world.set_mood("too-many-requests", answers=1, value="30")
    error = refused(tracker, TrackerUnavailable, "status 429. Ask again in 30 s")
    assert isinstance(error, TrackerUnavailable)
    assert error.retry_after_s == 30
    clock.advance(29)
    world.set_mood("html")  # whoever asked now would have it
    error = refused(tracker, TrackerUnavailable, "asked for a pause .Retry-After.; ask again in 1 s")
    assert isinstance(error, TrackerUnavailable)
    assert error.retry_after_s == 1
    world.cheer_up()
    clock.advance(1)
    assert keys_of(tracker) == keys


@pytest.mark.parametrize(
    ("mood", "value", "pause_s"),
    [
        ("unavailable", "120", 120.0),
        ("unavailable", "0", 0.0),
        ("unavailable", "Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("unavailable", "Tue, 14 Nov 2000 22:14:20 GMT", 0.0),
        ("unavailable", "Tue, 14 Nov 2090 22:14:20 GMT", 3600.0),
        ("unavailable", "9" * 400, 3600.0),
        ("unavailable", "soon", None),
        ("too-many-requests", "soon", 60.0),
        ("too-many-requests", "-5", 60.0),
        ("too-many-requests", "", 60.0),
    ],
)
def test_a_pause_is_read_in_each_of_its_forms(
    world: World, url: str, mood: str, value: str, pause_s: float | None
) -> None:
    """Seconds, or a date, within an hour; without a number,
    too many requests are a minute's pause.
    """
    world.set_mood(mood, value=value)
    with pytest.raises(TrackerUnavailable) as caught:
        keys_of(HttpTracker(url, token=TOKEN, clock=ManualClock()))
    assert caught.value.retry_after_s == pause_s


def test_a_clock_that_was_set_back_lengthens_no_pause(world: World, url: str) -> None:
    """A moment to wait for that is further away than any pause may be is none:
    the tracker is asked.
    """
    clock = ManualClock()
    tracker = HttpTracker(url, token=TOKEN, clock=clock)
    world.set_mood("too-many-requests", answers=1, value="30")
    refused(tracker, TrackerUnavailable, "429")
    clock.jump(clock.now() - 86_400_000_000)
    assert keys_of(tracker) == []


def test_a_server_that_dribbles_is_given_up(world: World, url: str) -> None:
    """Each byte comes in time and the page does not: the bound is that of the page."""
    world.set_mood("dribbling")
    began_s = time.monotonic()
    refused(HttpTracker(url, token=TOKEN, timeout_s=0.3), TrackerUnavailable, "no whole answer within 0.3 s")
    assert 0.2 < time.monotonic() - began_s < 60  # a bound on being stuck, not a speed


def test_headers_that_dribble_are_given_up() -> None:
    """The bound holds before the first header is whole, too."""
    go_on = threading.Event()

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not go_on.wait(0.02):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        refused(HttpTracker(url, timeout_s=0.3), TrackerUnavailable, "no whole answer within 0.3 s")
        go_on.set()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b"", TrackerUnavailable, "disconnected without"),
        (b"220 mail.example ESMTP\r\n", TrackerUnavailable, "disconnected without"),
        (b"220 mail.example ESMTP\r\n\r\n", InvalidTrackerAnswer, "an answer in HTTP; got .*illegal status line"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", InvalidTrackerAnswer, "an answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", TrackerUnavailable, "cut short"),
        (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"iss', TrackerUnavailable, "cut short"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", TrackerUnavailable, "cut short"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n" + b"x" * 50, TrackerUnavailable, "cut short"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n" + b"x" * 5000,
            InvalidTrackerAnswer,
            "1000 b",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000, InvalidTrackerAnswer, "1000 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe", InvalidTrackerAnswer, "as JSON"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", InvalidTrackerAnswer, "status 204"),
    ],
)
def test_what_is_hardly_http_has_its_error(answer: bytes, kind: type[TrackerError], text: str) -> None:
    """Closed connections, other protocols, and lengths that are not true:
    bounded memory, and a typed error.
    """
    with answering(answer) as url:
        refused(HttpTracker(url, page_bytes_max=1000), kind, text)


def test_chunked_pages_are_read() -> None:
    """The length may come in pieces."""
    pieces = (b'{"issues": [{', b'"key":"A-1","state":"In Progress","repo":"core/a"}', b"]}", b"")
    chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
    with answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *chunks) as url:
        assert list(HttpTracker(url).issues("core", STATE)) == [Issue("A-1", STATE, "core/a")]


def test_a_port_where_nobody_listens_is_unavailable() -> None:
    """A refused connection is an error of the tracker's, not the operating system's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    refused(HttpTracker(f"http://127.0.0.1:{port}"), TrackerUnavailable, "ConnectError: .*Connection refused")


@pytest.mark.parametrize(
    ("url", "arguments"),
    [
        ("ftp://127.0.0.1", {}),
        ("127.0.0.1:8000", {}),
        ("http://", {}),
        ("http://127.0.0.1:99999", {}),
        ("http://user:word@127.0.0.1", {}),
        ("http://127.0.0.1/?a=b", {}),
        ("http://127.0.0.1/a b", {}),
        ("http://127.0.0.1/\r\nX: y", {}),
        ("http://127.0.0.1", {"timeout_s": 0}),
        ("http://127.0.0.1", {"timeout_s": float("nan")}),
        ("http://127.0.0.1", {"pages_max": 0}),
        ("http://127.0.0.1", {"page_bytes_max": 0}),
        ("http://127.0.0.1", {"token": "two words"}),
        ("http://127.0.0.1", {"token": "line\r\nX: y"}),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(url: str, arguments: dict[str, float | str]) -> None:
    """Before anything is connected."""
    with pytest.raises(InvalidSetting, match="must be"):
        HttpTracker(url, **arguments)  # type: ignore[arg-type]


def test_the_client_of_scenarios_changes_the_world(world: World, url: str) -> None:
    """What a person does at the tracker is what the tracker tells of,
    and a forge knows its commits by branch, too.
    """
    client = Client(int(url.rpartition(":")[2]))
    client.move("CORE-1", STATE)
    client.push("core/app", "feature/CORE-1", "a" * 40)
    client.set_status("core/app", "a" * 40, "success")
    assert keys_of(HttpTracker(url, token=TOKEN)) == ["CORE-1"]
    assert client.status("core/app", "feature/CORE-1") == client.status("core/app", "a" * 40) == "success"
    assert client.status("core/app", "b" * 40) == "unknown"
    assert world.sent() == []
