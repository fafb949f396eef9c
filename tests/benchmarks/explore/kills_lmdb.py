"""Kill a program that commits to LMDB with a writable map, at random moments; run it as a script.

Stores through memory are no calls, so no exploration can stop between two of them. Real kills at
random moments can. After each, all that was acknowledged has to be there, and no part of a commit
alone. A kill undoes no store: this tells nothing of a power loss.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
from typing import Final

import lmdb

_ROWS: Final = 8
_VALUE: Final = b"x" * 300
_ALIVE_S: Final = 0.03


def commit(folder: str, told: int) -> None:
    """Commit without an end, and tell each number."""
    environment = lmdb.open(folder, map_size=1 << 24, writemap=True)
    number = 0
    while True:
        with environment.begin(write=True) as transaction:
            for row in range(_ROWS):
                transaction.put(b"%06d-%d" % (number, row), _VALUE)
        os.write(told, b"%06d\n" % number)
        number += 1


def killed(folder: str, alive_s: float) -> list[int]:
    """Run the program, and kill it so long after its first commit; return what it has told."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        commit(folder, writer)
    os.close(writer)
    said = os.read(reader, 7)
    select.select([], [], [], alive_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(reader, 1 << 16):
        said += more
    os.close(reader)
    return [int(line) for line in said.split()]


def found(folder: str) -> dict[int, int]:
    """Return how many whole rows each commit has."""
    rows: dict[int, int] = {}
    with lmdb.open(folder, map_size=1 << 24, writemap=True) as environment, environment.begin() as transaction:
        for key, value in transaction.cursor():
            rows[int(key[:6])] = rows.get(int(key[:6]), 0) + (value == _VALUE)
    return rows


def main() -> int:
    """Kill for so many seconds, print what was lost, and return 0 if it was nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    ends_s = time.monotonic() + parser.parse_args().seconds
    randomness = random.Random(7)  # noqa: S311 - moments, no secrets
    kills = told = lost = torn = 0
    while time.monotonic() < ends_s:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            numbers = killed(folder, randomness.random() * _ALIVE_S)
            rows = found(folder)
        kills, told = kills + 1, told + len(numbers)
        lost += sum(rows.get(number, 0) != _ROWS for number in numbers)
        torn += sum(count != _ROWS for count in rows.values())
    print(f"{kills:,} kills, {told:,} commits told: {lost:,} lost, {torn:,} torn")
    return 0 if lost == torn == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
