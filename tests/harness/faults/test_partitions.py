"""Network calls of unmodified programs are answered: partitions, unreachable addresses, heals."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos import after_mark, clock_jump, kill
from pytest_chaos.cli import doctor
from pytest_chaos.errors import UsageError
from pytest_chaos.model.plan import at_moment
from pytest_chaos.model.values import Fault, Verdict
from pytest_chaos.network import bridge, heal, isolate, majorities_ring, partition, unreachable
from pytest_chaos.network.cuts import parsed
from pytest_chaos.network.trial import answered

from tests.harness.faults import peers, programs

if TYPE_CHECKING:
    from pytest_chaos.runtime.run import Run

GO = after_mark("round", count=1)
MEND = after_mark("round", count=2)
FIRST, SECOND = after_mark("go-0", agent="go-0"), after_mark("go-1", agent="go-1")


def serving(run: Run, name: str = "server") -> int:
    """Start a server and return its port."""
    (mark,) = run.spawn(peers.serve, name=name).wait_for("port", kind="note")
    port: int = mark.value
    return port


def talked(run: Run, name: str = "client") -> dict[str, list[str]]:
    """Let a client talk three times; return what it met each time."""
    agent = run.spawn(peers.talk, kwargs={"port": serving(run)}, name=name)
    for number in (1, 2):
        agent.wait_for("round", count=number)
        in_force(run, due(run, number))
        (run.directory / f"go-{number}").touch()
    agent.wait_exit()
    notes = [mark for mark in agent.marks if mark.operation in {"old", "new", "datagram"}]
    return {name: [mark.value for mark in notes if mark.operation == name] for name in ("old", "new", "datagram")}


def in_force(run: Run, pending: list[Any]) -> None:
    """Wait until these faults are in force, or cannot be."""

    def is_settled(each: Any) -> bool:
        firing = each.firing
        waits = firing is not None and "must have been started" in firing.waits_for
        return bool(each.done or waits or (firing and firing.kept))

    run.wait_until(lambda: all(is_settled(each) for each in pending))


def due(run: Run, number: int) -> list[Any]:
    """Return the pending faults that have come by this round."""
    return [each for each in run._injector._pending if getattr(each.fault.when, "count", 0) <= number]


def concluded(run: Run) -> Any:
    """Conclude a run that asserted something."""
    run.expect("it came to this", observed=True, holds=True)
    return run.conclude()


def test_a_partition_parts_two_agents_until_it_is_healed(run: Run) -> None:
    """Old and new connections and datagrams meet the error, then all works again."""
    run.plan(partition({"client"}, {"server"}, when=GO), heal("client", MEND))
    met = talked(run)
    assert met == {
        "old": ["a", "send EHOSTUNREACH", "a"],
        "new": ["b", "connect EHOSTUNREACH", "b"],
        "datagram": ["c", "EHOSTUNREACH", "c"],
    }
    run.wait_for_faults()
    cut, healed = run.receipts
    assert cut.evidence.startswith("client's sendto to 127.0.0.1:")
    assert cut.evidence.endswith(" of server was answered EHOSTUNREACH")
    assert healed.evidence.startswith("1 lifted; ")
    assert concluded(run).verdict is Verdict.HELD


def test_a_refused_connection_that_exists_is_reset(run: Run) -> None:
    """ECONNREFUSED is the answer to a connect; on a connection a closed port answers RST."""
    run.plan(
        partition({"client"}, {"server"}, when=GO, error="ECONNREFUSED"),
        heal("server", after_mark("round", count=2, agent="client")),
    )
    met = talked(run)
    assert met["old"] == ["a", "send ECONNRESET", "a"]
    assert met["new"] == ["b", "connect ECONNREFUSED", "b"]


def test_one_way_loses_what_the_server_sends(run: Run) -> None:
    """The client sends, the server gets it and cannot answer; no new connection is made."""
    run.plan(
        partition({"server"}, {"client"}, when=after_mark("round", agent="client"), one_way=True), heal("client", MEND)
    )
    agent = run.spawn(peers.talk, kwargs={"port": serving(run)}, name="client")
    agent.wait_for("round")
    in_force(run, run._injector._pending[:1])
    (run.directory / "go-1").touch()
    server = run.agent("server")
    run.wait_until(lambda: any(mark.operation == "server-error" for mark in server.marks) or agent.ended)
    notes = [mark.value for mark in agent.marks if mark.operation == "old"]
    assert notes in (["a"], ["a", "recv EHOSTUNREACH"])
    run.wait_until(lambda: run.receipts)
    assert " was answered EHOSTUNREACH" in run.receipts[0].evidence


def test_a_delay_holds_a_call_and_the_heal_lets_it_go(run: Run) -> None:
    """The call waits for longer than the test has, and is done at the heal: nothing was lost."""
    run.plan(
        unreachable("client", "127.0.0.1", GO, error="ETIMEDOUT", delay_s=3000),
        heal("client", after_mark("mend", agent="mend")),
    )
    agent = run.spawn(peers.talk, kwargs={"port": serving(run)}, name="client")
    agent.wait_for("round")
    in_force(run, run._injector._pending[:1])
    (run.directory / "go-1").touch()
    (run.directory / "go-2").touch()
    agent.wait_state("S")
    run.spawn(programs.mark_once, kwargs={"operation": "mend"}, name="mend").wait_exit()
    agent.wait_exit()
    assert [mark.value for mark in agent.marks if mark.operation == "old"] == ["a", "a", "a"]


@pytest.mark.parametrize("error", ["ECONNREFUSED", "ETIMEDOUT"])
def test_an_error_comes_after_a_delay(run: Run, error: str) -> None:
    """The receipt has call, address and errno."""
    run.plan(unreachable("client", "*", GO, error=error, delay_s=0.01), heal("client", MEND))
    met = talked(run)
    assert met["new"][1] == f"connect {error}"
    run.wait_for_faults()
    assert f"was answered {error.replace('ECONNREFUSED', 'ECONNRESET')}, after 0.01 s" in run.receipts[0].evidence


CLIENTS = {
    "curl": (
        ["curl", "-sS", "--max-time", "20", "http://127.0.0.1:{port}/"],
        "No route to host|Couldn't connect|Could not connect",
    ),
    "redis-cli": (["redis-cli", "-p", "{port}", "ping"], "No route to host"),
    "node": (
        ["node", "-e", "require('net').connect({port},'127.0.0.1').on('error',e=>console.log(e.code))"],
        "EHOSTUNREACH",
    ),
    "urllib": (
        [sys.executable, "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:{port}/', timeout=20)"],
        "No route to host",
    ),
}


@pytest.mark.parametrize("program", CLIENTS)
def test_a_program_of_any_language_does_not_reach_its_server(run: Run, program: str) -> None:
    """An unmodified binary is told that there is no route; the receipt has its call."""
    argv, said = CLIENTS[program]
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed")
    run.plan(partition({"client"}, {"server"}, when=at_moment(0.0)))
    port = serving(run)
    shell = ["sh", "-c", 'until [ -e go ]; do sleep 0.01; done; exec "$@"', "sh"]
    command = [part.replace("{port}", str(port)) for part in argv]
    agent = run.spawn([*shell, *command], name="client", may_fail=True)
    in_force(run, run._injector._pending)
    (run.directory / "go").touch()
    agent.wait_for_output(said, timeout_s=60)
    agent.wait_exit(timeout_s=60)
    run.wait_for_faults()
    assert f"client's connect to 127.0.0.1:{port} of server was answered EHOSTUNREACH" in run.receipts[0].evidence


def test_a_cut_agent_may_have_a_moved_clock_too(run: Run) -> None:
    """Both filters are one."""
    run.plan(partition({"client"}, {"server"}, when=GO), heal("client", MEND), clock_jump("client", GO, by_s=-60))
    met = talked(run)
    assert met["new"] == ["b", "connect EHOSTUNREACH", "b"]
    run.wait_for_faults()
    assert all(receipt.fired for receipt in run.receipts), run.receipts


def test_doctor_tries_an_answer() -> None:
    """The child's connect gets the errno, and nothing is left of it."""
    before = set(os.listdir("/proc/self/fd"))
    assert answered() == "EHOSTUNREACH"
    assert set(os.listdir("/proc/self/fd")) == before
    assert doctor._network().status == "works"


