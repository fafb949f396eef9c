"""Every kind of fault at every kind of time: it fires at a real agent, with a receipt,
or the plan is refused.

The table is made from the registry, so a new kind is in it at once. A required parameter gets its
lower bound, a path the name of a database.
"""

from __future__ import annotations

import http.client
import os
import socket
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from pytest_chaos import after_mark, at_point, at_step, clock_jump, hold, hold_lock, kill, pause, restart, resume
from pytest_chaos.clocks import uptime
from pytest_chaos.errors import UsageError
from pytest_chaos.faults.kind import REQUIRED
from pytest_chaos.faults.registry import REGISTRY
from pytest_chaos.model.history import History
from pytest_chaos.model.values import AfterMark, AtDelivery, AtMoment, AtPoint, AtStep, Fault, MarkKind, Now, Verdict
from pytest_chaos.network import disturb, unreachable
from pytest_chaos.resources import limit
from pytest_chaos.runtime import processes

from tests.harness.faults import peers, programs
from tests.harness.runtime import targets
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _pytest.mark import ParameterSet
    from pytest_chaos.model.values import When
    from pytest_chaos.runtime import wire
    from pytest_chaos.runtime.run import Run

STEPS: Final = AfterMark(kind=MarkKind.ACK, operation="step", count=3)
TIMES: Final[tuple[When, ...]] = (
    Now(),
    STEPS,
    AtPoint(point="targets.step.between", occurrence=3),
    AtStep(step="rename", path="*.json", occurrence=3),
    AtMoment(delay_s=0.02, after=STEPS),
    AtDelivery(number=1),
)
DATABASE: Final = "held.db"
NETWORK: Final = ("partition", "unreachable", "heal")
"""They strike an agent that talks, beside the one whose time it is."""
PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "reorder-delivery": {"status": 202},
    "stall-delivery": {"hold_s": 0.05},
    "clock-jump": {"by_s": -86_400.0},
    "partition": {"cuts": "talker | listener"},
    "unreachable": {"to": "*"},
    "limit-files": {"most": 3},
    "limit-file-size": {"most": 100_000},
    "limit-address-space": {"most": 1 << 40},
}
BEFORE: Final = {
    "resume": pause("writer", STEPS),
    "release": hold("writer", at_step("create", path="beside.txt")),
    "clock-heal": clock_jump("writer", by_s=60.0),
    "limit-heal": limit("writer", "files", most=3),
}
"""A fault that has to come first: only what is paused, held or moved can be ended.
"""


def database(run: Run) -> Path:
    """Make a database in the run's folder."""
    path = run.directory / DATABASE
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE rows (number INTEGER)")
    connection.close()
    return path


def parameters_of(kind: str) -> dict[str, Any]:
    """Return a value for each required parameter, and those of the table."""
    required = {name: each for name, each in REGISTRY[kind].parameters.items() if each.default is REQUIRED}
    values = {name: DATABASE if each.type is str else each.type(each.low) for name, each in required.items()}
    return values | PARAMETERS.get(kind, {})


def cases() -> Iterator[ParameterSet]:
    """Yield each kind at each time; those of a link are fired alike, so some are for the night."""
    for kind in sorted(REGISTRY):
        for when in TIMES:
            if kind == "limit-heal" and isinstance(when, AfterMark | AtPoint | AtStep):
                continue  # the bound has to be felt before: test_felt_limits.py
            is_alike = kind.startswith(("link-", *NETWORK)) and not isinstance(when, AtDelivery)
            is_shown = kind in {"link-latency", "unreachable"} and isinstance(when, AfterMark | AtStep)
            is_limit = kind.startswith("limit-") and kind != "limit-files" and not isinstance(when, Now | AtDelivery)
            marks = [pytest.mark.nightly] if is_limit or (is_alike and not is_shown) else []
            yield pytest.param(kind, when, id=f"{kind}-{type(when).__name__}", marks=marks)


def of_a_link(fault: Fault) -> list[Fault]:
    """Return the fault for the link of the test, at the same time of the agent that works."""
    when = fault.when
    if isinstance(when, AtMoment) and when.after is not None:
        when = AtMoment(delay_s=when.delay_s, after=msgspec.structs.replace(when.after, agent="writer"))
    elif isinstance(when, Now) and fault.kind in {"link-heal", "heal"}:  # what it heals has to be felt before
        when = msgspec.structs.replace(STEPS, agent="writer")
    elif isinstance(when, AfterMark | AtPoint | AtStep):
        when = msgspec.structs.replace(when, agent="writer")
    moved = msgspec.structs.replace(fault, agent="talker" if fault.kind in NETWORK else "link", when=when)
    before = {"link-heal": [disturb("link", "latency")], "heal": [unreachable("talker", "*")]}
    return [*before.get(fault.kind, []), moved]


