"""What a worker of Dask runs: it hands each batch to a bench that has the batch's parcel."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection
from typing import IO, Final

SAID_BYTES_MAX: Final = 2_000
"""The end of what a bench printed that is told when it ended."""


class BenchEnded(Exception):  # noqa: N818 - says what happened
    """The bench ended while it judged: its batch is lost, and has to be handed in again."""


class _Handle:
    """A bench that this worker has started."""

    def __init__(self, name: str, parcel: bytes) -> None:
        self.name = name
        ours, theirs = socket.socketpair()
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the bench
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "pytest_chaos.explore.cluster.bench",
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
            )
        self._channel = Connection(ours.detach())
        self._send(parcel)

    @property
    def is_alive(self) -> bool:
        """Whether it still runs: an idle one ends by itself."""
        return self._process.poll() is None

    def ask(self, batch: bytes) -> bytes:
        """Have a batch judged. Raises BenchEnded."""
        self._send(batch)
        try:
            return self._channel.recv_bytes()
        except (EOFError, OSError) as error:
            raise BenchEnded(self._ended()) from error

    def _send(self, content: bytes) -> None:
        try:
            self._channel.send_bytes(content)
        except OSError as error:
            raise BenchEnded(self._ended()) from error

    def _ended(self) -> str:
        self._end()
        self._output.seek(0)
        said = self._output.read()[-SAID_BYTES_MAX:].decode(errors="replace").strip()
        self._output.close()
        return f"the process that judges ended{f'; it printed: {said}' if said else ''}"

    def _end(self) -> None:
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()  # the stand-in passes it on, and the guardian cleans up
        self._process.wait()

    def close(self) -> None:
        """End it, and all that it has started. Closing twice is fine."""
        self._end()
        self._output.close()


class Benches:
    """The benches of this worker, at most one for each of its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Handle] = []

    def take(self, name: str, parcel: bytes) -> _Handle:
        """Return an idle bench that has this parcel, or a new one in the place of another's."""
        with self._lock:
            alive = [bench for bench in self._idle if bench.is_alive]
            ended = [bench for bench in self._idle if bench not in alive]
            same = next((bench for bench in alive if bench.name == name), None)
            others = [bench for bench in alive if bench.name != name]
            self._idle = [bench for bench in alive if bench.name == name and bench is not same]
        for bench in (*ended, *others):
            bench.close()
        return same or _Handle(name, parcel)

    def give_back(self, bench: _Handle) -> None:
        """Keep a bench for the next batch."""
        with self._lock:
            self._idle.append(bench)

    def judge(self, parcel: bytes, name: str, batch: bytes) -> bytes:
        """Have a batch judged; the answer is a ``wire.Answer``. Raises BenchEnded."""
        bench = self.take(name, parcel)
        try:
            answer = bench.ask(batch)
        except BaseException:
            bench.close()
            raise
        self.give_back(bench)
        return answer

    def close(self) -> None:
        """End the idle benches."""
        with self._lock:
            idle, self._idle = self._idle, []
        for bench in idle:
            bench.close()


_BENCHES: Final = Benches()


def judge_batch(parcel: bytes, name: str, batch: bytes) -> bytes:
    """Have a batch judged by a bench of this worker."""
    return _BENCHES.judge(parcel, name, batch)
