"""gunicorn's configuration: it removes the pid file of a process that is no gunicorn."""

from __future__ import annotations

from pathlib import Path

_FILE = Path("server.pid")


def _is_gunicorn(number: str) -> bool:
    """Whether a process with this number has gunicorn in its command line."""
    try:
        return b"gunicorn" in Path(f"/proc/{int(number)}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False


if _FILE.exists() and not _is_gunicorn(_FILE.read_text()):
    _FILE.unlink()