def talk(run: Run) -> Callable[[], bool]:
    """Start an agent that asks another one, again and again; return whether no fault is awaited."""
    (port,) = run.spawn(peers.serve, name="listener").wait_for("port", kind="note")
    run.spawn(peers.keep_asking, kwargs={"port": port.value}, name="talker")
    return lambda: not run._injector.waiting


def ask_through_a_link(run: Run) -> Callable[[], bool]:
    """Start a link to a server; return a function that sends a few bytes through it."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=programs.echo_all, args=(server,), daemon=True).start()
    link = run.link(server.getsockname()[1])

    def ask() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", link.port), timeout=0.2) as end:
            end.sendall(b"a few bytes")
            end.recv(1)
        return not run._injector.waiting

    return ask


def work(run: Run, when: When, *, uses: bool = False) -> None:
    """Start the agent that the fault is planned for:
    one that marks steps, or a proxy that gets deliveries.
    """
    if not isinstance(when, AtDelivery):
        run.spawn(programs.save_and_use if uses else programs.save_and_count, name="writer")
        return
    server = run.spawn(targets.serve_http, name="server", kwargs={"log": str(run.directory / "log")})
    (serving,) = server.wait_for("serving", kind="note")
    proxy = run.proxy(f"http://127.0.0.1:{serving.value}", name="writer")
    for _ in range(3):
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        with suppress(OSError, http.client.HTTPException):  # some toxics hang up
            connection.request("POST", "/", b'{"arguments": "{}"}')
            connection.getresponse().read()
        connection.close()


@pytest.mark.parametrize(("kind", "when"), list(cases()))
def test_it_fires_with_a_receipt_or_is_refused(run: Run, kind: str, when: When) -> None:
    """What validation lets pass happens; what cannot happen is refused, with the times that can."""
    if kind == "clock-uptime" and isinstance(when, Now) and (problem := uptime.why_not()):
        pytest.skip(f"this machine allows no time namespaces: {problem}")
    if kind == "limit-processes" and os.getuid() == 0 and not isinstance(when, AtDelivery):
        pytest.skip("the kernel does not bound the processes of root")
    database(run)
    fault = Fault(kind=kind, agent="writer", when=when, parameters=parameters_of(kind))
    faults = [*([BEFORE[kind]] if kind in BEFORE else []), fault]
    if is_link := kind.startswith(("link-", *NETWORK)):
        faults = of_a_link(fault)
    comes_never = kind == "resume" and isinstance(when, AfterMark | AtPoint | AtStep)  # a paused agent does nothing
    if comes_never or type(when) not in REGISTRY[kind].takes:
        with pytest.raises(UsageError, match=rf"the time of {kind} must be .*\); got .*\)\. [A-Z].*\.$"):
            run.plan(*faults)
        return
    run.plan(*faults)
    ask = (talk if kind in NETWORK else ask_through_a_link)(run) if is_link else None
    if ask is not None and kind in {"link-heal", "heal"}:
        run.wait_until(lambda: ask() or run.receipts)
    work(run, when, uses=kind.startswith("limit-"))
    if ask is not None:
        run.wait_until(ask)
    run.wait_for_faults()
    run.expect("it came to this", observed=True, holds=True)
    record = run.conclude()
    assert record.verdict is Verdict.HELD
    assert [receipt.kind for receipt in record.receipts if receipt.fired] == [each.kind for each in faults]


def test_an_agent_stands_at_the_point_until_the_lock_is_held(run: Run) -> None:
    """From the point on the agent does nothing before the other process has the lock,
    then it waits for it.
    """
    path = database(run)
    point = at_point("programs.row.before", occurrence=3)
    run.plan(hold_lock("writer", point, database=path.name, duration_s=0.1))
    writer = run.spawn(programs.write_rows, name="writer", kwargs={"database": str(path), "total": 5})
    run.wait_for_faults()
    writer.wait_exit()
    marks = [(mark.operation, mark.key) for mark in run.history.marks if mark.operation != "chaos.points-seen"]
    assert marks[:3] == [("row", 1), ("row", 2), ("chaos.fault", 0)]
    operations = [operation for operation, _ in marks]
    assert operations.index("write-lock") < operations.index("write-lock-released") < marks.index(("row", 3))
    assert run.receipts[0].fired
    assert len(run.history.acknowledged("row")) == 5


def test_a_lock_that_the_agent_itself_holds_is_told(run: Run) -> None:
    """At a point within its transaction the agent cannot be made to wait for the lock:
    no receipt, and it goes on.
    """
    path = database(run)
    point = at_point("programs.row.within", occurrence=2)
    run.plan(hold_lock("writer", point, database=path.name, duration_s=0.1))
    writer = run.spawn(programs.write_rows, name="writer", kwargs={"database": str(path), "total": 5})
    run.wait_for_faults()
    (receipt,) = run.receipts
    assert not receipt.fired
    assert "its process 'lock-holder-1' ended (exit code 1) without doing it" in receipt.evidence
    assert "database is locked; agent 'writer' stood still meanwhile" in receipt.evidence
    assert str(writer.wait_exit()) == "exit code 0"


@pytest.mark.parametrize("when", [at_point("targets.step.between", occurrence=3), after_mark("step", count=2)])
def test_a_restart_is_exact_and_happens_once(run: Run, when: When) -> None:
    """The first incarnation dies at its point, or right after its mark;
    the second passes it unharmed.
    """
    run.plan(restart("writer", when))
    first = run.spawn(targets.count_up, name="writer", kwargs={"total": 9})
    run.wait_for_faults()
    second = run.agent("writer")
    assert str(second.wait_exit()) == "exit code 0"
    acks = run.history.acknowledged("step")
    assert [mark.key for mark in acks if mark.pid == first.pid] == [1, 2]
    assert [mark.key for mark in acks if mark.pid == second.pid] == list(range(1, 10))
    assert [receipt.kind for receipt in run.receipts] == ["restart"]


def test_an_agent_may_be_restarted_before_its_spawn_returns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the first incarnation passes its point, and is dead, when the controller
    first looks at it: its restart happens within ``spawn``, and keeps what the test said of it.
    """
    run.plan(restart("writer", at_point("targets.step.between")))
    client = run._connect()
    send = client._send

    def send_and_come_late(message: wire.Message) -> None:
        send(message)
        if message["do"] == "spawn" and len(run._incarnations) == 1:
            marks = Path(message["spec"]["marks"])
            until(lambda: b"chaos.fault" in marks.read_bytes())
            pid = History.from_lines(marks.read_bytes()).select(operation="chaos.fault")[0].pid
            until(lambda: processes.read(pid) is None)

    monkeypatch.setattr(client, "_send", send_and_come_late)
    first = run.spawn(targets.count_up, name="writer", kwargs={"total": 3}, may_fail=True)
    run.wait_for_faults()
    second = run.agent("writer")
    assert first.successor is second
    assert second.may_fail
    assert str(second.wait_exit()) == "exit code 0"
    assert [receipt.evidence for receipt in run.receipts if receipt.fired] == [
        f"pid {first.pid} ended by signal 9, started again as pid {second.pid}"
    ]


