"""The LLM output cache: generated once, counted once, bounded, and never the wrong output."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents.errors import (
    DatabaseFull,
    InvalidKey,
    InvalidRequest,
    InvalidResult,
    InvalidSetting,
    RecursiveExecution,
)
from durable_agents.once.hit_counters import EVENTS_MAX
from durable_agents.once.idempotency import IdempotencyStore
from durable_agents.once.llm_cache import CachedOutput, Generation, LLMOutputCache
from durable_agents.store import BUSY_TIMEOUT_S
from durable_agents.store.conformance.keys import key_counts
from durable_agents.store.rows import KeyStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents import ManualClock, SqliteStore


@pytest.fixture(name="cache")
def _cache(store: SqliteStore, clock: ManualClock) -> Iterator[LLMOutputCache]:
    with LLMOutputCache(store, clock=clock, wait_s=0) as cache:
        yield cache


def never() -> Generation:
    """Fail, as a generation that must not happen."""
    pytest.fail("Expected nothing to be generated.")


def ask(cache: LLMOutputCache, prompt: object, *, tokens: int = 100, **request: Any) -> CachedOutput:
    """Ask for an output that says what it was asked for."""
    messages = [{"role": "user", "content": prompt}]
    return cache.get_or_generate(lambda: Generation({"said": prompt}, tokens), model="m", messages=messages, **request)


def test_an_output_is_generated_once_and_comes_back_equal(cache: LLMOutputCache) -> None:
    """The first caller gets it as later ones do."""
    assert ask(cache, "hello") == CachedOutput({"said": "hello"}, 100, is_hit=False)
    assert ask(cache, "hello") == CachedOutput({"said": "hello"}, 100, is_hit=True)


def test_all_of_a_request_is_in_its_key() -> None:
    """Model, messages, parameters and operation; not the order of the parameters' names."""
    base: dict[str, Any] = {"model": "m", "messages": ["a"], "parameters": {"t": 0, "p": 1}, "operation": "chat"}
    changes: list[dict[str, Any]] = [
        {"model": "n"},
        {"messages": ["b"]},
        {"parameters": {"t": 0.5, "p": 1}},
        {"parameters": None},
        {"operation": "embed"},
    ]
    keys = [LLMOutputCache.key(**(base | change)) for change in [{}, *changes]]
    assert len(set(keys)) == len(keys)
    assert LLMOutputCache.key(**(base | {"parameters": {"p": 1, "t": 0}})) == keys[0]


def test_statistics_say_what_the_hits_saved(cache: LLMOutputCache, clock: ManualClock) -> None:
    """Tokens and time, as they had been spent; the rate of nothing is 0."""
    assert cache.statistics().hit_rate == 0

    def generate() -> Generation:
        clock.advance(1.5)
        return Generation("x", 7)

    for _ in range(4):
        cache.get_or_generate(generate, model="m", messages="p")
    found = cache.statistics()
    assert (found.hits, found.misses, found.tokens_saved, found.time_saved_s) == (3, 1, 21, 4.5)
    assert found.hit_rate == 0.75


def test_the_seeds_numbers(store: SqliteStore) -> None:
    """A thousand misses, then a thousand hits: half of all requests,
    and the tokens of the second pass saved.
    """
    with IdempotencyStore(store) as keys, LLMOutputCache(store=keys) as cache:
        for _ in range(2):
            for number in range(1000):
                assert ask(cache, number).output == {"said": number}
        found = cache.statistics()
        assert (found.misses, found.hits, found.hit_rate, found.tokens_saved) == (1000, 1000, 0.5, 100_000)


def test_counts_are_those_of_all_processes_and_restarts(tmp_path: Path) -> None:
    """Each closes, and none is counted twice."""
    program = """
import sys
from durable_agents.once.llm_cache import Generation, LLMOutputCache
with LLMOutputCache(db_path=sys.argv[1]) as cache:
    for number in range(70):
        cache.get_or_generate(lambda: Generation("x", 1), model="m", messages=number % 10)
"""
    path = tmp_path / "s.db"
    with LLMOutputCache(db_path=path) as cache:
        processes = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for _ in range(3)]
        assert [process.wait(60) for process in processes] == [0] * 3
        found = cache.statistics()
        assert found.hits + found.misses == 210
        assert found.misses == 10
        assert found.tokens_saved == 200


