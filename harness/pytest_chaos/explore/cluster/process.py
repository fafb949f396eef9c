"""The process of a cluster: it alone imports Dask, and hands batches to Dask's workers.

Dask has threads, and an exploration forks: so they live apart. This process is started by exec
below a guardian of its own, which ends the workers that it has started when pytest ends, however it
ends. Each exploration gets a channel of its own through the control socket. What Dask warns of goes
to this process's output, which is told if the cluster cannot be had.

It is called ``python -m pytest_chaos.explore.cluster.process CONTROL PARENT ADDRESS``.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import socket
import sys
import time
import warnings
from importlib import import_module
from importlib.metadata import version
from multiprocessing.connection import Connection, Pipe, wait
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from pytest_chaos.explore.cluster.address import Address, Kind, read_address
from pytest_chaos.explore.cluster.wire import Asked, Came, Drop, Failed, Hand, Opened, Said, Ship, Workers
from pytest_chaos.explore.cluster.worker import judge_batch
from pytest_chaos.explore.launch import default_base, guard
from pytest_chaos.explore.report import CLUSTER_ABSENT, CLUSTER_LOST
from pytest_chaos.runtime import scratch

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECT_S: Final = 10.0
"""The time in which a scheduler has to answer."""
START_S: Final = 120.0
"""The time in which the first worker of this machine has to be there."""
REMOTE_START_S: Final = 60.0
"""The time in which a scheduler that runs has to have a worker."""
SLURM_START_S: Final = 1800.0
"""The time in which SLURM has to start the first job."""
NO_WORKER_S: Final = 60.0
"""The time for which there may be no worker, once there was one."""
END_S: Final = 8.0
"""The time in which the workers are ended in good order; then they are killed."""
_ASK_S: Final = 1.0
_SILENT_S: Final = 30.0
"""A scheduler that does not answer for so long is gone."""
OTHER_VERSION: Final = "harness:cluster-version"
_EXIT_ORPHANED: Final = 75
_CONTROL_BYTES: Final = 16


class Unavailable(Exception):  # noqa: N818 - says what happened
    """The cluster cannot be had: ``signature`` and text of the finding."""

    def __init__(self, signature: str, text: str) -> None:
        super().__init__(text)
        self.signature = signature


class _Cluster:
    """The client of a scheduler, and the cluster that this process has started, if it has."""

    def __init__(self, address: Address) -> None:
        dask, distributed = import_module("dask"), import_module("distributed")
        dask.config.set(
            {
                "distributed.admin.tick.limit": "1h",  # a machine that stands still is not told
                "distributed.comm.timeouts.connect": f"{CONNECT_S}s",
                "distributed.scheduler.allowed-failures": 0,  # what a lost worker had, the exploration hands in again
                "distributed.scheduler.worker-saturation": 2.0,
            }
        )
        logging.getLogger("distributed").setLevel(logging.ERROR)
        self.address = address
        self._own: Any = None
        if address.kind is Kind.REMOTE:
            _knock(address)
            try:
                self.client: Any = distributed.Client(address.text, timeout=CONNECT_S, set_as_default=False)
            except (OSError, ValueError, TypeError, ImportError) as error:
                text = f"cluster {address.text} does not answer as a scheduler of Dask: {type(error).__name__}: {error}"
                raise Unavailable(CLUSTER_ABSENT, _cut(text)) from error
        else:
            self._own = started(address)
            self.client = distributed.Client(self._own, set_as_default=False)
        self._wait_for_workers()
        self._check_versions()

    def _wait_for_workers(self) -> None:
        bound_s = {Kind.LOCAL: START_S, Kind.SLURM: SLURM_START_S, Kind.REMOTE: REMOTE_START_S}[self.address.kind]
        try:
            self.client.wait_for_workers(1, timeout=bound_s)
        except Exception as error:
            text = f"cluster {self.address.text} had no worker within {bound_s:,.0f} s: start one, or look at its logs"
            raise Unavailable(CLUSTER_ABSENT, text) from error

    def _check_versions(self) -> None:
        """Raise Unavailable for a scheduler or a worker of other versions."""
        own: dict[str, str] = {
            "python": ".".join(map(str, sys.version_info[:3])),
            "distributed": version("distributed"),
        }
        told = self.client.get_versions(check=False)
        for where, packages in [("scheduler", told["scheduler"]), *told["workers"].items()]:
            there = _versions_of(packages)
            for name, value in own.items():
                if there.get(name) != value:
                    raise Unavailable(OTHER_VERSION, other_version(self.address, where, name, there.get(name), value))
        ours = version("pytest-chaos")
        for where, theirs in self._ask_workers("pytest-chaos"):
            if theirs != ours:
                raise Unavailable(OTHER_VERSION, other_version(self.address, where, "pytest-chaos", theirs, ours))

    def _ask_workers(self, package: str) -> list[tuple[str, str | None]]:
        told = self.client.run(version, package, on_error="return")
        return [(where, value if isinstance(value, str) else None) for where, value in told.items()]

    def workers(self) -> int:
        """Return the number of threads of all workers. Raises OSError if the scheduler is gone."""
        try:
            cores = self.client.sync(self.client.scheduler.ncores, callback_timeout=_SILENT_S)
        except Exception as error:
            raise OSError(str(error)) from error
        return sum(cores.values())

    def close(self) -> None:
        """End the client, and the workers that were started."""
        with contextlib.suppress(Exception):
            self.client.close(timeout=2)
        with contextlib.suppress(Exception):
            if self._own is not None:
                self._own.close(timeout=5)


def _versions_of(packages: Any) -> dict[str, str | None]:
    if not isinstance(packages, dict):
        return {}
    there = dict(packages.get("packages", {}))
    python = str(there.get("python", "")).split(".final")[0]
    return {"python": python, "distributed": there.get("distributed")}


def other_version(address: Address, where: str, name: str, there: str | None, own: str) -> str:
    """Return the sentence about a part of a cluster that has another version."""
    has = f"{name} {there}" if there else f"no {name}"
    who = f"the {where}" if where == "scheduler" else f"the worker {where}"
    what = f"{who} of cluster {address.text} must have {name} {own}, as here; got {has}"
    return f"{what}. Install the same there, or leave the cluster out"


def _knock(address: Address) -> None:
    """Raise Unavailable if nobody listens there."""
    try:
        with socket.create_connection((address.host, address.port), timeout=CONNECT_S):
            return
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        text = f"cluster {address.text} must be a scheduler of Dask that answers within {CONNECT_S:g} s; got: {why}"
        raise Unavailable(CLUSTER_ABSENT, f"{text}. Start it (dask scheduler), or give another address") from error


def started(address: Address) -> Any:
    """Start the workers of an address, and return Dask's cluster."""
    if address.kind is Kind.SLURM:
        return slurm_cluster(address)
    return import_module("distributed").LocalCluster(
        n_workers=address.workers, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
    )


