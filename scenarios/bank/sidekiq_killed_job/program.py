"""Jobs in a list of a Redis server, and a worker that takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis import Redis

if TYPE_CHECKING:
    from pytest_chaos import Marks

SOCKET = "redis.sock"
JOBS = 3


def send(marks: Marks) -> None:
    """Put the jobs into the list."""
    server = Redis(unix_socket_path=SOCKET)
    for number in range(1, JOBS + 1):
        server.lpush("jobs", number)
        marks.ack("send", number)


def work(marks: Marks, *, is_mended: bool) -> None:
    """Do the jobs that are there."""
    server = Redis(unix_socket_path=SOCKET)
    while is_mended and server.lmove("working", "jobs", "LEFT", "RIGHT") is not None:
        pass
    while (job := take(server, is_mended=is_mended)) is not None:
        marks.note("begun", int(job))
        marks.ack("done", int(job))
        if is_mended:
            server.lrem("working", 1, job)


def take(server: Redis, *, is_mended: bool) -> bytes | None:
    """Take the oldest job; mended, it stays in the server until it is done."""
    job = server.lmove("jobs", "working", "RIGHT", "LEFT") if is_mended else server.rpop("jobs")
    return bytes(job) if isinstance(job, bytes) else None
