"""Scenario 06: a tool has one effect, whenever its agent dies, and one output for ever."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents import ToolLedger
from durable_agents.once.crash_points import OncePoint
from pytest_chaos import Finding, after_mark, at_every_point, at_point, kill, pause, terminate
from pytest_chaos.checkers import exactly_once

from scenarios.judging import judge, play
from scenarios.limits import ask_limits
from scenarios.model.keys import Keys
from scenarios.once.key_scripts import of_tools
from scenarios.work.checks import check_no_exceptions
from scenarios.zombies import SAMPLE, asks_for_the_same, outlive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos import Agent, Run

pytestmark = pytest.mark.chaos(
    id="06-tool-replay",
    title="A tool's effect happens once, and its output is replayed byte for byte",
    why="An agent that is killed after it sent, charged or deployed must not do so again when it goes on.",
    steps=[
        "Real shell commands are run, each of which leaves a line in a file; then all are asked for again.",
        "Agents are killed before the effect, between effect and record, and after the record, and restarted.",
        "Another is asked to end while its tool runs: no process of the tool outlives the interrupt.",
        "Effects are counted in the file: exactly one with a probe, at most one with raise, one more a kill run again.",
        "Every replay has the bytes, the types and the exit code of the first run; failures are run again.",
    ],
)

RUN = "scenarios.once.tool_agents:run_tools"
INTERRUPTED = "scenarios.once.tool_agents:run_interrupted"
FAIL = "scenarios.once.tool_agents:run_failing"
PROCESSES = 2
FEW = 40
MANY = 500
CALLS = 6
POINTS = (OncePoint.BEFORE_EFFECT, OncePoint.AFTER_EFFECT, OncePoint.AFTER_END)
TYPE = "CommandOutput of bytes"


class Tools:
    """The moves of the scenario, by real processes, on one database and in one small world."""

    def __init__(self, chaos: Run, database: Path, parts: dict[str, str]) -> None:
        self.chaos = chaos
        self.database = database
        self.ledger = parts["ledger"]
        self.world = chaos.directory / "world"
        self.world.mkdir()

    def start(self, name: str, target: str = RUN, **kwargs: Any) -> Agent:
        """Start an agent."""
        given = {"database": str(self.database), "ledger": self.ledger, "world": str(self.world)}
        return self.chaos.spawn(target, kwargs={**given, **kwargs}, name=name)

    def effects(self) -> list[str]:
        """Return the effects of the tools on the world, in order."""
        file = self.world / "effects"
        return file.read_text().split() if file.exists() else []

    def run_in_shares(self, kind: str, count: int) -> None:
        """Let several processes run all tools, each a share of its own."""
        shares = [list(range(place, count, PROCESSES)) for place in range(PROCESSES)]
        agents = [self.start(f"{kind}-{place}", numbers=share, policy="raise") for place, share in enumerate(shares)]
        for agent in agents:
            agent.wait_exit(timeout_s=120)

    def judge(self, count: int, *, limit: int, least: int) -> None:
        """Expect ``times`` effects of each tool, and the same output in every answer."""
        seen = Counter(self.effects())
        self.chaos.check(exactly_once.at_most(seen.elements(), limit), expect=f"effects of each tool, at most {limit}")
        missing = [number for number in range(count) if seen[str(number)] < least]
        self.chaos.expect("tools without an effect", observed=len(missing), holds=not missing)
        self.chaos.check(check_outputs(self), expect="the same bytes, types and endings for everybody")
        self.chaos.check(check_no_exceptions(self.chaos.history), expect="no exception in any agent")


def check_outputs(tools: Tools) -> Iterator[Finding]:
    """Find answers that differ from the tool's output in the world, or from others in type."""
    for mark in tools.chaos.history.acknowledged("tool"):
        kept = hashlib.sha256((tools.world / f"output-{mark.key}").read_bytes()).hexdigest()
        found = mark.value
        if found["type"] != TYPE:
            text = f"agent {mark.agent} got a {found['type']} from tool {mark.key}, not a {TYPE}"
            yield Finding(signature="tool:type-changed", text=text, checker="check_outputs", orders=(mark.order,))
        elif (found["sha256"], found["exit_code"]) != (kept, 0):
            text = f"agent {mark.agent} got other bytes, or another ending, from tool {mark.key} than it put out"
            yield Finding(signature="tool:output-differs", text=text, checker="check_outputs", orders=(mark.order,))


