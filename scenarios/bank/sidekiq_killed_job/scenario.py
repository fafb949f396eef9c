"""A worker is killed within its second job; another one does what is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding, after_mark, kill

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.chaos(id="bank-sidekiq-killed-job", title="A job whose worker is killed is done")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """Each job that was sent is done."""
    chaos.plan(kill("worker", after_mark("begun", kind="note", count=2)))
    chaos.spawn(["redis-server", "--port", "0", "--unixsocket", "redis.sock", "--save", ""], name="redis")
    chaos.wait_until((chaos.directory / "redis.sock").exists, timeout_s=30, what="the server's socket")
    chaos.spawn(f"{PROGRAM}:send", name="sender").wait_exit(timeout_s=60)
    options = {"is_mended": form == "mended"}
    for name in ("worker", "next"):
        chaos.spawn(f"{PROGRAM}:work", kwargs=options, name=name).wait_exit(timeout_s=60)

    sent = {mark.key for mark in chaos.history.acknowledged("send")}
    lost = sent - {mark.key for mark in chaos.history.acknowledged("done")}
    found = [Finding(signature="job-lost", text=f"sent and never done: {sorted(map(str, lost))}")] if lost else []
    chaos.check(found, expect=f"all of {len(sent)} jobs are done")
