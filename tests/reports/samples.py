"""Records made by hand, as a session would leave them:
every verdict, real-looking receipts, hostile texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from pytest_chaos.evidence.records import Records
from pytest_chaos.model.values import (
    AgentSummary,
    Assertion,
    AtMoment,
    AtPoint,
    Fault,
    Finding,
    Plan,
    Receipt,
    RunRecord,
    Scenario,
    SessionHeader,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

POINTS = ("checkpoint.begin", "checkpoint.number", "checkpoint.insert", "checkpoint.commit", "checkpoint.ack")

HEADER = SessionHeader(
    session="2026-11-21T04-00-00-4711",
    seed="8f2c61d09b",
    started="2026-11-21T04:00:00Z",
    iterations=50,
    pass_rate_min=0.98,
    versions={"pytest-chaos": "0.1.0", "python": "3.11.9", "pytest": "9.2.0", "sqlite": "3.40.1", "kernel": "6.8.0"},
    command="pytest -m chaos --chaos-iterations 50 -n 2",
)

KILL = Scenario(
    id="01-kill-9",
    title="A killed agent resumes from its newest checkpoint",
    why="Machines run out of memory and orchestrators lose patience; neither asks the agent first.",
    steps=("An agent writes checkpoints", "It is killed at a point and at a moment", "A new process goes on"),
)
LEASES = Scenario(
    id="03-leases",
    title="A zombie cannot write with the lease it lost",
    why="A worker that was paused past its expiry wakes up and believes that it still owns the work.",
)
CACHE = Scenario(
    id="05-llm-cache", title="Two thousand requests pay for one thousand answers", why="Tokens cost money."
)
SWEEP = Scenario(id="04-sweep", title="A sweep returns every expired lease once", why="Nothing may stay stuck.")


def run(
    scenario: Scenario = KILL,
    verdict: Verdict = Verdict.HELD,
    iteration: int = 0,
    *,
    finding: Finding | None = None,
    observed: str = "0",
    fired: bool = True,
    kind: str = "kill",
) -> RunRecord:
    """Make a record of one fault, at a crash point in even runs and at a moment in odd ones,
    that fired or did not.
    """
    point = POINTS[iteration // 2 % 4]
    when = AtMoment(delay_s=0.25) if iteration % 2 else AtPoint(point=point)
    evidence = (
        f"waitpid: signal 9 (pid {4000 + iteration})" if fired else "the agent ended before the point was reached"
    )
    name = f"{scenario.id}-{iteration}"
    return RunRecord(
        scenario=scenario,
        node_id=f"scenarios/test_all.py::test_{scenario.id.replace('-', '_')}[{iteration}]",
        run_id=name,
        seed=f"8f2c61d09b/{iteration}",
        verdict=verdict,
        iteration=iteration,
        plan=Plan(seed="8f2c61d09b", scenario=scenario.id, faults=(Fault(kind=kind, agent="writer", when=when),)),
        receipts=(Receipt(kind=kind, agent="writer", when=point, fired=fired, evidence=evidence, fault=0, order=7),),
        findings=(finding,) if finding else (),
        assertions=(
            Assertion(name="acknowledged checkpoints lost", observed=observed, holds=observed == "0"),
            Assertion(name="numbers contiguous", observed="True", holds=True),
        ),
        agents=(
            AgentSummary(
                name="writer",
                target="scenarios.work.agents:write",
                pid=4000 + iteration,
                exit_status="signal 9",
                cpu_s=0.021,
                memory_bytes_max=23_400_000 + iteration * 1000,
                open_files_max=9,
            ),
        ),
        notes={"crash_points": list(POINTS), "checkpoints_per_s": 812.5 + iteration},
        duration_s=0.31,
        failure="" if verdict is Verdict.HELD else "AssertionError: it did not hold",
        evidence="" if verdict is Verdict.HELD else f"evidence/{name}",
        reproduce="" if verdict is Verdict.HELD else f"chaos replay chaos-results/latest/evidence/{name}",
    )


def campaign() -> Records:
    """Make a session with a scenario of each kind: held, tolerated, inconclusive, violated."""
    lost = Finding(
        signature="durability.acknowledged-lost",
        text="checkpoint 7 was acknowledged and is not in the database",
        checker="durability",
    )
    stale = Finding(
        signature="ownership.stale-write", text="token 3 wrote after token 4 was granted", checker="ownership"
    )
    runs = [run(KILL, iteration=each) for each in range(50)]
    runs += [run(LEASES, iteration=each, kind="pause") for each in range(49)]
    runs.append(run(LEASES, Verdict.VIOLATED, 49, finding=stale, kind="pause"))
    runs += [run(SWEEP, Verdict.VIOLATED, each, finding=lost, observed="1") for each in range(6)]
    runs += [run(SWEEP, iteration=each) for each in range(6, 50)]
    runs += [run(CACHE, Verdict.INCONCLUSIVE, each, fired=False) for each in range(20)]
    runs += [run(CACHE, iteration=each) for each in range(20, 50)]
    saved = {"tokens_saved": 100_000, "time_saved_s": 3480.0, "hit_rate": 0.5}
    runs = [
        msgspec.structs.replace(each, notes={**each.notes, **saved}) if each.scenario == CACHE else each
        for each in runs
    ]
    return Records(HEADER, tuple(runs))


def many(count: int) -> Records:
    """Make a session of ``count`` runs of one scenario,
    a tenth of which is violated with a text of its own.
    """
    long = "the row says " + "x" * 5_000
    finding = Finding(signature="durability.torn", text=long)
    runs = [run(iteration=each) for each in range(count)]
    runs[::10] = [
        run(iteration=each, verdict=Verdict.VIOLATED, finding=msgspec.structs.replace(finding, text=f"{each} {long}"))
        for each in range(0, count, 10)
    ]
    return Records(HEADER, tuple(runs))


def write_session(folder: Path, records: Records) -> Path:
    """Write a session's ``records.jsonl`` below a results folder and return the
    session's folder.
    """
    session = folder / "sessions" / records.header.session
    session.mkdir(parents=True)
    lines: Sequence[msgspec.Struct] = (records.header, *records.runs)
    (session / "records.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return session
