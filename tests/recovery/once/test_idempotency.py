"""The idempotency store: done once, whoever asks, whoever dies, and no key is ever stuck.

It is long because each way in which an execution can go wrong is a test.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents import ManualClock
from durable_agents.errors import (
    DatabaseFull,
    DatabaseLocked,
    ExecutionLost,
    InProgress,
    InvalidKey,
    InvalidRequest,
    InvalidResult,
    InvalidSetting,
    RecursiveExecution,
    RequestConflict,
)
from durable_agents.once.claims import ClaimPolicy, KeyClaim, KeyClaims
from durable_agents.once.idempotency import Execution, IdempotencyStore
from durable_agents.store.conformance.keys import key_counts
from durable_agents.store.rows import KeyStatus

from tests.recovery.interrupts import Interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from durable_agents import SqliteStore

ELSE = "Expected nobody to execute."

WORKER = """
import os, sys
from durable_agents.once.idempotency import IdempotencyStore
path, effects, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
def produce(key):
    with open(effects, "a") as file:
        file.write(key + "\\n")
    return {"key": key, "by": os.getpid()}
with IdempotencyStore(db_path=path) as keys:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(count):
        print(keys.execute(f"key-{number}", lambda: produce(f"key-{number}")).result["by"])
"""

HOLDER = """
import sys
from durable_agents.once.idempotency import IdempotencyStore
keys = IdempotencyStore(db_path=sys.argv[1], claim_s=float(sys.argv[2]), execution_s_max=float(sys.argv[3]))
def produce():
    print("executing", flush=True)
    sys.stdin.readline()
    return "from the holder"
