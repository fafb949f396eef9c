"""Servers that others wrote, each with a client that says what was acknowledged."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import os
import pwd
import socket
import sqlite3
import subprocess
import sys
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarios.targets.foreign.base import Foreign, value_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_chaos import Marks

SOURCES = Path(__file__).with_name("sources")
_ANSWER_S = 30.0
_POSTGRES = Path("/usr/lib/postgresql/15/bin")


class Server(Foreign):
    """A server: ``put`` is a request of the client, ``found`` asks the server that came up."""

    port = 0
    keys = 2

    @abstractmethod
    def serve(self, directory: Path) -> list[str]:
        """Return the server's command."""

    @abstractmethod
    def put(self, key: int) -> None:
        """Have a key put, and return when the server says that it is."""

    def drive(self, directory: Path, marks: Marks) -> None:
        """Have the keys put, and acknowledge each."""
        del directory
        for key in range(1, self.keys + 1):
            marks.intent("put", key)
            self.put(key)
            marks.ack("put", key)


class Redis(Server):
    """Redis with an append-only file that is synced before each answer."""

    name = "Redis, appendfsync always"
    promise = "With appendfsync always a write that was answered is in the synced append-only file."
    source = "redis.io, 'Redis persistence', 'How durable is the append only file?'"
    commands = ("redis-server",)
    ready = "output:Ready to accept connections"
    fsync = "always"
    damage = (OSError, ValueError)

    def serve(self, directory: Path) -> list[str]:
        """Start it with the append-only file alone."""
        only_aof = ["--save", "", "--appendonly", "yes", "--appendfsync", self.fsync]
        return ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory), *only_aof]

    def put(self, key: int) -> None:
        """Set the key."""
        with self._asked(f"SET {key} {value_of(key).decode().replace(' ', '-')}") as answer:
            if (said := answer.readline().strip()) != b"+OK":
                message = f"SET was answered by {said!r}"
                raise ValueError(message)

    def found(self, directory: Path) -> Iterable[int]:
        """Ask for the keys."""
        del directory
        with self._asked("KEYS *") as answer:
            count = int(answer.readline()[1:])
            return [int(line) for line in (answer.readline() for _ in range(2 * count)) if not line.startswith(b"$")]

    @contextlib.contextmanager
    def _asked(self, request: str) -> Iterator[Any]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=_ANSWER_S) as connection:
            connection.sendall(f"{request}\r\n".encode())
            with connection.makefile("rb") as answer:
                yield answer


class RedisEverySecond(Redis):
    """Redis with the default append-only file, which is synced once a second."""

    name = "Redis, appendfsync everysec"
    promise = "With appendfsync everysec a power loss loses at most the writes of one second or two."
    fsync = "everysec"


class Http(Server):
    """An application of ours on another's HTTP server: a commit of SQLite before each answer."""

    promise = "An answer is sent when the application has made it; the row is committed before."
    damage = (OSError, ValueError, http.client.HTTPException)

    def put(self, key: int) -> None:
        """Post the key."""
        self._ask("POST", f"/{key}")

    def found(self, directory: Path) -> Iterable[int]:
        """Get the keys."""
        del directory
        return [int(each) for each in self._ask("GET", "/").split()]

    def _ask(self, method: str, path: str) -> str:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=_ANSWER_S)) as connection:
            connection.request(method, path)
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status != http.HTTPStatus.OK:
                message = f"{method} {path} was answered by {answer.status}: {text[:200]}"
                raise ValueError(message)
            return text


class Uvicorn(Http):
    """uvicorn with an ASGI application, whose database work is in a thread."""

    name = "uvicorn"
    source = "uvicorn.dev; sqlite.org/pragma.html#pragma_synchronous"
    modules = ("uvicorn",)

    def serve(self, directory: Path) -> list[str]:
        """Start it with one worker."""
        del directory
        where = ["--app-dir", str(SOURCES), "--host", "127.0.0.1", "--port", str(self.port)]
        return [sys.executable, "-m", "uvicorn", "rows_app:asgi", "--no-access-log", *where]


class Gunicorn(Http):
    """gunicorn with two worker processes and a WSGI application."""

    name = "gunicorn, two workers"
    source = "docs.gunicorn.org; sqlite.org/pragma.html#pragma_synchronous"
    modules = ("gunicorn",)

    def serve(self, directory: Path) -> list[str]:
        """Start the master and two workers."""
        where = ["--pythonpath", str(SOURCES), "--bind", f"127.0.0.1:{self.port}", "--worker-tmp-dir", str(directory)]
        return [sys.executable, "-m", "gunicorn", "rows_app:wsgi", "--workers", "2", "--no-control-socket", *where]