def test_others_are_not_cut(run: Run) -> None:
    """Isolate parts one from all; two others still talk."""
    run.plan(
        isolate("lonely", after_mark("round", agent="client")),
        heal("lonely", after_mark("round", count=3, agent="client")),
    )
    lonely = run.spawn(peers.serve, name="lonely")
    lonely.wait_for("port", kind="note")
    assert talked(run) == {"old": ["a"] * 3, "new": ["b"] * 3, "datagram": ["c"] * 3}
    run.wait_for_faults()
    assert run.receipts[-1].kind in {"partition", "heal"}
    assert [receipt.evidence for receipt in run.receipts if not receipt.fired] == ["it was healed before a call met it"]
    assert concluded(run).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        pytest.param([heal("client", FIRST)], "nothing is in force at agent 'client'", id="heal-of-nothing"),
        pytest.param(
            [partition({"client"}, {"server"}, when=FIRST), partition({"client"}, {"server"}, when=SECOND)],
            "what is cut must be whole before; client > server is cut already. Heal it first",
            id="overlapping",
        ),
        pytest.param(
            [partition({"client"}, {"nobody"}, when=FIRST)],
            "agent 'nobody' must have been started; got client, go-0, server",
            id="unknown",
        ),
        pytest.param(
            [kill("server", FIRST), partition({"client"}, {"server"}, when=SECOND)],
            "agent 'server' must be running; it has ended (signal 9)",
            id="exited",
        ),
    ],
)
def test_what_cannot_be_cut_is_one_sentence(run: Run, faults: list[Fault], text: str) -> None:
    """The run is INCONCLUSIVE, and the receipt says why."""
    run.plan(*faults)
    run.spawn(peers.talk, kwargs={"port": serving(run)}, name="client", may_fail=True).wait_for("round")
    for number, pending in enumerate(run._injector._pending):
        run.spawn(programs.mark_once, kwargs={"operation": f"go-{number}"}, name=f"go-{number}")
        in_force(run, [pending])
    record = concluded(run)
    assert record.verdict is Verdict.INCONCLUSIVE
    assert any(text in receipt.evidence for receipt in record.receipts if not receipt.fired), record.receipts


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: partition({"a", "b"}, {"b"}), "the groups of a partition must not overlap; got 'b' in two"),
        (lambda: partition({"a"}), "a partition must have two groups or more"),
        (lambda: partition({"a"}, set()), "a partition must have two groups or more, none of them empty"),
        (lambda: partition("a", "b"), "a group must be a set or list of names"),
        (lambda: partition({"a"}, {"b"}, {"c"}, one_way=True), "a partition of one way must have two groups; got 3"),
        (lambda: bridge(["a", "b"]), "a bridge must have 3 agents or more, each once"),
        (lambda: majorities_ring(["a", "b", "b"]), "a ring of majorities must have 3 agents or more, each once"),
        (lambda: isolate("a", error="EPERM"), "error must be one of EHOSTUNREACH, .*, or None; got 'EPERM'"),
        (lambda: isolate("a", error=None), "delay_s must be more than 0 where error is None"),
        (lambda: unreachable("a", " "), "to must be HOST:PORT, a host, :PORT or"),
    ],
)
def test_a_wrong_call_is_refused_in_a_sentence(call: object, text: str) -> None:
    """Before any process is started."""
    assert callable(call)
    with pytest.raises(UsageError, match=text):
        call()


@pytest.mark.parametrize("count", range(3, 10))
def test_rings_and_bridges_are_jepsens(count: int) -> None:
    """In a ring each gets from a majority, and no two from the same; a bridge reaches all."""
    names = [f"n{number}" for number in range(count)]
    cuts = parsed(majorities_ring(names).parameters["cuts"])
    heard = [frozenset(other for other in names if (other, name) not in cuts) for name in names]
    assert {len(each) for each in heard} == {count // 2 + 1}
    assert len(set(heard)) == count
    parted = parsed(bridge(names).parameters["cuts"])
    middle = names[count // 2]
    assert all(middle not in cut for cut in parted)
    first, second = names[: count // 2], names[count // 2 + 1 :]
    assert set(parted) == {pair for one in first for two in second for pair in ((one, two), (two, one))}