print(keys.execute("k", produce).result, flush=True)
keys.close()
"""


@pytest.fixture(name="keys")
def _keys(store: SqliteStore, clock: ManualClock) -> Iterator[IdempotencyStore]:
    with IdempotencyStore(store, clock=clock, wait_s=0) as keys:
        yield keys


def never() -> object:
    """Fail, as an execution that must not happen."""
    pytest.fail(ELSE)


def noted(executed: list[object], result: object) -> object:
    """Note an execution and return its result."""
    executed.append(result)
    return result


def started(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a program and wait for its first line."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() in {"ready", "executing"}
    return process


def test_the_second_call_gets_the_result_of_the_first(keys: IdempotencyStore) -> None:
    """It is equal, of the same types, and nothing is executed."""
    first = keys.execute("k", lambda: {"b": [1, 2.0, None, "ж"], "a": {}})
    second = keys.execute("k", never)
    assert first == Execution({"b": [1, 2.0, None, "ж"], "a": {}}, is_replay=False)
    assert second == Execution(first.result, is_replay=True)
    assert list(second.result) == list(first.result) == ["b", "a"]
    assert keys.find("k") == second
    assert keys.find("other") is None


def test_a_result_of_null_is_a_result(keys: IdempotencyStore) -> None:
    """Nothing is something that can be remembered."""
    keys.execute("k", lambda: None)
    assert keys.find("k") == keys.execute("k", never) == Execution(None, is_replay=True)


def test_results_survive_the_store(tmp_path: Path) -> None:
    """Another process, later, finds them."""
    with IdempotencyStore(db_path=tmp_path / "s.db") as keys:
        keys.execute("k", lambda: 1, request={"a": 1, "b": 2})
    with IdempotencyStore(db_path=tmp_path / "s.db") as keys:
        assert keys.execute("k", never, request={"b": 2, "a": 1}).result == 1


def test_another_request_under_one_key_is_a_conflict(keys: IdempotencyStore) -> None:
    """While it executes, and when it has ended; the stored result stays."""

    def produce() -> int:
        other = IdempotencyStore(keys.store, wait_s=0, clock=keys.clock)
        with other, ThreadPoolExecutor(1) as pool, pytest.raises(RequestConflict):
            pool.submit(other.execute, "k", never, request={"a": 2}).result(30)
        return 1

    keys.execute("k", produce, request={"a": 1})
    with pytest.raises(RequestConflict, match="Use one key for one request"):
        keys.execute("k", never, request={"a": 2})
    with pytest.raises(RequestConflict, match="Use one key for one request"):
        keys.find("k")
    assert keys.execute("k", never, request={"a": 1}).result == 1


def test_scopes_do_not_meet(store: SqliteStore) -> None:
    """One key of two uses is two keys."""
    with IdempotencyStore(store, scope="a") as a, IdempotencyStore(store, scope="b") as b:
        assert (a.execute("k", lambda: 1).result, b.execute("k", lambda: 2).result) == (1, 2)


def test_an_expired_result_is_refreshed(keys: IdempotencyStore, clock: ManualClock) -> None:
    """D7: it is a miss once, and then a hit again; even for another request."""
    keys.execute("k", lambda: 1, ttl_s=10)
    clock.advance(9.9)
    assert keys.execute("k", never).result == 1
    clock.advance(0.1)
    assert keys.find("k") is None
    assert keys.execute("k", lambda: 2, request="another").result == 2
    assert keys.execute("k", never, request="another").result == 2


def test_an_expired_result_is_refreshed_by_exactly_one(store: SqliteStore, clock: ManualClock) -> None:
    """Of eight threads that see the expiry, one executes and seven wait for it."""
    executed: list[object] = []
    with IdempotencyStore(store, clock=clock, wait_s=30) as keys:
        keys.execute("k", lambda: 0)
        clock.advance(25 * 3600)
        barrier = threading.Barrier(8)

        def ask(number: int) -> object:
            barrier.wait(30)
            return keys.execute("k", lambda: noted(executed, number)).result

        with ThreadPoolExecutor(8) as pool:
            results = set(pool.map(ask, range(1, 9)))
    assert len(executed) == 1
    assert results == set(executed)


def test_processes_execute_each_key_once(tmp_path: Path) -> None:
    """D2: eight processes and fifty keys are fifty executions, counted in the world."""
    effects = tmp_path / "effects"
    with IdempotencyStore(db_path=tmp_path / "s.db"):
        processes = [started(WORKER, tmp_path / "s.db", effects, 50) for _ in range(8)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 8
    assert Counter(effects.read_text().split()) == {f"key-{number}": 1 for number in range(50)}
    assert len(answers) == 1


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_a_generator_that_raises_leaves_the_key_free(keys: IdempotencyStore, error: BaseException) -> None:
    """The error goes to its caller, nothing is stored, and the next one executes."""

    def fail() -> object:
        raise error

    with pytest.raises(type(error)):
        keys.execute("k", fail)
    assert keys.store.key("idempotency/k") is None
    assert keys.execute("k", lambda: 2).result == 2


def test_a_generator_that_asks_for_its_own_key_is_told(keys: IdempotencyStore) -> None:
    """It would wait for itself; other keys are fine, and the key is free afterwards."""

    def nested() -> object:
        with pytest.raises(RecursiveExecution):
            keys.execute("k", never, wait_s=3600)
        return keys.execute("other", lambda: 1).result

    assert keys.execute("k", nested).result == 1
    with pytest.raises(RecursiveExecution):
        keys.execute("l", lambda: keys.execute("l", never))
    assert keys.execute("l", lambda: 3).result == 3


def test_an_interrupt_anywhere_leaves_the_key_to_the_next(store: SqliteStore) -> None:
    """Wherever Ctrl-C comes, the next caller of this process executes, or has the result,
    and need not wait for it.
    """
    files = (
        "recovery/durable_agents/once/idempotency.py",
        "recovery/durable_agents/once/claims.py",
        "store/sqlite_idempotency.py",
    )
    number, was_interrupted = 0, True
    with IdempotencyStore(store, wait_s=0) as keys:
        while was_interrupted:
            number += 1
            executed: list[object] = []
            try:
                with Interrupt(number, *files):
                    keys.execute(f"k-{number}", lambda: noted(executed, "first"))  # noqa: B023 - called in this turn
                was_interrupted = False
            except KeyboardInterrupt:
                pass
            found = keys.execute(f"k-{number}", lambda: "second")
            assert found.result in ({"first", "second"} if executed else {"second"})
            assert was_interrupted or found == Execution("first", is_replay=True)
    assert number > 20, "the interrupts did not come at all"


def test_a_caller_is_told_that_another_executes(store: SqliteStore) -> None:
    """With no time to wait, at once; the error names the process."""
    with IdempotencyStore(store) as keys, IdempotencyStore(store, wait_s=0) as other:

        def produce() -> int:
            with pytest.raises(InProgress, match=f"got process {os.getpid()} still at it"):
                ThreadPoolExecutor(1).submit(other.execute, "k", never).result(30)
            assert other.find("k") is None
            return 1

        keys.execute("k", produce)
        assert other.execute("k", never).result == 1


def test_a_killed_executor_is_followed_by_one_at_once(tmp_path: Path) -> None:
    """Its claim has an hour to go, and nobody waits for that: the kernel knows that it is dead."""
    path = tmp_path / "s.db"
    with IdempotencyStore(db_path=path, wait_s=60) as keys:
        holder = started(HOLDER, path, 3600, 3600)
        with ThreadPoolExecutor(4) as pool:
            executed: list[object] = []
            waiting = [pool.submit(keys.execute, "k", lambda: noted(executed, "taken over")) for _ in range(4)]
            os.kill(holder.pid, signal.SIGKILL)
            results = [future.result(60).result for future in waiting]
        holder.communicate(timeout=30)
    assert results == ["taken over"] * 4
    assert executed == ["taken over"]


def test_a_stopped_executor_is_followed_after_its_claim(tmp_path: Path) -> None:
    """It lives, so only the expiry tells; when it wakes it gets the result of the other,
    and changes nothing.

    It never renews its claim, so that it is not stopped in a transaction, with the write lock of
    the database.
    """
    path = tmp_path / "s.db"
    with IdempotencyStore(db_path=path, wait_s=60) as keys:
        holder = started(HOLDER, path, 0.3, 0.001)
        os.kill(holder.pid, signal.SIGSTOP)
        assert keys.execute("k", lambda: "taken over").result == "taken over"
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.communicate("go\n", timeout=30)[0] == "taken over\n"
        assert keys.execute("k", never).result == "taken over"


def test_a_claim_is_renewed_while_its_owner_works(tmp_path: Path) -> None:
    """It lasts longer than it was granted for, as long as its process runs."""
    path = tmp_path / "s.db"
    with IdempotencyStore(db_path=path, wait_s=60) as keys:
        holder = started(HOLDER, path, 2, 3600)  # several stalls of the machine fit into it
        first = keys.store.key("idempotency/k")
        assert first is not None
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(keys.execute, "k", never)
            _until(lambda: _expiry(keys) > (first.claim_expires_at or 0) + 2_000_000)
            assert holder.communicate("go\n", timeout=30)[0] == "from the holder\n"
            assert waiting.result(60) == Execution("from the holder", is_replay=True)


def _expiry(keys: IdempotencyStore) -> int:
    row = keys.store.key("idempotency/k")
    return 0 if row is None else row.claim_expires_at or 0


def _until(condition: Callable[[], bool], turns: int = 3000) -> None:
    """Wait for a condition, at most half a minute."""
    event = threading.Event()
    for _ in range(turns):
        if condition():
            return
        event.wait(0.01)
    pytest.fail("Expected the condition to come true within 30 s.")


def test_a_generator_that_hangs_keeps_its_key_for_a_time_only(store: SqliteStore) -> None:
    """Past the limit its claim is not renewed; another executes,
    and the late result is the other's.
    """
    wake = threading.Event()
    with IdempotencyStore(store, claim_s=0.2, execution_s_max=0.1) as keys, ThreadPoolExecutor(1) as pool:
        begun = threading.Event()

        def hang() -> str:
            begun.set()
            wake.wait(60)
            return "late"

        hanging = pool.submit(keys.execute, "k", hang)
        assert begun.wait(30)
        assert keys.execute("k", lambda: "in time", wait_s=30).result == "in time"
        wake.set()
        assert hanging.result(30) == Execution("in time", is_replay=True)


def test_a_late_result_without_another_is_lost(store: SqliteStore) -> None:
    """Somebody claimed the key since and has no result:
    the late one is told, and nothing is stored.
    """
    with IdempotencyStore(store, wait_s=0) as keys:

        def produce() -> int:
            with store.transaction() as transaction:
                row = transaction.key("idempotency/k")
                assert row is not None
                transaction.delete_key(row.key, row.token, row.owner, status=row.status)
            return 1

        with pytest.raises(ExecutionLost):
            keys.execute("k", produce)
        assert keys.find("k") is None
        assert keys.execute("k", lambda: 2).result == 2


def test_tokens_rise_even_when_the_row_was_deleted(store: SqliteStore) -> None:
    """An old token is never granted again, whatever the clock does."""
    clock = ManualClock()
    claims = KeyClaims(store, ClaimPolicy(scope="s"), clock)
    tokens = []
    for step in ("let_go", "let_go", "abandon", "let_go"):
        mine = claims.begin("k", "0" * 64)
        assert isinstance(mine, KeyClaim)
        tokens.append(mine.token)
        getattr(claims, step)(mine)
        clock.jump(clock.now() + (60_000_000 if step == "abandon" else -5_000_000))
    claims.close()
    assert tokens == sorted(set(tokens))


def test_a_claim_that_is_not_trusted_any_more_says_so(store: SqliteStore, clock: ManualClock) -> None:
    """By the owner's own clock, before it has the effect it was granted for."""
    claims = KeyClaims(store, ClaimPolicy(scope="s", claim_s=10), clock)
    mine = claims.begin("k", "0" * 64)
    assert isinstance(mine, KeyClaim)
    claims.check(mine)
    clock.advance(9.5)
    with pytest.raises(ExecutionLost):
        claims.check(mine)
    claims.renew()
    claims.check(mine)
    claims.abandon(mine)
    claims.close()