def test_a_process_that_ends_without_closing_loses_no_counts(tmp_path: Path) -> None:
    """A client library is given a cache and never closes it; that is no kill."""
    program = """
import sys
from durable_agents.once.llm_cache import Generation, LLMOutputCache
cache = LLMOutputCache(db_path=sys.argv[1])
for number in range(70):
    cache.get_or_generate(lambda: Generation("x", 1), model="m", messages=number % 10)
"""
    path = str(tmp_path / "s.db")
    subprocess.run([sys.executable, "-c", program, path], timeout=60, check=True)
    with LLMOutputCache(db_path=path) as cache:
        assert (cache.statistics().misses, cache.statistics().hits) == (10, 60)


_DROPPED = """
import gc, sys
from durable_agents.once.llm_cache import Generation, LLMOutputCache
def ask(times):
    cache = LLMOutputCache(db_path=sys.argv[1])
    for number in range(times):
        cache.get_or_generate(lambda: Generation("x", 1), model="m", messages=number % 10)
ask(70)
gc.collect()
"""


def test_a_cache_that_is_collected_unclosed_loses_no_counts(tmp_path: Path) -> None:
    """They wait for the end of the interpreter,
    or for the next cache of the scope in this process.
    """
    path = str(tmp_path / "s.db")
    subprocess.run([sys.executable, "-c", _DROPPED, path], timeout=60, check=True)
    again = f"{_DROPPED}\nwith LLMOutputCache(db_path=sys.argv[1]) as cache:\n    print(cache.statistics().hits)"
    done = subprocess.run([sys.executable, "-c", again, path], timeout=60, check=True, capture_output=True, text=True)
    assert done.stdout == "130\n"
    with LLMOutputCache(db_path=path) as cache:
        assert (cache.statistics().misses, cache.statistics().hits) == (10, 130)


