"""Compare cache hits with bare SQLite and with diskcache, interleaved in one process;
run it as a script.

Printed are medians in microseconds and ratios (raw or peer / ours: 1 is as fast, more is faster),
each with the target of the project. "Raw" is what anyone would write by hand: a SELECT by a text
key on a connection that maps the file into memory, of a table of two columns, and msgspec's
decoder. Each hit is of another key, in an order drawn once.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib
import pstats
import random
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from durable_agents import Generation, LLMOutputCache
from durable_agents.once.requests import request_hash

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only this folder is importable
from tests.benchmarks.benchmark_checkpoints import numbered_medians_us

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_KEYS: Final = 2000
_ROUNDS: Final = 20_000
_MAPPED_BYTES: Final = 1024 * 1024 * 1024


def request_of(number: int) -> dict[str, Any]:
    """Return a request of some hundred bytes."""
    messages = [{"role": "system", "content": "You are an agent."}, {"role": "user", "content": f"question {number}"}]
    return {"model": "a-model", "messages": messages, "parameters": {"temperature": 0, "top_p": 1, "max_tokens": 1000}}


def output_of(number: int) -> dict[str, Any]:
    """Return an output of 1 to 4 KB."""
    words = 40 + number % 120
    return {"role": "assistant", "content": " ".join(f"word{number + place}" for place in range(words)), "choice": 0}


class Raw:
    """A table of keys and values, by hand."""

    def __init__(self, path: Path, rows: list[tuple[str, bytes]]) -> None:
        """Make the file, and a connection that reads it through memory."""
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
        self._connection.execute("CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB)")
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT INTO kv VALUES (?, ?)", rows)
        self._connection.execute("COMMIT")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._decode = msgspec.json.Decoder().decode

    def get(self, key: str) -> bytes:
        """Return the bytes under a key."""
        value: bytes = self._connection.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()[0]
        return value

    def decoded(self, key: str) -> Any:
        """Return the value under a key."""
        return self._decode(self.get(key))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def filled(folder: Path, keys: int) -> tuple[LLMOutputCache, list[str]]:
    """Return a cache with so many outputs, and their keys."""
    cache = LLMOutputCache(db_path=folder / "ours.db")
    for number in range(keys):
        request = request_of(number)
        cache.get_or_generate(lambda number=number: Generation(output_of(number), 100), **request)  # type: ignore[misc]
    names = [cache.key(**request_of(number)) for number in range(keys)]
    with sqlite3.connect(folder / "ours.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return cache, names


def unreachable() -> Generation:
    """Fail, as a generation that is not to happen."""
    raise AssertionError


def compare(folder: Path, keys: int, rounds: int) -> Iterator[str]:
    """Hits by request and by ready key, raw and of peers."""
    cache, names = filled(folder, keys)
    encoded = [msgspec.json.encode([output_of(number), 100, 1]) for number in range(keys)]
    raw = Raw(folder / "raw.db", list(zip(names, encoded, strict=True)))
    requests = [request_of(number) for number in range(keys)]
    keyed = cache._keys
    work: dict[str, Callable[[int], object]] = {
        "raw": lambda number: raw.get(names[number]),
        "raw+decode": lambda number: raw.decoded(names[number]),
        "ours by request": lambda number: cache.get_or_generate(unreachable, **requests[number]),
        "ours by key, decoded": lambda number: cache.get(names[number]),
        "ours by key": lambda number: keyed.find_encoded(names[number], names[number]),
        "hash of a request": lambda number: request_hash(requests[number]),
    }
    try:
        diskcache: Any = importlib.import_module("diskcache")
    except ImportError:
        diskcache = None
    if diskcache is not None:
        peer = diskcache.Cache(str(folder / "diskcache"))
        for name, value in zip(names, encoded, strict=True):
            peer.set(name, value)
        work["diskcache"] = lambda number: peer.get(names[number])
    order = random.Random(7)  # noqa: S311 - the same order in every run
    medians = numbered_medians_us(work, [order.randrange(keys) for _ in range(rounds)])
    yield "medians: " + ", ".join(f"{name} {value:.1f} us" for name, value in medians.items())
    ratio = medians["raw+decode"] / medians["ours by request"]
    yield f"hit, from request to decoded value: {ratio:.2f} of raw SELECT and decode (target 0.40)"
    yield f"hit by ready key: {medians['raw'] / medians['ours by key']:.2f} of raw SELECT (target 0.7)"
    if diskcache is not None:
        ratio = medians["diskcache"] / medians["ours by key"]
        yield f"hit by ready key: {ratio:.2f} of diskcache.Cache.get (target 0.9)"
    raw.close()
    cache.close()


def profile(folder: Path, keys: int, rounds: int) -> None:
    """Print where the time of a hit goes."""
    cache, _ = filled(folder, keys)
    requests = [request_of(number) for number in range(keys)]
    profiler = cProfile.Profile()
    profiler.enable()
    for round_ in range(rounds):
        cache.get_or_generate(unreachable, **requests[round_ % keys])
    profiler.disable()
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(14)
    cache.close()


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path.home(), help="a folder on the disk to measure")
    parser.add_argument("--keys", type=int, default=_KEYS, help="how many outputs there are")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="how many hits of each kind")
    parser.add_argument("--profile", action="store_true", help="print a profile of hits, and nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="benchmark-idempotency-") as name:
        if options.profile:
            profile(Path(name), options.keys, options.rounds)
            return
        for line in compare(Path(name), options.keys, options.rounds):
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