@pytest.mark.parametrize(
    "result", [(1, 2), b"x", float("nan"), object(), {1: 2}], ids=lambda value: type(value).__name__
)
def test_a_result_that_cannot_be_stored_is_refused(keys: IdempotencyStore, result: object) -> None:
    """The first caller is not given what later ones would get differently; and the key is free."""
    with pytest.raises(InvalidResult):
        keys.execute("k", lambda: result)
    assert keys.execute("k", lambda: 1).result == 1


def test_bad_keys_and_requests_are_refused_before_anything_happens(keys: IdempotencyStore) -> None:
    """No row is written and nothing is executed."""
    with pytest.raises(InvalidKey):
        keys.execute("k" * 1024 * 1024, never)
    with pytest.raises(InvalidRequest):
        keys.execute("k", never, request={"t": float("nan")})
    assert key_counts(keys.store, "idempotency") == {}


@pytest.mark.parametrize(
    "setting",
    [
        {"ttl_s": 0},
        {"ttl_s": float("nan")},
        {"wait_s": -1},
        {"claim_s": 0},
        {"execution_s_max": -1},
        {"execution_s_max": float("nan")},
        *({"result_bytes_max": each} for each in (0, -1, float("nan"), 1.5, True, 2**63)),
        {"scope": ""},
        {"scope": "a/b"},
        {"scope": "ж"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(store: SqliteStore, setting: dict[str, Any]) -> None:
    """Each is named in the error."""
    with pytest.raises(InvalidSetting, match=next(iter(setting))):
        IdempotencyStore(store, **setting)


@pytest.mark.parametrize("busy_timeout_s", [0.2])
def test_a_locked_database_leaves_no_key_behind(store: SqliteStore, keys: IdempotencyStore) -> None:
    """Nothing was executed; once the lock is gone, everything goes on."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseLocked):
            keys.execute("k", never)
        other.execute("ROLLBACK")
    assert keys.execute("k", lambda: 1).result == 1


@pytest.mark.parametrize("busy_timeout_s", [0.2])
def test_a_database_that_locks_during_the_execution_frees_the_key(store: SqliteStore, keys: IdempotencyStore) -> None:
    """The result could not be stored, the caller is told,
    and the next one of this process executes at once.
    """
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        with pytest.raises(DatabaseLocked):
            keys.execute("k", lambda: other.execute("BEGIN IMMEDIATE") and 1)
        other.execute("ROLLBACK")
    assert keys.execute("k", lambda: 2).result == 2


def test_a_full_database_stores_nothing_and_frees_the_key(store: SqliteStore, keys: IdempotencyStore) -> None:
    """A result that does not fit is an error for its caller, and a smaller one fits afterwards."""
    connection = store.borrow()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 4}")
    store.give_back(connection)
    with pytest.raises(DatabaseFull):
        keys.execute("k", lambda: "x" * 1_000_000)
    assert keys.find("k") is None
    assert keys.execute("k", lambda: "small").result == "small"


def test_a_result_can_be_forgotten(keys: IdempotencyStore) -> None:
    """One that has ended; what executes is left alone."""
    assert not keys.forget("k")
    keys.execute("k", lambda: 1 if not keys.forget("k") else 2)
    assert keys.forget("k")
    assert keys.execute("k", lambda: 2) == Execution(2, is_replay=False)


def test_expired_results_are_discarded_and_others_stay(
    store: SqliteStore, keys: IdempotencyStore, clock: ManualClock
) -> None:
    """Only of this scope, only what has expired."""
    with IdempotencyStore(store, scope="other", clock=clock) as other:
        for number in range(7):
            keys.execute(f"short-{number}", lambda: 1, ttl_s=1)
            other.execute(f"short-{number}", lambda: 1, ttl_s=1)
        keys.execute("long", lambda: 1)
        clock.advance(2)
        assert keys.discard_expired() == 7
        assert keys.discard_expired() == 0
    assert key_counts(store, "idempotency") == {KeyStatus.DONE: 1}
    assert key_counts(store, "other") == {KeyStatus.DONE: 7}


def test_a_forked_child_claims_for_itself(tmp_path: Path) -> None:
    """A store that was used before a fork works in the child, whose claims are its own."""
    program = f"""
import os
from durable_agents.once.idempotency import IdempotencyStore
keys = IdempotencyStore(db_path={str(tmp_path / "s.db")!r})
keys.execute("parent", lambda: 1)
if (child := os.fork()) == 0:
    assert keys.execute("parent", lambda: 2).result == 1
    assert keys.execute("child", lambda: os.getpid()).result == os.getpid()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert keys.execute("child", lambda: 0).result == child
keys.close()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
