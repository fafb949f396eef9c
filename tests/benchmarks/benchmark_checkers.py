"""The checkers that prove: processor time and memory, on published and on generated histories.

    python tests/benchmarks/benchmark_checkers.py

The 108 histories of porcupine (github.com/anishathalye/porcupine, test_data, MIT) are read from
../shared/data where they are; Go's own checker takes 0.67 s for them on an idle core.
"""

from __future__ import annotations

import random
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pytest_chaos.checkers.elements import total_queue
from pytest_chaos.checkers.isolation import list_append, rw_register
from pytest_chaos.checkers.linearizability import linearizable, models
from pytest_chaos.model.calls import Call
from pytest_chaos.model.interchange import read_calls, to_json

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]


def measured(name: str, goal: str, work: Callable[[], object]) -> None:
    """Print processor seconds of one thing, and the memory of the process so far."""
    began = time.process_time()
    found = work()
    spent = time.process_time() - began
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:58} {spent:6.2f} s (goal {goal}), {memory_mb:5.0f} MB so far: {found}")


def porcupine(folder: Path) -> str:
    """Judge the published histories, reading included."""
    right = 0
    rows = [line.split("\t") for line in (folder / "expected.tsv").read_text().splitlines()[1:]]
    for name, expected in rows:
        content = (folder / name).read_bytes()
        if name.startswith("kv/"):
            model: Any = models.MapModel(missing="")
        else:
            model = "cas-register"
            content = re.sub(rb":timed-out", rb"nil", content)
        found = linearizable(model).judge(read_calls(content.splitlines(keepends=True)))
        right += [finding.kind for finding in found][:1] == ([] if expected == "true" else ["safety"])
    return f"{right} of {len(rows)} verdicts"


def transactions(count: int) -> list[Call]:
    """Return a serializable list-append history of 20 clients on 10 keys at a time."""
    draw = random.Random(1)  # noqa: S311 - the same history in each run
    lists: dict[int, list[int]] = {}
    keys = list(range(10))
    calls = []
    for number in range(count):
        steps: list[list[Any]] = []
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(keys))
            values = lists.setdefault(keys[place], [])
            if draw.random() < 0.5:
                values.append(len(values) + 1)
                steps.append(["append", keys[place], len(values)])
                if len(values) == 256:
                    keys[place] = max(keys) + 1
            else:
                steps.append(["r", keys[place], list(values)])
        calls.append(Call("txn", None, steps, steps, number % 20, 20 * number, 20 * number + draw.randrange(1, 300)))
    return calls


def registers(count: int) -> list[Call]:
    """Return the same transactions with the last value of each list."""
    calls = []
    for call in transactions(count):
        steps = [
            ["w", key, value] if kind == "append" else ["r", key, value[-1] if value else None]
            for kind, key, value in call.output
        ]
        calls.append(Call("txn", None, steps, steps, call.process, call.start, call.end))
    return calls


def queue(count: int) -> list[Call]:
    """Return as many enqueues as dequeues."""
    put = [Call("enqueue", None, nth, None, nth % 10, 2 * nth, 2 * nth + 1) for nth in range(count // 2)]
    return put + [
        Call("dequeue", None, None, call.input, 0, call.start + count, call.start + count + 1) for call in put
    ]


def main() -> None:
    """Measure the goals of the checkers."""
    shared = [place / "shared" / "data" / "porcupine" for place in (ROOT.parent, ROOT.parent.parent)]
    if folder := next((place for place in shared if place.exists()), None):
        measured("porcupine's 108 histories, reading included", "3 s", lambda: porcupine(folder))
    else:
        print("porcupine's histories are not beside the checkout (../shared/data): skipped")
    calls = transactions(100_000)
    measured("list-append, 100,000 transactions, strict serializable", "5 s", lambda: list_append().judge(calls))
    values = registers(100_000)
    measured("rw-register, 100,000 transactions, strict serializable", "5 s", lambda: rw_register().judge(values))
    with tempfile.TemporaryFile() as file:
        file.writelines(to_json(calls))
        file.seek(0)
        measured("reading these from JSON", "none", lambda: len(read_calls(file)))
    passed = queue(1_000_000)
    measured("total-queue, 1,000,000 operations", "5 s", lambda: total_queue().judge(passed))


if __name__ == "__main__":
    main()
