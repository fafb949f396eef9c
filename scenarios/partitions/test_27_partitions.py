"""Scenario 27: two nodes of a replicated log are parted; the one that led is fenced afterwards.

The nodes are real processes on two addresses of loopback. Their network calls are cut from outside.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos import Finding, after_mark
from pytest_chaos.network import heal, partition

from scenarios.partitions import replica
from scenarios.work.checks import check_no_exceptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos import History, Run

pytestmark = pytest.mark.chaos(
    id="27-partitions",
    title="A leader that was cut off is fenced, and no acknowledged write is lost",
    why="A partition does not stop a leader. It goes on, believes that it leads, and comes back with its writes.",
    steps=[
        "Two nodes of a replicated log on two addresses; a client writes at the leader.",
        "Leader and client are cut off from the other node: their network calls fail.",
        "The client goes on writing at the old leader, which acknowledges nothing that the other node lacks.",
        "An operator promotes the other node: a new epoch begins, and takes writes.",
        "The partition is healed. The old leader's write carries the old epoch, and is refused.",
    ],
)

NODE = "scenarios.partitions.replica:serve"
CLIENT = "scenarios.partitions.replica:write_at"
HOSTS = {"a": "127.0.27.1", "b": "127.0.27.2"}
BEFORE, CUT, NEW, LATE = ["before-1", "before-2"], ["cut-1", "cut-2"], ["new-1", "new-2"], ["late-1"]


def check_epochs(history: History, leader: str) -> Iterator[Finding]:
    """Find what was acknowledged and is not in the log, and what an old leader put there."""
    (has,) = [mark.value for mark in history.select("note", "has") if mark.key == leader]
    log = [(epoch, value) for epoch, value in has["log"]]
    for mark in history.acknowledged("put"):
        if (mark.value, mark.key) not in log:
            text = f"{mark.key!r} was acknowledged in epoch {mark.value}, and is not in the log of the leader"
            yield Finding(signature="partition:split-brain", text=text, checker="check_epochs", orders=(mark.order,))
    for (before, _), (epoch, value) in pairwise(log):
        if epoch < before:
            text = f"{value!r} of epoch {epoch} was taken behind epoch {before}: a stale leader's write"
            yield Finding(signature="partition:stale-write", text=text, checker="check_epochs")


def client(chaos: Run, name: str, node: list[Any], values: list[str], *, promotes: bool = False) -> None:
    """Write values at a node, by a client of this name."""
    kwargs = {"place": node, "values": values, "promotes": promotes}
    chaos.spawn(CLIENT, kwargs=kwargs, name=name).wait_exit(timeout_s=60)


@pytest.mark.parametrize(
    ("error", "one_way"),
    [
        pytest.param("EHOSTUNREACH", False, id="no-route"),
        pytest.param("ECONNREFUSED", False, id="refused", marks=pytest.mark.chaos_deep),
        pytest.param("ETIMEDOUT", True, id="one-way", marks=pytest.mark.chaos_deep),
    ],
)
def test_a_stale_leader_is_fenced(chaos: Run, parts: dict[str, str], error: str, *, one_way: bool) -> None:
    """What was acknowledged on either side is in the new leader's log, in the order of epochs."""
    begun = after_mark("written", agent="client-before")
    chaos.plan(
        partition({"a"}, {"b"}, when=begun, error=error, one_way=one_way),
        heal("a", after_mark("written", agent="operator")),
    )
    places: dict[str, list[Any]] = {}
    for name, host in HOSTS.items():
        kwargs = {"replica": parts["replica"], "name": name, "host": host, "leads": name == "a"}
        node = chaos.spawn(NODE, kwargs=kwargs, name=name)
        (up,) = node.wait_for("up", kind="note")
        places[name] = [host, up.value]
    for name, other in (("a", "b"), ("b", "a")):
        host, port = places[other]
        replica.ask((places[name][0], places[name][1]), "join", host=host, port=port)
    client(chaos, "client-before", places["a"], BEFORE)
    client(chaos, "client-cut", places["a"], CUT)
    client(chaos, "operator", places["b"], NEW, promotes=True)
    chaos.wait_for_faults()
    client(chaos, "client-late", places["a"], LATE)
    chaos.spawn("scenarios.partitions.replica:look", kwargs={"places": places}, name="look").wait_exit(timeout_s=60)
    chaos.check(check_epochs(chaos.history, "b"), expect="all that was acknowledged is in the leader's log, by epoch")
    acked = [mark.key for mark in chaos.history.acknowledged("put")]
    both = [*BEFORE, *NEW]
    chaos.expect("acknowledged before and after", observed=acked, holds=[key for key in acked if key in both] == both)
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")
