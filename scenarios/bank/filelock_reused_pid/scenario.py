"""The holder is killed; another process has its number; a third one wants the lock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding, after_mark, kill

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.chaos(id="bank-filelock-reused-pid", title="The lock of a dead process is free")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """The next process gets the lock, whatever process has the dead holder's number."""
    assert form in {"reported", "mended"}, "the forms are two releases of the library"
    chaos.plan(kill("holder", after_mark("locked", kind="note")))
    holder = chaos.spawn(f"{PROGRAM}:hold", name="holder")
    holder.wait_exit(timeout_s=60)
    stranger = chaos.spawn(f"{PROGRAM}:live", name="stranger")
    stranger.wait_for("alive", kind="note", timeout_s=60)
    lock = chaos.directory / "work.lock"
    number, *rest = lock.read_text().split("\n")
    if number != str(holder.pid):
        chaos.inconclusive(f"the lock file must begin with its holder's number {holder.pid}; got {number!r:.60}")
    lock.write_text("\n".join([str(stranger.pid), *rest]))
    chaos.spawn(f"{PROGRAM}:take", name="next").wait_exit(timeout_s=60)

    got = len(list(chaos.history.acknowledged("lock")))
    text = "the holder is dead, and the lock is not to be had: a stranger has its number"
    found = [] if got else [Finding(signature="lock-wedged", text=text, kind="liveness")]
    chaos.check(found, expect="the next process has the lock")
