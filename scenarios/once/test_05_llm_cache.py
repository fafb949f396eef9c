"""Scenario 05: each output is generated once, through deaths of callers and through expiry."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents import LLMOutputCache, SystemClock
from pytest_chaos import Finding, after_mark, at_every_point, kill, pause
from pytest_chaos.checkers import exactly_once

from scenarios.judging import Script, judge, play
from scenarios.model.keys import Keys
from scenarios.once.cache_agents import TOKENS
from scenarios.once.key_scripts import of_keys, of_outputs
from scenarios.work.checks import check_no_exceptions
from scenarios.zombies import SAMPLE, asks_for_the_same, outlive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_chaos import Agent, History, Run

pytestmark = pytest.mark.chaos(
    id="05-llm-cache",
    title="A cached output is paid for once, and is always the right one",
    why="Generations cost money and minutes; a crash, an expiry or a crowd must not pay for one again.",
    steps=[
        "Several processes ask for many outputs, all of them misses; others ask again, all of them hits.",
        "Callers are killed while they generate; sixteen ask for one output together; all outputs expire at once.",
        "Generations are counted in the world: one for each output, and one more for each killed caller.",
        "Statistics are those of all processes: half of the requests were hits, and their tokens were saved.",
    ],
)

ALL = "scenarios.once.cache_agents:ask_all"
EACH = "scenarios.once.cache_agents:ask_each"
AT_ONCE = "scenarios.once.cache_agents:ask_at_once"
PROCESSES = 4
STAMPEDE = 16
OWN = 3
OUTPUTS = 1000
EXPIRY_S = 0.3
LONG_S = 3600.0


class Callers:
    """The moves of the scenario, by real processes, on one database."""

    def __init__(self, chaos: Run, database: Path, parts: dict[str, str]) -> None:
        self.chaos = chaos
        self.database = database
        self.cache = parts["cache"]
        self.effects = chaos.directory / "generations"

    def start(self, target: str, name: str, prompts: list[int], **kwargs: Any) -> Agent:
        """Start a caller."""
        given = {"database": str(self.database), "cache": self.cache, "prompts": prompts, "effects": str(self.effects)}
        return self.chaos.spawn(target, kwargs={**given, **kwargs}, name=name)

    def generations(self) -> list[int]:
        """Return the prompts of all generations in the world."""
        return [int(line) for line in self.effects.read_text().split()] if self.effects.exists() else []

    def ask_in_shares(self, kind: str, count: int) -> list[dict[str, Any]]:
        """Let several processes ask for all prompts, each for a share of its own;
        return what they say.
        """
        shares = [list(range(place, count, PROCESSES)) for place in range(PROCESSES)]
        agents = [self.start(ALL, f"{kind}-{place}", share) for place, share in enumerate(shares)]
        for agent in agents:
            agent.wait_exit(timeout_s=60)
        return [mark.value for agent in agents for mark in agent.marks if mark.operation == "pass" and mark.value]

    def open(self, gate: str) -> None:
        """Make the file for which callers wait."""
        (self.chaos.directory / gate).touch()

    def path(self, gate: str) -> str:
        """Return the path of a file for which callers wait."""
        return str(self.chaos.directory / gate)

    def judge(self, prompts: int, *, kills: int = 0, generated: int = 1) -> None:
        """Expect right answers, and at most one more generation of a prompt for each kill."""
        seen = Counter(self.generations())
        chaos = self.chaos
        chaos.check(exactly_once.at_most(seen.elements(), generated + kills), expect="generations of each output")
        missing = [prompt for prompt in range(prompts) if seen[prompt] < generated]
        chaos.expect("outputs that were never generated", observed=len(missing), holds=not missing)
        total = sum(seen.values())
        bound = prompts * generated + kills
        chaos.expect("generations in all", observed=f"{total} of at most {bound}", holds=total <= bound)
        chaos.check(check_answers(chaos.history), expect="every answer is the right one")
        chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")


def check_answers(history: History) -> Iterator[Finding]:
    """Find answers to another request than the one asked."""
    for mark in history.acknowledged("pass"):
        for prompt in mark.value["wrong"]:
            yield wrong(f"agent {mark.agent} got another output for prompt {prompt}", mark.order)
    for mark in history.acknowledged("ask"):
        if not mark.value["right"]:
            yield wrong(f"agent {mark.agent} got another output for prompt {mark.key}", mark.order)


def wrong(text: str, order: int) -> Finding:
    """Return the finding of a wrong answer."""
    return Finding(signature="cache:wrong-output", text=text, checker="check_answers", orders=(order,))


@pytest.fixture
def callers(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> Callers:
    """Return the moves, on one database."""
    return Callers(chaos, fresh_db, parts)


def misses_then_hits(callers: Callers, count: int) -> None:
    """Ask for all prompts twice, the second time in other processes,
    and judge answers and statistics.
    """
    chaos = callers.chaos
    first, second = callers.ask_in_shares("first", count), callers.ask_in_shares("second", count)
    misses, hits = sum(each["misses"] for each in first), sum(each["hits"] for each in second)
    chaos.expect("misses of the first pass", observed=misses, holds=misses == count)
    chaos.expect("hits of the second pass", observed=hits, holds=hits == count)
    with LLMOutputCache(db_path=callers.database) as cache:
        found = cache.statistics()
    rate = (found.hits, found.misses, found.hit_rate)
    chaos.expect("hit_rate", observed=f"{found.hit_rate:.3f}", holds=rate == (count, count, 0.5))
    chaos.expect("tokens saved", observed=found.tokens_saved, holds=found.tokens_saved == count * TOKENS)
    callers.judge(count)


def test_a_thousand_misses_then_a_thousand_hits(callers: Callers) -> None:
    """The seed's figures: a thousand outputs, a rate of one half."""
    misses_then_hits(callers, OUTPUTS)


