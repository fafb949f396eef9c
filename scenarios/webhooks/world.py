"""The world outside of the core in some scenarios: issues, commits and the time.

Every program of such a scenario reads the same folder. ``WorldClock`` is the machine's clock plus a
shift that lies in a file, so that hours pass for all of them at once while nobody waits.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import weakref
from pathlib import Path
from typing import Any, Final

from durable_agents import SystemClock

_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS issues (
        number INTEGER PRIMARY KEY, project TEXT, key TEXT UNIQUE, state TEXT, repo TEXT, updated_at TEXT
    );
    CREATE TABLE IF NOT EXISTS commits (
        number INTEGER PRIMARY KEY, repo TEXT, branch TEXT, sha TEXT, state TEXT, UNIQUE (repo, sha)
    );
    CREATE TABLE IF NOT EXISTS hooks (source TEXT PRIMARY KEY, url TEXT);
    CREATE TABLE IF NOT EXISTS moods (kind TEXT PRIMARY KEY, answers_left INTEGER, value TEXT);
    CREATE TABLE IF NOT EXISTS sent (
        number INTEGER PRIMARY KEY, source TEXT, event TEXT, delivery_id TEXT, outcome TEXT, url TEXT, headers TEXT,
        body TEXT
    );
"""


class WorldClock(SystemClock):
    """The machine's clock, advanced by the seconds in the file ``clock`` of a folder."""

    __slots__ = ("_file",)

    def __init__(self, folder: str | Path) -> None:
        self._file = Path(folder, "clock")

    def now(self) -> int:
        """Return the world's time."""
        shift = self._shift()  # first: whoever sees a shift tells a time that is not before it was made
        return shift + super().now()

    def monotonic(self) -> int:
        """Return a reading that has moved as far."""
        shift = self._shift()
        return shift + super().monotonic()

    def boot(self) -> None:
        """Have leases compared by ``now``: the models of scenarios reckon with one moment."""

    def advance(self, duration_s: float) -> None:
        """Advance the time of all processes with this folder."""
        beside = self._file.with_name("clock-next")
        beside.write_text(str(self._shift() + round(duration_s * 1_000_000)), encoding="ascii")
        beside.replace(self._file)

    def _shift(self) -> int:
        try:
            return int(self._file.read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0


class World:
    """Issues, commits, the addresses of webhooks, and the moods of the tracker; in a file."""

    def __init__(self, folder: str | Path) -> None:
        """Open the world of the folder, or make it."""
        self.folder = Path(folder)
        self.clock = WorldClock(folder)
        self._lock = threading.Lock()
        file = self.folder / "world.db"
        self._connection = sqlite3.connect(file, timeout=30, isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._connection.close)
        self._connection.execute("PRAGMA synchronous=OFF")  # no power is lost: it is the world of one run
        self._connection.executescript(_SCHEMA)

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Execute one statement and return its rows. May be called by several threads."""
        with self._lock:
            return self._connection.execute(statement, parameters).fetchall()

    def hook(self, source: str, url: str) -> None:
        """Set the address of a source (``tracker``, ``github``, ``gitea``) from now on."""
        self.rows("INSERT OR REPLACE INTO hooks VALUES (?, ?)", source, url)

    def hook_of(self, source: str) -> str | None:
        """Return the address of a source, or None."""
        return next((str(url) for (url,) in self.rows("SELECT url FROM hooks WHERE source = ?", source)), None)

    def set_issue(self, project: str, key: str, state: str, repo: str) -> bool:
        """Put an issue into a state; return whether that changed it."""
        before = self.rows("SELECT state FROM issues WHERE key = ?", key)
        self.rows(
            "INSERT INTO issues (project, key, state, repo, updated_at) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET state = excluded.state, updated_at = excluded.updated_at",
            *(project, key, state, repo, str(self.clock.now())),
        )
        return before != [(state,)]

    def issues(self, project: str, state: str, after: int, limit: int) -> list[tuple[Any, ...]]:
        """Return a page of issues: number, key, state, repo, moment of the last change."""
        return self.rows(
            "SELECT number, key, state, repo, updated_at FROM issues "
            "WHERE project = ? AND state = ? AND number > ? ORDER BY number LIMIT ?",
            *(project, state, after, limit),
        )

    def set_commit(self, repo: str, sha: str, state: str, branch: str = "") -> str:
        """Put a commit into a state of continuous integration;
        return its branch, which only its push says.
        """
        self.rows(
            "INSERT INTO commits (repo, branch, sha, state) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (repo, sha) DO UPDATE SET state = excluded.state",
            *(repo, branch, sha, state),
        )
        ((found,),) = self.rows("SELECT branch FROM commits WHERE repo = ? AND sha = ?", repo, sha)
        return str(found)

    def commit(self, repo: str, ref: str) -> tuple[str, str] | None:
        """Return sha and state of a commit, or of the newest one of a branch."""
        statement = "SELECT sha, state FROM commits WHERE repo = ? AND (sha = ? OR branch = ?) ORDER BY number DESC"
        return next(iter(self.rows(statement, repo, ref, ref)), None)

    def note_sent(
        self, source: str, event: str, delivery_id: str, outcome: str, request: tuple[str, dict[str, str], str]
    ) -> None:
        """Record a delivery: its answer, address, headers and body."""
        url, headers, body = request
        self.rows(
            "INSERT INTO sent (source, event, delivery_id, outcome, url, headers, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            *(source, event, delivery_id, outcome, url, json.dumps(headers), body),
        )

    def sent(self) -> list[tuple[str, str, str, str]]:
        """Return the deliveries in the order in which they were sent: source, event, id, answer."""
        return [
            (source, event, delivery_id, outcome)
            for source, event, delivery_id, outcome in self.rows(
                "SELECT source, event, delivery_id, outcome FROM sent ORDER BY number"
            )
        ]

    def requests(self) -> list[tuple[str, dict[str, str], str]]:
        """Return address, headers and body of the deliveries in that order."""
        found = self.rows("SELECT url, headers, body FROM sent ORDER BY number")
        return [(url, json.loads(headers), body) for url, headers, body in found]

    def set_mood(self, kind: str, *, answers: int | None = None, value: str = "") -> None:
        """Set the mood (``tracker.MOODS``) of the next ``answers`` lists of issues; None:
        from now on.
        """
        self.rows("INSERT OR REPLACE INTO moods VALUES (?, ?, ?)", kind, answers, value)

    def cheer_up(self) -> None:
        """Let the tracker answer properly again."""
        self.rows("DELETE FROM moods")

    def take_mood(self) -> tuple[str, str] | None:
        """Return the mood of the next answer, and its value; None for a proper one."""
        self.rows("DELETE FROM moods WHERE answers_left <= 0")
        self.rows("UPDATE moods SET answers_left = answers_left - 1")
        return next(iter(self.rows("SELECT kind, value FROM moods ORDER BY kind LIMIT 1")), None)
