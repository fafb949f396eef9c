"""Evidence packs and stories for tests of the failure page, made by the real packer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from pytest_chaos.evidence import write
from pytest_chaos.model.plan import after_mark
from pytest_chaos.model.story import CauseStory, FamilyStory, LostItem, Reference, Story, StoryStep
from pytest_chaos.model.values import (
    AgentSummary,
    Fault,
    Finding,
    Mark,
    MarkKind,
    Plan,
    Receipt,
    RunRecord,
    Scenario,
    Verdict,
)
from pytest_chaos.runtime.journal import AgentStarted, Journal, RunHeader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
LOST = Finding(
    signature="durability:acknowledged-lost",
    text="1 acknowledged order lost: 3",
    checker="durability",
    orders=(7,),
)


def marks_of(count: int, agent: str = "worker", key: Any = None) -> bytes:
    """Return the mark file of so many operations; the last of them is never acknowledged."""
    lines = []
    for number in range(count):
        mark = {"operation": "order", "key": number if key is None else f"{key}{number}", "agent": agent, "pid": 11}
        lines += [{"kind": "intent", **mark}, {"kind": "ack", **mark}]
    return b"".join(b"\n" + msgspec.json.encode(line) + b"\n" for line in lines[:-1])


def pack(
    folder: Path,
    *,
    operations: int = 10,
    findings: tuple[Finding, ...] = (LOST,),
    verdict: Verdict = Verdict.VIOLATED,
    name: str = "run-1",
    title: str = "An acknowledged order is in the file",
    output: str = "",
    key: Any = None,
    more_marks: Sequence[dict[str, Any]] = (),
    receipts: Sequence[Receipt] | None = None,
) -> Path:
    """Make a pack of a run with a kill and a restart, in the ``evidence`` of a session."""
    journal = Journal(folder / f"journal-{name}")
    scenario = Scenario(id="90-orders", title=title, steps=("It works", "It is killed"))
    plan = Plan(seed="1", scenario="90-orders", faults=(Fault(kind="kill", agent="worker", when=after_mark("order")),))
    header = RunHeader(
        run_id=name,
        node_id=f"test_orders.py::{name}",
        scenario=scenario,
        seed="1",
        plan=plan,
        session_folder=str(folder),
        started="2026-11-30T08:00:00Z",
        reproduce=f"chaos replay evidence/{name}",
        versions={"python": "3.11.7"},
    )
    journal.create(header)
    journal.marks_path.write_bytes(b" \n" + marks_of(operations, key=key))
    with journal.marks_path.open("ab") as stream:
        stream.writelines(b"\n" + msgspec.json.encode(mark) + b"\n" for mark in more_marks)
    receipt = Receipt(
        kind="kill",
        agent="worker",
        when="after its 4th ack of order",
        fired=True,
        evidence="signal 9",
        fault=0,
        order=8,
    )
    shown = (receipt,) if receipts is None else tuple(receipts)
    for each in shown:
        journal.add_receipt(each)
    for pid, order, status in ((11, 0, "signal 9"), (12, 9, "exit code 0")):
        journal.add_agent(AgentStarted(name="worker", pid=pid, command="orders:work", started_at="2026", order=order))
        journal.add_agent(AgentSummary(name="worker", target="orders:work", pid=pid, exit_status=status))
    (journal.output_folder / "worker.log").write_text(output or "Traceback (most recent call last):\nValueError: no\n")
    (journal.work_folder / "orders.jsonl").write_text('{"order": 1}\n{"order": 2}\n')
    record = RunRecord(
        scenario=scenario,
        node_id=header.node_id,
        run_id=name,
        seed="1",
        verdict=verdict,
        plan=plan,
        receipts=shown,
        findings=findings,
        failure="AssertionError: it did not hold",
    )
    journal.write_record(record)
    return write(journal.folder, folder / "evidence" / name)


def states(place: Path, /, **changes: Any) -> Path:
    """Make the folder of an exploration's states, with a story of one power loss, and return it."""
    kept = place / "states-1"
    found, promised = kept / "power-3" / "directory", kept / "power-3" / "promised"
    for state in (found, promised):
        state.mkdir(parents=True)
    (found / "orders.txt").write_text("1\n")
    (promised / "orders.txt").write_text("1\n2\n")
    (found / "page.bin").write_bytes(b"\0" * 512 + b"\xff" * 3584)
    (promised / "page.bin").write_bytes(b"\xff" * 4096)
    intent = Mark(kind=MarkKind.INTENT, operation="order", key=2, order=0)
    ack = Mark(kind=MarkKind.ACK, operation="order", key=2, order=1)
    steps = (
        StoryStep(number=1, text="create orders.txt"),
        StoryStep(number=1, mark=intent),
        StoryStep(number=2, text="write orders.txt 2 bytes at 2", line="shop.py:12 in place"),
        StoryStep(number=2, mark=ack),
        StoryStep(number=3, text="sync orders.txt", syncs=True),
    )
    cause = CauseStory(
        signature="check:order # is lost",
        text="order 2 is lost",
        family="power",
        code="power:ext4:3m2:1.0",
        state="power lost before step 3: sync orders.txt: 2: write orders.txt is lost",
        label="modelled",
        model="ext4",
        step=3,
        marks=2,
        states=4,
        at="3: sync orders.txt",
        again="chaos explore shop.py:Shop --seed 1 --state 'power:ext4:3m2:1.0'",
        folder="power-3",
        promised=Reference(code="", text="when it acknowledged order 2", step=3, folder="power-3/promised"),
        neighbour=Reference(code="crash:3", text="killed before step 3", step=3),
        lost=(
            LostItem(mark=ack, why="nothing synced it", step=2, text="write orders.txt", line="shop.py:12 in place"),
        ),
        steps=steps,
        struck={"power": (3,)},
        variants=("io: step 3 failed with EIO",),
    )
    story = Story(
        target="Shop",
        seed="1",
        verdict="VIOLATED",
        steps=3,
        families=(
            FamilyStory(family="crash", verdict="HELD", outcome="3 of 3 crash points", states=3),
            FamilyStory(family="power", verdict="VIOLATED", outcome="4 of 9 states violated", states=9),
        ),
        causes=(msgspec.structs.replace(cause, **changes),),
    )
    (kept / "story.json").write_bytes(msgspec.json.encode(story))
    return kept
