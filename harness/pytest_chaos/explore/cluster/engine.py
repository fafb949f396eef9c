"""The engine of batches: hands them to the process of a cluster, and gets their answers.

It is the seam's far end. ``Engine`` is what ``seam.BatchPool`` needs of it, in the manner of
``concurrent.futures``: hand in, and ask what has come. A test has engines of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection
from typing import IO, TYPE_CHECKING, Final, Protocol

import msgspec

from pytest_chaos.explore.cluster.address import Address, read_address, require_extra
from pytest_chaos.explore.cluster.wire import (
    BatchAnswer,
    BatchDone,
    Came,
    Drop,
    Failed,
    Hand,
    Opened,
    Said,
    Ship,
    Workers,
    name_of,
)
from pytest_chaos.explore.report import CLUSTER_ABSENT, CLUSTER_LOST

if TYPE_CHECKING:
    from collections.abc import Sequence

OPEN_S: Final = 1900.0
"""The most that the cluster's process takes until it says whether there is a cluster."""
CLOSE_S: Final = 10.0
"""The time in which a cluster's process ends by itself, once it is not wanted any more."""


class ClusterGone(Exception):  # noqa: N818 - says what happened
    """The cluster is not there, or not any more: ``signature`` and text of the finding."""

    def __init__(self, signature: str, text: str) -> None:
        super().__init__(text)
        self.signature = signature


class Engine(Protocol):
    """Hands batches to workers somewhere, and gets their answers."""

    workers: int
    """The batches that can be judged at one time."""

    def ship(self, content: bytes) -> str:
        """Make a parcel known to the workers, once; return its name."""

    def hand(self, number: int, parcel: str, content: bytes) -> None:
        """Hand in an encoded batch under a number. Raises ClusterGone."""

    def done(self, wait_s: float) -> list[BatchDone]:
        """Wait so long at most for a batch; return those that came. Raises ClusterGone."""

    def drop(self, numbers: Sequence[int]) -> None:
        """Want no answer to these batches any more."""


class ClusterEngine:
    """The engine of one exploration, with its channel to the process of a cluster."""

    def __init__(self, channel: Connection, address: str) -> None:
        self._channel = channel
        self._shipped = ""
        self._opened = False
        self.address = address
        self.workers = 0

    def open(self, timeout_s: float = OPEN_S) -> None:
        """Wait until the cluster has workers. Raises ClusterGone if it cannot be had."""
        timeout_s = min(timeout_s, OPEN_S)
        if not self._channel.poll(timeout_s):
            raise ClusterGone(CLUSTER_ABSENT, f"cluster {self.address} was not there within {timeout_s:g} s")
        while not self.workers and not self._opened:
            self._receive()

    def note(self, *, fixed_port: int) -> str:
        """Return where states are judged, in words."""
        if fixed_port:
            return f"cluster {self.address} was not used: a port that is fixed is one machine's"
        workers = "1 worker" if self.workers == 1 else f"{self.workers:,} workers"
        return f"states were judged by {workers} of cluster {self.address}"

    def ship(self, content: bytes) -> str:
        """Send a parcel to the cluster's process, which sends it to each worker once."""
        name = name_of(content)
        if name != self._shipped:
            self._send(Ship(name, content))
            self._shipped = name
        return name

    def hand(self, number: int, parcel: str, content: bytes) -> None:
        """Hand in a batch."""
        self._send(Hand(number, parcel, content))

    def done(self, wait_s: float) -> list[BatchDone]:
        """Return what came, and wait for the first."""
        found: list[BatchDone] = []
        while self._polled(0.0 if found else wait_s):
            if (came := self._receive()) is not None:
                answer = msgspec.msgpack.decode(came.answer, type=BatchAnswer) if came.answer else None
                found.append(BatchDone(came.number, answer, came.lost))
            elif not found:
                break
        return found

    def drop(self, numbers: Sequence[int]) -> None:
        """Let the cluster forget batches."""
        with contextlib.suppress(ClusterGone):
            self._send(Drop(tuple(numbers)))

    def close(self) -> None:
        """End the exploration's use of the cluster, which stays."""
        self._channel.close()

    def _polled(self, wait_s: float) -> bool:
        try:
            return self._channel.poll(wait_s)
        except OSError as error:
            raise self._process_ended() from error

    def _receive(self) -> Came | None:
        try:
            said: Said = msgspec.msgpack.decode(self._channel.recv_bytes(), type=Said)
        except (EOFError, OSError) as error:
            raise self._process_ended() from error
        if isinstance(said, Failed):
            raise ClusterGone(said.signature, said.text)
        if isinstance(said, Opened | Workers):
            self._opened = True
            self.workers = said.workers
            return None
        return said

    def _send(self, asked: Ship | Hand | Drop) -> None:
        try:
            self._channel.send_bytes(msgspec.msgpack.encode(asked))
        except OSError as error:
            if self._polled(0.0):
                self._receive()  # it may have said why
            raise self._process_ended() from error

    def _process_ended(self) -> ClusterGone:
        return ClusterGone(
            CLUSTER_LOST, f"the process of cluster {self.address} was ended: by hand, or for want of memory"
        )


class ClusterProcess:
    """The process of a cluster, as the process that started it sees it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._control, theirs = socket.socketpair()
        with theirs:
            module = "pytest_chaos.explore.cluster.process"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid()), address.text],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
            )

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def engine(self) -> ClusterEngine:
        """Return an engine for one exploration; it may be used in a fork."""
        ours, theirs = socket.socketpair()
        with theirs, contextlib.suppress(OSError):  # it was killed: the engine finds out
            socket.send_fds(self._control, [b"+"], [theirs.fileno()])
        return ClusterEngine(Connection(ours.detach()), self._address.text)

    def close(self) -> None:
        """End it and its workers. Closing twice is fine."""
        with self._lock:
            self._control.close()
            try:
                self._process.wait(CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.terminate()
                self._process.wait()
            self._output.close()


_PROCESSES: Final[dict[tuple[int, str], ClusterProcess]] = {}
"""The clusters of this process, by their addresses: each is started once."""


def check_address(text: str) -> Address:
    """Read an address. Raises UsageError if it is malformed, or what it needs is not installed."""
    address = read_address(text)
    require_extra(address)
    return address


def engine_of(text: str) -> ClusterEngine:
    """Return an engine for an exploration on the cluster of this address, which is started once.

    Raises UsageError for a malformed address.
    """
    address = check_address(text)
    key = (os.getpid(), address.text)  # a fork has none of its own
    process = _PROCESSES.get(key)
    if process is None or not process.is_alive:
        if not _PROCESSES:
            atexit.register(close_clusters)
        process = _PROCESSES[key] = ClusterProcess(address)
    return process.engine()


def close_clusters() -> None:
    """End the clusters that this process has started."""
    for key in [key for key in _PROCESSES if key[0] == os.getpid()]:
        _PROCESSES.pop(key).close()