def test_a_resume_waits_for_the_pause(run: Run) -> None:
    """A planned resume whose moment comes first does not count as fired before there
    was a pause.
    """
    run.plan(resume("writer"), pause("writer", after_mark("step", count=5)))
    writer = run.spawn(targets.count_up, name="writer", kwargs={"total": 20})
    run.wait_for_faults()
    assert [receipt.kind for receipt in run.receipts] == ["pause", "resume"]
    assert str(writer.wait_exit()) == "exit code 0"


def test_a_thread_is_stopped_at_its_point(run: Run) -> None:
    """The point is passed by another thread than the first: it is that thread that stops there."""
    run.plan(pause("writer", at_point("programs.step", occurrence=3)))
    run.spawn(programs.count_in_a_thread, name="writer", kwargs={"total": 9})
    run.wait_for_faults()
    assert [mark.key for mark in run.history.acknowledged("step")] == [1, 2]


def test_another_fault_waits_while_the_agent_stands_at_a_point(run: Run) -> None:
    """A kill that is due meanwhile comes after the lock is held: both have a receipt."""
    database(run)
    run.plan(
        hold_lock("writer", after_mark("step", count=2), database=DATABASE, duration_s=0.05),
        kill("writer", at_point("targets.step.between", occurrence=3)),
    )
    run.spawn(targets.count_up, name="writer")
    run.wait_for_faults()
    assert [(receipt.kind, receipt.fired) for receipt in run.receipts] == [("hold-lock", True), ("kill", True)]
