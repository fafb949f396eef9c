"""The server is killed; a stranger has its number; it is started again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding

if TYPE_CHECKING:
    from pytest_chaos import Agent, Run

HERE = Path(__file__).parent


def start(chaos: Run, name: str, *, is_mended: bool) -> Agent:
    """Start gunicorn with one worker on a socket in the run's folder."""
    command = [sys.executable, "-m", "gunicorn", "--pid", "server.pid", "--bind", "unix:server.sock", "--workers", "1"]
    command += ["--config", str(HERE / "mended_config.py")] if is_mended else []
    return chaos.spawn([*command, "program:application"], name=name, env={"PYTHONPATH": str(HERE)}, may_fail=True)


@pytest.mark.chaos(id="bank-gunicorn-stale-pidfile", title="A server that was killed starts again")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """The server listens again, whatever process has its old number."""
    is_mended = form == "mended"
    server = start(chaos, "server", is_mended=is_mended)
    server.wait_for_output("Listening at", timeout_s=60)
    server.kill(tree=True)
    stranger = chaos.spawn(f"{HERE / 'program.py'}:live", name="stranger")
    stranger.wait_for("alive", kind="note", timeout_s=60)
    file = chaos.directory / "server.pid"
    if file.read_text().strip() != str(server.pid):
        chaos.inconclusive(f"the pid file must have the server's number {server.pid}; got {file.read_text()!r:.60}")
    file.write_text(f"{stranger.pid}\n")
    again = start(chaos, "again", is_mended=is_mended)

    def has_answered() -> bool:
        return not again.running or "Listening at" in again.output()

    chaos.wait_until(has_answered, timeout_s=60, what="the server to listen, or to end")
    text = f"the next start ends ({again.output().strip().splitlines()[-1:]})"
    found = [] if again.running else [Finding(signature="does-not-start", text=text)]
    chaos.check(found, expect="the server listens again")