def killed_while_generating(callers: Callers, prompts: int, kills: int) -> None:
    """Kill callers in a generation drawn from the seed, restart them,
    and expect that each got all answers.
    """
    chaos = callers.chaos
    names = [f"caller-{place}" for place in range(PROCESSES)]
    drawn = chaos.random("kills")
    counts = [1 + int(drawn.random() * OWN) for _ in range(kills)]
    generating = [after_mark("generate", kind="intent", count=count) for count in counts]
    chaos.plan(*(kill(names[place], when) for place, when in enumerate(generating)))
    rounds = [round_of(place, prompts) for place in range(PROCESSES)]
    agents = [callers.start(EACH, name, each) for name, each in zip(names, rounds, strict=True)]
    for agent in agents:
        if agent.wait_exit(timeout_s=60).signal is not None:
            agent.restart().wait_exit(timeout_s=60)
    killed = sum(receipt.fired and receipt.kind == "kill" for receipt in chaos.receipts)
    chaos.expect("callers killed while they generated", observed=killed, holds=killed == kills)
    answered = {name: {mark.key for mark in chaos.history.acknowledged("ask", name)} for name in names}
    full = sum(len(keys) == prompts + OWN for keys in answered.values())
    chaos.expect("callers that got every answer", observed=full, holds=full == PROCESSES)
    callers.judge(prompts + OWN * PROCESSES, kills=kills)


def round_of(place: int, prompts: int) -> list[int]:
    """Return what a caller asks for: what all ask for, each from another start,
    and between that some of its own.

    So each generates several outputs whatever the others do, and its death is met by those who wait
    for the others.
    """
    start = place * prompts // PROCESSES
    asked = [(start + step) % prompts for step in range(prompts)]
    for step in range(OWN):
        asked.insert(2 * step + 1, prompts + place * OWN + step)
    return asked


def test_callers_are_killed_while_they_generate(callers: Callers) -> None:
    """The quick form: two of four callers die while they generate, and the others go on at once.

    Each output is there in the end.
    """
    killed_while_generating(callers, 16, 2)


@pytest.mark.chaos_deep
def test_all_callers_are_killed_while_they_generate(callers: Callers) -> None:
    """All four callers die while they generate, on a hundred outputs."""
    killed_while_generating(callers, 100, 4)