def slurm_cluster(address: Address, **more: Any) -> Any:
    """Return a cluster of SLURM jobs; queue, account and memory come from Dask's configuration."""
    settings = {"cores": 1, "processes": 1, "memory": "2GB", "job_name": "pytest-chaos", **more}
    cluster = import_module("dask_jobqueue").SLURMCluster(**settings)
    cluster.scale(jobs=address.workers)
    return cluster


class _Exploration:
    """One exploration under way: its channel, its parcels, and its batches."""

    def __init__(self, cluster: _Cluster, channel: Connection) -> None:
        self._cluster = cluster
        self._channel = channel
        self._parcels: dict[str, Any] = {}
        self._contents: dict[str, bytes] = {}
        self._batches: dict[int, Any] = {}
        self._done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._workers = 0
        self._asked_s = self._there_s = time.monotonic()

    def serve(self) -> None:
        """Serve it until its channel is closed. Raises Unavailable if the cluster is gone."""
        try:
            self._say(Opened(self._look()))
            while True:
                ready = wait([self._channel, self._woken], _ASK_S)
                if self._woken in ready:
                    os.read(self._woken, 4096)
                self._report()
                if self._channel in ready:
                    self._obey(msgspec.msgpack.decode(self._channel.recv_bytes(), type=Asked))
                if time.monotonic() - self._asked_s > _ASK_S:
                    self._look_after_workers()
        finally:
            self._release()

    def _say(self, said: Said) -> None:
        self._channel.send_bytes(msgspec.msgpack.encode(said))

    def _look(self) -> int:
        self._asked_s = time.monotonic()
        try:
            self._workers = self._cluster.workers()
        except OSError as error:
            text = f"the scheduler of cluster {self._cluster.address.text} went away"
            raise Unavailable(CLUSTER_LOST, text) from error
        if self._workers:
            self._there_s = self._asked_s
        return self._workers

    def _look_after_workers(self) -> None:
        before = self._workers
        if self._look() != before:
            self._say(Workers(self._workers))
        if not self._workers and self._batches and time.monotonic() - self._there_s > NO_WORKER_S:
            text = f"cluster {self._cluster.address.text} had no worker any more for {NO_WORKER_S:g} s"
            raise Unavailable(CLUSTER_LOST, text)

    def _obey(self, asked: Asked) -> None:
        if isinstance(asked, Ship):
            self._parcels.clear()
            self._contents = {asked.name: asked.content}
        elif isinstance(asked, Drop):
            for number in asked.numbers:
                if (future := self._batches.pop(number, None)) is not None:
                    future.cancel()
        else:
            self._hand(asked)

    def _hand(self, batch: Hand) -> None:
        client = self._cluster.client
        try:
            shipped = self._parcels.get(batch.parcel)
            if shipped is None or shipped.status != "finished":
                shipped = client.scatter(self._contents[batch.parcel], broadcast=True, hash=True)
                self._parcels[batch.parcel] = shipped
            key = f"chaos-{os.getpid()}-{id(self)}-{batch.number}"
            future = client.submit(judge_batch, shipped, batch.parcel, batch.content, key=key, pure=False)
        except Exception as error:  # noqa: BLE001 - whatever Dask raises, the batch is not under way
            self._look()
            self._say(Came(batch.number, lost=_cut(f"{type(error).__name__}: {error}")))
            return
        self._batches[batch.number] = future
        future.add_done_callback(lambda done, number=batch.number: self._note(number, done))

    def _note(self, number: int, future: Any) -> None:
        """Note that a batch came back; Dask calls it in a thread of its own."""
        self._done.put((number, future))
        with contextlib.suppress(OSError):  # it is full: its reader is woken anyway
            os.write(self._wake, b".")

    def _report(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                number, future = self._done.get_nowait()
                if self._batches.pop(number, None) is not None:
                    self._say(_came(number, future))

    def _release(self) -> None:
        for future in self._batches.values():
            with contextlib.suppress(Exception):
                future.cancel()
        self._batches.clear()
        self._parcels.clear()
        for descriptor in (self._woken, self._wake):
            os.close(descriptor)


def _came(number: int, future: Any) -> Came:
    try:
        return Came(number, answer=future.result(timeout=CONNECT_S))
    except BaseException as error:  # noqa: BLE001 - Dask raises what the worker raised, or CancelledError
        return Came(number, lost=_cut(f"{type(error).__name__}: {error}"))


def _cut(text: str) -> str:
    return " ".join(text.split())[:500]


def serve(control: socket.socket, address: Address) -> None:
    """Have a cluster, and serve one exploration after the other until the control socket closes."""
    warnings.simplefilter("default")
    cluster: _Cluster | None = None
    failed: Failed | None = None
    try:
        cluster = _Cluster(address)
    except Unavailable as error:
        failed = Failed(error.signature, str(error))
    except Exception as error:  # noqa: BLE001 - Dask, or SLURM, raises whatever it likes
        failed = Failed(CLUSTER_ABSENT, _cut(f"cluster {address.text} cannot be had: {type(error).__name__}: {error}"))
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, _CONTROL_BYTES, 1)
        if not descriptors:
            break
        with Connection(descriptors[0]) as channel, contextlib.suppress(EOFError, OSError):
            if failed is None and cluster is not None:
                failed = _served(cluster, channel)
            if failed is not None:
                channel.send_bytes(msgspec.msgpack.encode(failed))
                channel.recv_bytes()  # until it has read that, and goes
    if cluster is not None:
        cluster.close()


def _served(cluster: _Cluster, channel: Connection) -> Failed | None:
    """Serve an exploration; return why the cluster is gone, if it is."""
    try:
        _Exploration(cluster, channel).serve()
    except Unavailable as error:
        return Failed(error.signature, str(error))
    except (EOFError, OSError):  # the exploration is over
        pass
    return None


def main() -> NoReturn:
    """Serve the process that started this one; never returns."""
    descriptor, parent = map(int, sys.argv[1:3])
    address = read_address(sys.argv[3])
    asking = os.pidfd_open(parent) if os.getppid() == parent else -1
    if asking < 0:
        os._exit(_EXIT_ORPHANED)
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    folder = scratch.create(default_base())

    def work(_: Callable[..., object]) -> None:
        os.chdir(folder)  # Dask's local directories go with it
        serve(control, address)
        atexit._run_exitfuncs()  # noqa: SLF001 - it ends by _exit, and has semaphores to unlink

    _, theirs = Pipe()
    guard(work, theirs, asking, [folder], beside=[control], grace_s=END_S)


if __name__ == "__main__":
    main()