@pytest.mark.parametrize("ending", ["", "sys.exit(0)", "cache = LLMOutputCache(db_path=sys.argv[1])\nask(10)"])
def test_the_end_of_a_process_does_not_wait_for_a_locked_database(tmp_path: Path, ending: str) -> None:
    """Statistics are not worth the half minute that a store has patience for."""
    path = str(tmp_path / "s.db")
    with LLMOutputCache(db_path=path) as cache:
        for number in range(10):
            cache.get_or_generate(lambda: Generation("x", 1), model="m", messages=number)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        command = [sys.executable, "-c", f"{_DROPPED}\n{ending}", path]
        done = subprocess.run(command, timeout=BUSY_TIMEOUT_S - 5, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    with LLMOutputCache(db_path=path) as cache:
        assert (cache.statistics().misses, cache.statistics().hits) == (10, 0)


def test_the_end_of_a_process_makes_no_database_anew(tmp_path: Path) -> None:
    """Where somebody has removed the file, the counts are lost with it."""
    path = tmp_path / "s.db"
    command = [sys.executable, "-c", f"{_DROPPED}\nimport os\nos.unlink(sys.argv[1])", str(path)]
    done = subprocess.run(command, timeout=60, check=True, capture_output=True, text=True)
    assert (done.stderr, path.exists()) == ("", False)


def test_a_kill_loses_no_more_counts_than_is_said(tmp_path: Path) -> None:
    """All outputs are there; of the counts, fewer than those that may wait are missing."""
    program = """
import os, signal, sys
from durable_agents.once.llm_cache import Generation, LLMOutputCache
cache = LLMOutputCache(db_path=sys.argv[1])
for number in range(int(sys.argv[2])):
    cache.get_or_generate(lambda: Generation("x", 1), model="m", messages=number % 10)
os.kill(os.getpid(), signal.SIGKILL)
"""
    path, requests = str(tmp_path / "s.db"), EVENTS_MAX * 2 + 300
    killed = subprocess.run([sys.executable, "-c", program, path, str(requests)], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    with LLMOutputCache(db_path=path) as cache:
        found = cache.statistics()
        assert requests - EVENTS_MAX <= found.hits + found.misses < requests
        assert key_counts(cache.store, "llm") == {KeyStatus.DONE: 10}


def test_a_forked_child_does_not_count_its_parents_hits_again(tmp_path: Path) -> None:
    """What waited when it was forked is the parent's to add."""
    program = """
import os, sys
from durable_agents.once.llm_cache import Generation, LLMOutputCache
def ask(cache):
    cache.get_or_generate(lambda: Generation("x", 1), model="m", messages="p")
with LLMOutputCache(db_path=sys.argv[1]) as cache:
    for _ in range(5):
        ask(cache)
    if (child := os.fork()) == 0:
        ask(cache)
        cache.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    path = str(tmp_path / "s.db")
    subprocess.run([sys.executable, "-c", program, path], timeout=60, check=True)
    with LLMOutputCache(db_path=path) as cache:
        found = cache.statistics()
        assert (found.misses, found.hits) == (1, 5)


def test_a_stampede_generates_once(store: SqliteStore) -> None:
    """Sixteen threads ask at once; one generates, fifteen hit."""
    with LLMOutputCache(store, wait_s=60) as cache, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(cache, "p"), range(16)))
        assert [answer.output for answer in answers] == [{"said": "p"}] * 16
        found = cache.statistics()
        assert (found.misses, found.hits) == (1, 15)


@pytest.mark.timeout(20)  # a bound on waiting for the writer, who never ends here
def test_a_hit_writes_nothing(store: SqliteStore, cache: LLMOutputCache) -> None:
    """Not even while another connection has the write lock."""
    ask(cache, "p")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(EVENTS_MAX * 2):
            assert ask(cache, "p").is_hit
        other.execute("ROLLBACK")
    found = cache.statistics()
    assert (found.hits, found.misses) == (EVENTS_MAX * 2, 1)


def test_an_output_expires_after_seven_days(cache: LLMOutputCache, clock: ManualClock) -> None:
    """D7: then it is generated again, once."""
    ask(cache, "p")
    clock.advance(7 * 24 * 3600 - 1)
    assert ask(cache, "p").is_hit
    clock.advance(1)
    assert [ask(cache, "p").is_hit for _ in range(3)] == [False, True, True]
    clock.advance(7 * 24 * 3600)
    assert cache.discard_expired() == 1
    assert key_counts(cache.store, "llm") == {}


def test_the_least_recently_used_outputs_are_evicted(store: SqliteStore, clock: ManualClock) -> None:
    """The bound is kept, what is used stays, and other keys of the store are none of
    its business.
    """
    with LLMOutputCache(store, clock=clock, bytes_max=10_000) as cache, IdempotencyStore(store, clock=clock) as keys:
        keys.execute("k", lambda: "x" * 50_000)
        for number in range(50):
            clock.advance(1)
            cache.get_or_generate(lambda: Generation("x" * 1000), model="m", messages=number)
            ask(cache, "used all the time")
        cache.evict()
        kept = [number for number in range(50) if cache.get(cache.key("m", number)) is not None]
        assert kept == list(range(50 - len(kept), 50))
        assert 7 <= len(kept) <= 10
        assert ask(cache, "used all the time").is_hit
        assert keys.find("k") is not None
        assert cache.clear() == len(kept) + 1
        assert keys.find("k") is not None


def test_an_output_larger_than_the_cache_is_returned_and_not_kept(store: SqliteStore) -> None:
    """The bound is for what stays."""
    with LLMOutputCache(store, bytes_max=100) as cache:
        assert ask(cache, "x" * 1000).output == {"said": "x" * 1000}
        assert not ask(cache, "x" * 1000).is_hit


def test_a_generator_that_fails_leaves_nothing(cache: LLMOutputCache) -> None:
    """It raises, it returns what is no generation, or what is no JSON,
    or asks for its own request.
    """

    def raises() -> Generation:
        raise TimeoutError

    def recursive() -> Generation:
        return Generation(cache.get_or_generate(never, model="m", messages="p").output)

    bad: list[tuple[Any, type[BaseException]]] = [
        (raises, TimeoutError),
        (recursive, RecursiveExecution),
        (lambda: "text", InvalidResult),
        (lambda: Generation((1, 2)), InvalidResult),
        (lambda: Generation("x", -1), InvalidResult),
        (lambda: Generation("x", "7"), InvalidResult),  # type: ignore[arg-type]
    ]
    for generate, error in bad:
        with pytest.raises(error):
            cache.get_or_generate(generate, model="m", messages="p")
        assert key_counts(cache.store, "llm") == {}
    assert not cache.get_or_generate(lambda: Generation("x"), model="m", messages="p").is_hit


def test_bad_requests_and_settings_are_refused(store: SqliteStore, cache: LLMOutputCache) -> None:
    """Before anything is generated."""
    with pytest.raises(InvalidRequest):
        cache.get_or_generate(never, model="m", messages=[float("nan")])
    with pytest.raises(InvalidKey):
        cache.get("")
    with pytest.raises(InvalidKey):
        cache.put("k" * 10**6, 1)
    for bytes_max in (-1, float("nan"), 1.5, True, "1", 2**63):
        with pytest.raises(InvalidSetting, match=r"bytes_max must be .* or None for no bound"):
            LLMOutputCache(store, bytes_max=bytes_max)  # type: ignore[arg-type]
    for duration_s in (float("nan"), float("inf"), 1e300, -1):
        with pytest.raises(InvalidSetting, match="duration_s"):
            cache.put("key", "x", duration_s=duration_s)
    with pytest.raises(InvalidSetting):
        LLMOutputCache()
    with pytest.raises(InvalidSetting):
        LLMOutputCache(store, db_path="x.db")


def test_what_others_generated_can_be_put_and_got(cache: LLMOutputCache) -> None:
    """The first one stays; a look-up that finds nothing is a miss; a key may be any text."""
    assert cache.get("my key") is None
    assert cache.put("my key", {"a": 1}, tokens=5, duration_s=2)
    assert not cache.put("my key", {"a": 2})
    assert cache.get("my key") == CachedOutput({"a": 1}, 5, is_hit=True)
    found = cache.statistics()
    assert (found.hits, found.misses, found.tokens_saved, found.time_saved_s) == (1, 1, 5, 2.0)
    request = cache.key("m", "p")
    assert cache.put(request, "x")
    assert cache.get_or_generate(never, model="m", messages="p").output == "x"


def test_what_is_being_generated_is_not_put(cache: LLMOutputCache) -> None:
    """The one who generates stores."""

    def generate() -> Generation:
        with ThreadPoolExecutor(1) as pool:
            assert not pool.submit(cache.put, cache.key("m", "p"), "other").result(30)
        return Generation("mine")

    assert cache.get_or_generate(generate, model="m", messages="p").output == "mine"


def test_a_full_database_keeps_nothing_and_frees_the_key(store: SqliteStore, cache: LLMOutputCache) -> None:
    """The caller is told, and a smaller output is kept."""
    connection = store.borrow()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 4}")
    store.give_back(connection)
    with pytest.raises(DatabaseFull):
        cache.get_or_generate(lambda: Generation("x" * 1_000_000), model="m", messages="p")
    assert cache.get_or_generate(lambda: Generation("x"), model="m", messages="p").output == "x"
    assert cache.get_or_generate(never, model="m", messages="p").output == "x"


def test_a_generator_that_is_killed_is_followed_at_once(tmp_path: Path) -> None:
    """Those who wait do not wait for the expiry of its claim."""
    program = """
import os, signal, sys
from durable_agents.once.llm_cache import LLMOutputCache
with LLMOutputCache(db_path=sys.argv[1], claim_s=3600) as cache:
    cache.get_or_generate(lambda: os.kill(os.getpid(), signal.SIGKILL), model="m", messages="p")
"""
    path = str(tmp_path / "s.db")
    killed = subprocess.run([sys.executable, "-c", program, path], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    with LLMOutputCache(db_path=path, wait_s=30) as cache:
        assert cache.get_or_generate(lambda: Generation(os.getpid()), model="m", messages="p").output == os.getpid()
