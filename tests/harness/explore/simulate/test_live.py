"""The items of the disk step by step: the same as those that are gathered anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_chaos.explore.simulate.content import PageStore
from pytest_chaos.explore.simulate.crash import moments
from pytest_chaos.explore.simulate.disk import Disk
from pytest_chaos.explore.simulate.live import LiveItems
from pytest_chaos.explore.simulate.state import live_items
from pytest_chaos.trace.step import Action

from tests.harness.trace.recordings import Script

if TYPE_CHECKING:
    from pathlib import Path


def test_items_follow_each_step(tmp_path: Path) -> None:
    """After each step the items are those of the disk, and their identity is that of items
    which are gathered anew: of writes, modes, links, and of files and folders that move.
    """
    script = Script(tmp_path).before("old", b"0").folder("d").create("d/a").write("d/a", b"1").link("b", "d/a")
    script.write("b", b"22").step(Action.CHANGE_MODE, "d/a", mode=0o600).rename("b", "old").unlink("d/a")
    script.create("d/c").step(Action.RENAME, "d", target="e").create("z").step(Action.EXCHANGE, "z", target="old")
    recording = script.truncate("old", 1).symlink("s", "z").unlink("s").done()

    disk = Disk(recording, PageStore())
    live, performed, identities = LiveItems(disk), None, []
    for _, effect in moments(recording, disk):
        live.follow(performed)
        performed = effect
        assert live.items() == live_items(disk)
        assert live.identity == LiveItems(disk).identity
        identities.append(live.identity)
    assert len(identities) - len(set(identities)) == 1, "without its link the folder is as it was before"


def test_which_names_are_one_file_is_part_of_the_identity(tmp_path: Path) -> None:
    """A second name for a file is not a second file with the same content."""
    linked = Script(tmp_path).before("a", b"1").link("b", "a").done()
    copied = Script(tmp_path).before("a", b"1").before("b", b"1").done()
    disk = Disk(linked, PageStore())
    for step in linked.steps:
        disk.apply(step)

    assert LiveItems(disk).identity != LiveItems(Disk(copied, PageStore())).identity