@pytest.fixture
def tools(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> Tools:
    """Return the moves, on one database."""
    return Tools(chaos, fresh_db, parts)


def run_then_replay(tools: Tools, count: int) -> None:
    """Run all tools, then ask other processes for all again; judge outputs and statistics."""
    tools.run_in_shares("first", count)
    tools.run_in_shares("second", count)
    with ToolLedger(db_path=tools.database) as ledger:
        found = ledger.statistics()
    counts = (found.executions, found.replays)
    tools.chaos.expect("executions and replays", observed=counts, holds=counts == (count, count))
    tools.chaos.expect("replay_rate", observed=found.replay_rate, holds=found.replay_rate == 0.5)
    replays = [mark.value["replay"] for mark in tools.chaos.history.acknowledged("tool")]
    tools.chaos.expect("answers", observed=len(replays), holds=replays.count(True) == replays.count(False) == count)
    tools.judge(count, limit=1, least=1)


def test_tools_run_once_and_are_replayed(tools: Tools) -> None:
    """The quick form: forty shell commands."""
    run_then_replay(tools, FEW)


@pytest.mark.chaos_deep
def test_five_hundred_tools_run_once_and_are_replayed(tools: Tools) -> None:
    """The seed's figures: five hundred executions and as many replays."""
    run_then_replay(tools, MANY)


@pytest.mark.parametrize("policy", ["probe", "run-again", "raise"])
def test_agents_die_around_the_effect(tools: Tools, policy: str) -> None:
    """Agents are killed around the effect: before it, before its record, and after its record.

    A restarted agent follows its doubt policy.
    """
    chaos = tools.chaos
    first = 1 + int(chaos.random("occurrence").random() * 2)
    chaos.plan(*(kill("agent", at_point(point, occurrence=first)) for point in POINTS))
    chaos.note("crash_points", list(POINTS))
    agent = tools.start("agent", numbers=list(range(CALLS)), policy=policy)
    while agent.wait_exit(timeout_s=60).signal is not None:
        agent = agent.restart()
    killed = sum(receipt.fired and receipt.kind == "kill" for receipt in chaos.receipts)
    chaos.expect("kills survived", observed=killed, holds=killed == len(POINTS))
    doubted = len({mark.key for mark in chaos.history.select("note", "in-doubt")})
    effects = tools.effects()
    if policy == "raise":
        chaos.expect("calls that were found in doubt", observed=doubted, holds=doubted == len(POINTS) - 1)
        tools.judge(CALLS, limit=1, least=0)
    else:
        chaos.expect("calls that were found in doubt", observed=doubted, holds=doubted == 0)
        tools.judge(CALLS, limit=1 if policy == "probe" else 1 + killed, least=1)
    total_max = CALLS + (killed if policy == "run-again" else 0)
    chaos.expect("effects in all", observed=f"{len(effects)} of at most {total_max}", holds=len(effects) <= total_max)


def test_an_interrupted_tool_has_ended(tools: Tools) -> None:
    """An agent is told to end while a tool and its child run.

    Tool and child have ended when the agent has, and the call is in doubt.
    """
    chaos = tools.chaos
    chaos.plan(terminate("agent", after_mark("begun", kind="note")))
    tools.start("agent", INTERRUPTED).wait_exit()
    (mark,) = chaos.history.select("note", "interrupted")
    left = mark.value["left"]
    text = f"{len(left)} processes of a tool ran on when the interrupt had left its call"
    findings = [Finding(signature="tool:left-running", text=text, checker="left", orders=(mark.order,))] if left else []
    chaos.check(findings, expect="no process of an interrupted tool goes on")
    doubted = [each.key for each in chaos.history.select("note", "in-doubt")]
    chaos.expect("calls that were found in doubt", observed=doubted, holds=doubted == ["long"])
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")


def test_a_failure_is_run_again(tools: Tools) -> None:
    """A command that fails with exit code 3 runs again at each call."""
    tools.start("agent", FAIL, times=3).wait_exit()
    acks = tools.chaos.history.acknowledged("failing")
    replayed = [mark for mark in acks if mark.value["replay"]]
    text = f"a command that failed was answered {len(replayed)} times without being run"
    findings = [Finding(signature="tool:failure-replayed", text=text, checker="replays")] if replayed else []
    tools.chaos.check(findings, expect="failures are run again")
    endings = [mark.value["exit_code"] for mark in acks]
    tools.chaos.expect("exit codes", observed=endings, holds=endings == [3, 3, 3])
    tools.chaos.expect("effects", observed=len(tools.effects()), holds=len(tools.effects()) == len(acks))


def test_what_is_promised_at_its_very_moment(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Calls are run, replayed and doubted as the model says, by a clock that stands still."""
    play(chaos, "scenarios.once.key_scripts:play_keys", of_tools(), database=str(fresh_db), parts=parts)
    judge(chaos, Keys(), fresh_db)


def test_an_agent_is_killed_at_every_point(tools: Tools) -> None:
    """Wherever an agent dies, its successor asks the world what has happened, and does the rest."""
    tools.chaos.plan(at_every_point("agent", kill, points="recovery.*", sample=SAMPLE))
    agent = tools.start("agent", numbers=[0, 1], policy="probe")
    if agent.wait_exit(timeout_s=60).signal is not None:
        agent.restart().wait_exit(timeout_s=60)
    tools.start("second", numbers=[0, 1], policy="probe").wait_exit(timeout_s=60)
    tools.judge(2, limit=1, least=1)


def test_an_agent_stands_still_at_every_point(tools: Tools) -> None:
    """Wherever an agent stands still, another one gets every output that it does not hold."""
    tools.chaos.plan(at_every_point("agent", pause, points="recovery.*", sample=SAMPLE))
    agent = tools.start("agent", numbers=[0, 1], policy="probe")

    def others() -> Iterator[Agent]:
        yield tools.start("second", numbers=[2, 1, 0], policy="probe")

    waits = partial(asks_for_the_same, zombie=agent, operation="tool")
    outlive(tools.chaos, agent, others, database=tools.database, waits=waits)
    tools.chaos.agent("second").wait_exit(timeout_s=60)
    tools.judge(3, limit=1, least=1)


def test_what_is_promised_at_a_bound(chaos: Run) -> None:
    """Bounds count at their value; defaults are as promised; one decision is one transaction."""
    ask_limits(chaos, "once")
