"""Version control: a commit is acknowledged when the command has ended."""

from __future__ import annotations

import os
import subprocess
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from scenarios.targets.foreign.base import Foreign, value_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pytest_chaos import Marks

_BOUND_S = 60


class Repository(Foreign):
    """A repository in which each commit adds a file named by its number."""

    keys = 2
    damage = (ValueError,)

    @abstractmethod
    def commit(self, directory: Path, key: int) -> None:
        """Add the file of this number and commit it."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Make the commits."""
        for key in range(1, self.keys + 1):
            (directory / f"{key}.txt").write_bytes(value_of(key))
            marks.intent("put", key)
            self.commit(directory, key)
            marks.ack("put", key)


class Git(Repository):
    """Git with its default ``core.fsync``: packs and commits are synced, loose objects are not."""

    name = "git"
    promise = "Objects that core.fsync names (by default committed data except loose objects) survive a power loss."
    source = "git-config(1), core.fsync; ALICE 2014: 9 vulnerabilities in 1.9, all with loose objects unsynced"
    commands = ("git",)
    options: ClassVar[tuple[str, ...]] = ()

    def setup(self, directory: Path) -> None:
        """Make a repository with one commit."""
        self._git(directory, "init", "--quiet", "--initial-branch=main")
        self._git(directory, "commit", "--quiet", "--allow-empty", "--message=0")

    def commit(self, directory: Path, key: int) -> None:
        """Add and commit."""
        self._git(directory, "add", f"{key}.txt")
        self._git(directory, "commit", "--quiet", f"--message={key}")

    def recover(self, directory: Path) -> None:
        """Remove locks that a killed command left, as git's own message says."""
        for lock in (directory / ".git").rglob("*.lock"):
            lock.unlink()

    def found(self, directory: Path) -> Iterable[int]:
        """Let git verify all objects, and return the numbers of the commits."""
        self._git(directory, "fsck", "--full", "--strict", "--no-dangling")
        found = [int(each) for each in self._git(directory, "log", "--format=%s").split()]
        for key in found:
            if key and self._git(directory, "show", f"HEAD:{key}.txt").encode() != value_of(key):
                message = f"{key}.txt is not what was committed"
                raise ValueError(message)
        return [key for key in found if key]

    def _git(self, directory: Path, *words: str) -> str:
        quiet = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"]}
        who = {f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        when = {f"GIT_{who}_DATE": "2026-01-01T00:00:00Z" for who in ("AUTHOR", "COMMITTER")}
        return _output(["git", "-c", "gc.auto=0", *self.options, *words], directory, {**quiet, **who, **when})


class GitSynced(Git):
    """Git with ``core.fsync=all``."""

    name = "git, core.fsync=all"
    promise = "All objects, references and the index survive a power loss."
    options = ("-c", "core.fsync=all")


class Mercurial(Repository):
    """Mercurial, whose interrupted transactions ``hg recover`` rolls back; it syncs nothing."""

    name = "Mercurial"
    promise = "An interrupted transaction is rolled back by 'hg recover'; nothing is said of a power loss."
    source = "hg help recover; ALICE 2014: 10 vulnerabilities in 2.1.5"
    commands = ("hg",)

    def setup(self, directory: Path) -> None:
        """Make an empty repository."""
        self._hg(directory, "init")

    def commit(self, directory: Path, key: int) -> None:
        """Add and commit."""
        self._hg(directory, "commit", "--addremove", "--quiet", "--user=a", "--date=0 0", f"--message={key}")

    def recover(self, directory: Path) -> None:
        """Break locks of the dead, and roll back what was interrupted."""
        for lock in (directory / ".hg" / "wlock", directory / ".hg" / "store" / "lock"):
            lock.unlink(missing_ok=True)  # Mercurial does so when the pid in it is dead
        if (directory / ".hg" / "store" / "journal").exists():
            self._hg(directory, "recover", "--no-verify")

    def found(self, directory: Path) -> Iterable[int]:
        """Let Mercurial verify the repository, and return the numbers of the changesets."""
        self._hg(directory, "verify", "--quiet")
        return [int(each) for each in self._hg(directory, "log", "--template", "{desc}\n").split()]

    def _hg(self, directory: Path, *words: str) -> str:
        environment = {"HGRCPATH": "", "HGPLAIN": "1", "PATH": os.environ["PATH"]}
        return _output(["hg", *words], directory, environment)


def _output(command: list[str], directory: Path, environment: dict[str, str]) -> str:
    """Return what a command prints. Raises ValueError with its words if it fails."""
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=_BOUND_S
    )
    if done.returncode:
        said = (done.stderr + done.stdout).strip()[-200:]
        message = f"{command[0]} ... {command[-1]} exits {done.returncode}: {said}"
        raise ValueError(message)
    return done.stdout