class Postgres(Server):
    """PostgreSQL with its defaults, and the client that comes with it."""

    name = "PostgreSQL 15"
    promise = "A committed transaction survives a crash and a power loss, if the disk keeps what it says it has."
    source = "postgresql.org, 'Reliability and the Write-Ahead Log'; ALICE 2014: 1 vulnerability in 9.1"
    ready = "output:ready to accept connections"
    keys = 1
    damage = (subprocess.CalledProcessError, ValueError)

    def missing(self) -> str:
        """Look for Debian's server."""
        return "" if (_POSTGRES / "postgres").is_file() else "Debian's postgresql-15"

    def setup(self, directory: Path) -> None:
        """Make a cluster with a table."""
        cluster = directory / "data"
        cluster.mkdir(mode=0o700)
        self._give_away(directory)
        self._output("initdb", "-D", str(cluster), "--auth=trust", "--username=chaos", "--no-sync", "--no-instructions")

    def serve(self, directory: Path) -> list[str]:
        """Start it on a port, without a socket file."""
        self._give_away(directory)
        options = ["-c", "unix_socket_directories=", "-c", "autovacuum=off", "-c", "max_connections=8"]
        small = ["-c", "shared_buffers=1MB", "-c", "max_wal_size=64MB", "-c", "logging_collector=off"]
        server = [str(_POSTGRES / "postgres"), "-D", str(directory / "data"), "-p", str(self.port)]
        return [*self._as_somebody(), *server, *options, *small]

    def put(self, key: int) -> None:
        """Insert a row, which commits."""
        self._sql(f"CREATE TABLE IF NOT EXISTS rows (key int); INSERT INTO rows VALUES ({key:d})")  # noqa: S608 - a number

    def found(self, directory: Path) -> Iterable[int]:
        """Ask for the keys."""
        del directory
        if self._sql("SELECT to_regclass('rows') IS NOT NULL") == "f":
            return []
        return [int(each) for each in self._sql("SELECT key FROM rows").split()]

    def _sql(self, words: str) -> str:
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "chaos", "-d", "postgres"]
        return self._output("psql", *where, "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", words)

    def _output(self, program: str, *words: str) -> str:
        done = subprocess.run(
            [*self._as_somebody(), str(_POSTGRES / program), *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            message = f"{program} exits {done.returncode}: {done.stderr.strip()[-300:]}"
            raise ValueError(message)
        return done.stdout.strip()

    def _as_somebody(self) -> list[str]:
        """Return the start of a command: PostgreSQL refuses to run as root."""
        if os.geteuid():
            return []
        user = pwd.getpwnam("postgres")
        who = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        through_private_folders = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        return ["setpriv", *who, *through_private_folders]

    def _give_away(self, directory: Path) -> None:
        if os.geteuid():
            return
        user = pwd.getpwnam("postgres")
        for folder, _, files in os.walk(directory):
            for path in (folder, *(os.path.join(folder, each) for each in files)):  # noqa: PTH118 - thousands
                os.chown(path, user.pw_uid, user.pw_gid)


class Huey(Server):
    """huey's consumer with two workers; the client waits for the result of each task."""

    name = "huey, two workers"
    promise = "A task runs at most once; its result is stored when it has ended. fsync=True makes the queue durable."
    source = "huey.readthedocs.io, SqliteHuey (fsync) and 'Consumer', at-most-once"
    modules = ("huey",)
    ready = "output:Huey consumer started"
    damage = (sqlite3.DatabaseError, ValueError)

    def serve(self, directory: Path) -> list[str]:
        """Start the consumer."""
        consumer = str(Path(sys.executable).with_name("huey_consumer"))
        os.environ["ROWS_DIRECTORY"] = str(directory)
        pace = ["--delay", "0.05", "--no-periodic", "--max-delay", "0.05"]
        return [
            "env",
            f"PYTHONPATH={SOURCES}",
            f"ROWS_DIRECTORY={directory}",
            sys.executable,
            consumer,
            "rows_tasks.huey",
            "-w",
            "2",
            *pace,
        ]

    def drive(self, directory: Path, marks: Marks) -> None:
        """Load the application's tasks from where the consumer has them, then enqueue them."""
        os.environ["ROWS_DIRECTORY"] = str(directory)
        sys.path.insert(0, str(SOURCES))
        self._tasks = importlib.import_module("rows_tasks")
        super().drive(directory, marks)

    def put(self, key: int) -> None:
        """Enqueue a task and wait for its result."""
        self._tasks.put(key)(blocking=True, timeout=_ANSWER_S)

    def found(self, directory: Path) -> Iterable[int]:
        """Read what the tasks have written. Raises ValueError for an effect that is there twice."""
        with contextlib.closing(sqlite3.connect(directory / "rows.db")) as rows:
            if not rows.execute("SELECT count(*) FROM sqlite_master WHERE name = 'rows'").fetchone()[0]:
                return []
            found = [key for (key,) in rows.execute("SELECT key FROM rows")]
        if len(found) != len(set(found)):
            message = f"a task ran twice: {found}"
            raise ValueError(message)
        return found