def stampede(callers: Callers, *, kills: int) -> None:
    """Let sixteen callers ask for one output.

    With a kill, the first of them dies while it generates and all others wait.
    """
    chaos = callers.chaos
    options = {"gate": callers.path("gate"), "ttl_s": LONG_S}
    if kills:
        chaos.plan(kill("doomed", after_mark("released", kind="note")))
        callers.open("gate")
        doomed = callers.start(AT_ONCE, "doomed", [0], hold=callers.path("doom"), **options)
        doomed.wait_for("generating", kind="note")
    crowd = [
        callers.start(AT_ONCE, f"caller-{place}", [0], hold=callers.path("hold"), **options)
        for place in range(STAMPEDE - kills)
    ]
    for agent in crowd:
        agent.wait_for("ready", kind="note")
    callers.open("gate")
    for agent in crowd:
        agent.wait_for("ask", kind="intent")
    callers.open("doom")
    chaos.wait_until(lambda: len(callers.generations()) > kills, what="a generation that nobody interrupts")
    callers.open("hold")
    for agent in crowd:
        agent.wait_exit(timeout_s=60)
    hits = sum(mark.value["hit"] for mark in chaos.history.acknowledged("ask"))
    chaos.expect("callers that waited for another", observed=hits, holds=hits == STAMPEDE - kills - 1)
    callers.judge(1, kills=kills)


def test_a_stampede_generates_once(callers: Callers) -> None:
    """Sixteen processes, one key, one generation."""
    stampede(callers, kills=0)


@pytest.mark.chaos_deep
def test_a_stampede_whose_generator_dies(callers: Callers) -> None:
    """The generator dies while fifteen callers wait: exactly one of them takes over."""
    stampede(callers, kills=1)


def test_all_outputs_expire_under_load(callers: Callers) -> None:
    """Everything expires at once while many ask: each output is refreshed once,
    and is a hit again after that.
    """
    chaos, prompts = callers.chaos, list(range(10))
    callers.start(AT_ONCE, "first", prompts, gate="", hold="", ttl_s=EXPIRY_S).wait_exit()
    clock = SystemClock()
    expired = clock.now() + round(EXPIRY_S * 1_000_000)
    crowd = [
        callers.start(AT_ONCE, f"caller-{place}", prompts, gate=callers.path("gate"), hold="", ttl_s=LONG_S)
        for place in range(PROCESSES)
    ]
    for agent in crowd:
        agent.wait_for("ready", kind="note")
    chaos.wait_until(lambda: clock.now() > expired, what="the expiry of all outputs")
    callers.open("gate")
    for agent in crowd:
        agent.wait_exit(timeout_s=60)
    callers.judge(len(prompts), generated=2)


@pytest.mark.parametrize("script", [of_keys, of_outputs], ids=lambda script: script.__name__)
def test_what_is_promised_at_its_very_moment(
    chaos: Run, fresh_db: Path, parts: dict[str, str], script: Callable[[], Script]
) -> None:
    """Executions and outputs are what the model says, by a clock that stands still."""
    play(chaos, "scenarios.once.key_scripts:play_keys", script(), database=str(fresh_db), parts=parts)
    judge(chaos, Keys(), fresh_db)


def test_a_caller_is_killed_at_every_point(callers: Callers) -> None:
    """Wherever a caller dies, another one and its successor get every answer."""
    chaos = callers.chaos
    chaos.plan(at_every_point("first", kill, points="recovery.*", sample=SAMPLE))
    first = callers.start(EACH, "first", [0, 1])
    if first.wait_exit().signal is not None:
        first.restart().wait_exit()
    callers.start(EACH, "second", [1, 0, 2]).wait_exit()
    callers.judge(3, kills=len(chaos.receipts))


def test_a_caller_stands_still_at_every_point(callers: Callers) -> None:
    """Wherever a caller stands still, another one gets every answer that it does not hold."""
    chaos = callers.chaos
    chaos.plan(at_every_point("first", pause, points="recovery.*", sample=SAMPLE))
    first = callers.start(EACH, "first", [0, 1])

    def others() -> Iterator[Agent]:
        yield callers.start(EACH, "second", [2, 1, 0])

    outlive(
        chaos, first, others, database=callers.database, waits=partial(asks_for_the_same, zombie=first, operation="ask")
    )
    chaos.agent("second").wait_exit()
    callers.judge(3)
