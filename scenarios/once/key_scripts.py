"""What the core promises of keys, as a script: what is replayed, and until when."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any, Final

from durable_agents import (
    RAISE,
    RUN_AGAIN,
    Generation,
    Happened,
    IdempotencyStore,
    LLMOutputCache,
    Probe,
    ToolLedger,
    open_store,
)
from durable_agents.errors import InProgress

from scenarios.judging import Script, ScriptClock, Steps, perform
from scenarios.model.keys import LIFETIMES_S
from scenarios.model.states import Moment, us
from scenarios.work.agents import made

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents.once.tool_ledger import DoubtPolicy
    from pytest_chaos import Marks


def play_keys(
    marks: Marks, database: str, parts: dict[str, str], steps: list[Any], known: list[dict[str, Any]]
) -> None:
    """Do steps with keys."""
    assert not known
    clock = ScriptClock()
    with open_store(database) as store:
        perform(marks, clock, steps, KeySteps(store, clock, parts).do)


class ToolError(Exception):
    """What a tool raises."""


class KeySteps(Steps):
    """The steps of a script, by the stores of the core; a second caller has its own."""

    def __init__(self, store: Any, clock: ScriptClock, parts: dict[str, str]) -> None:
        """Make the stores."""
        self.clock, self.store = clock, store
        self.keys, self.others = (IdempotencyStore(store, clock=clock, wait_s=0, execution_s_max=1.0) for _ in range(2))
        self.cache: LLMOutputCache = made(parts["cache"], store, clock=clock)
        self.ledger: ToolLedger = made(parts["ledger"], store, clock=clock, wait_s=0)
        self.effects: dict[str, int] = {}

    def effect(self, kind: str, key: str) -> str:
        """Have an effect on the world, and return what it put out."""
        name = f"{kind} {key}"
        self.effects[name] = self.effects.get(name, 0) + 1
        return f"{key} {self.effects[name]}"

    def execute(self, key: str, request: Any = None, how: str = "returns", after_s: float = 0.0) -> dict[str, Any]:
        """Execute under a key."""
        meanwhile: dict[str, Any] = {}

        def produce() -> str:
            result = self.effect("execute", key)
            if how == "raises":
                raise ToolError
            if how == "is overtaken":
                meanwhile["other"] = contextvars.Context().run(self.ask_meanwhile, key, request, after_s)
            return result

        try:
            done = self.keys.execute(key, produce, request=request)
        except ToolError:
            return {"failed": True}
        return {"result": done.result, "is_replay": done.is_replay, **meanwhile}

    def ask_meanwhile(self, key: str, request: Any, after_s: float) -> Any:
        """Ask for the same key as another caller, some time later."""
        before = self.clock.moment
        self.clock.moment = Moment(before.now + us(after_s), before.monotonic + us(after_s))
        try:
            return self.others.execute(key, lambda: self.effect("execute", key), request=request).result
        except InProgress:
            return "InProgress"

    def find(self, key: str, request: Any = None) -> dict[str, Any]:
        """Look for a result."""
        found = self.others.find(key, request=request)
        return {"result": None if found is None else found.result}

    def forget(self, key: str) -> dict[str, Any]:
        """Delete a result."""
        return {"was_there": self.keys.forget(key)}

    def ask(self, tokens: int = 1, **request: Any) -> dict[str, Any]:
        """Ask for an output."""

        def generate() -> Generation:
            self.effects["generation"] = number = self.effects.get("generation", 0) + 1
            return Generation(f"generation {number}", tokens)

        found = self.cache.get_or_generate(generate, **request)
        return {"output": found.output, "is_hit": found.is_hit}

    def evict(self, bytes_max: int) -> dict[str, Any]:
        """Evict by size, with a cache that has this bound."""
        self.cache.flush()
        return {"evicted": LLMOutputCache(self.store, clock=self.clock, bytes_max=bytes_max).evict()}

    def statistics(self) -> dict[str, Any]:
        """Return the counts of the cache."""
        found = self.cache.statistics()
        return {"hits": found.hits, "misses": found.misses, "tokens_saved": found.tokens_saved}

    def call(self, key: str, how: str = "returns", policy: str = "raise") -> dict[str, Any]:
        """Call a tool."""
        before = self.effects.get(f"call {key}", 0)

        def tool() -> str:
            result = self.effect("call", key)
            if how == "raises":
                raise ToolError
            if how == "is interrupted":
                raise KeyboardInterrupt
            return result

        probe: Callable[[], Happened | None] = lambda: Happened(f"{key} {before}") if before else None  # noqa: E731 - beside the others
        policies: dict[str, DoubtPolicy] = {"raise": RAISE, "again": RUN_AGAIN, "probe": Probe(probe)}
        try:
            run = self.ledger.run("tool", key, tool, in_doubt=policies[policy], key=key)
        except ToolError:
            return {"failed": True}
        except KeyboardInterrupt:
            return {"interrupted": True}
        return {"result": run.output, "is_replay": run.is_replay}

    def in_doubt(self) -> dict[str, Any]:
        """Return the calls in doubt."""
        return {"keys": sorted(self.ledger.in_doubt())}

    def discard(self, kind: str) -> dict[str, Any]:
        """Delete what has expired."""
        stores: dict[str, Any] = {"execute": self.keys, "ask": self.cache, "call": self.ledger}
        return {"discarded": stores[kind].discard_expired()}


LAST_US: Final = 1
"""Before the very moment."""


def of_keys() -> Script:
    """Say what a key covers, how long its result is kept, and who executes meanwhile."""
    script = Script()
    for request in ({"n": 1}, {"n": 1}, {"n": 2}, None):
        script.then("execute", key="k", request=request).then("find", key="k", request=request)
    script.then("execute", key="l", how="raises").then("find", key="l").then("execute", key="l")
    for after_s in (29.999_999, 30.0):
        script.then("execute", key=f"m{after_s}", request=1, how="is overtaken", after_s=after_s)
        script.wait(after_s).then("execute", key=f"m{after_s}", request=1)
    script.then("forget", key="l").then("forget", key="l").then("execute", key="l").then("forget", key="k")
    script.then("execute", key="k", request={"n": 1})
    script.wait(LIFETIMES_S["execute"], but_us=LAST_US).then("find", key="l").then("execute", key="k", request={"n": 1})
    script.then("discard", kind="execute").wait(0, but_us=-LAST_US).then("find", key="l")
    script.then("execute", key="k", request={"n": 3}).then("execute", key="k", request={"n": 3})
    for bad in ("", "\0", "$surrogate", "k" * 1025, 7):
        script.then("bad", call="execute", error="InvalidKey", key=bad)
    for bad in ("$nan", "$bytes", "$object"):
        script.then("bad", call="execute", error="InvalidRequest", key="n", request=bad)
    return script.then("discard", kind="ask").then("discard", kind="execute").then("discard", kind="execute")


def of_outputs() -> Script:
    """Say what an output depends on, and that it is paid for once while it lives."""
    script = Script()
    request: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": "?"}],
        "parameters": {"t": 0, "p": 1},
    }
    others: tuple[dict[str, Any], ...] = (
        {},
        {"model": "n"},
        {"messages": []},
        {"parameters": {"t": 1, "p": 1}},
        {"operation": "embed"},
    )
    for other in (*others, *others, {"parameters": {"p": 1, "t": 0}}):
        script.then("ask", **request | other, tokens=3)
    script.then("statistics").wait(LIFETIMES_S["ask"], but_us=LAST_US).then("ask", **request)
    script.wait(0, but_us=-LAST_US).then("ask", **request, tokens=5).then("ask", **request).then("statistics")
    script.then("discard", kind="ask")
    for number in (1, 2, 3, 4, 2, 1):
        script.wait(1).then("ask", model=f"m{number}", messages=[])
    script.then("evict", bytes_max=10_000).then("evict", bytes_max=3 * len('["generation 9",1,0]') + 3)
    for number in (1, 2, 3, 4):
        script.wait(1).then("ask", model=f"m{number}", messages=[])
    for bad in ("$nan", "$bytes", "$object"):
        script.then("bad", call="ask", error="InvalidRequest", model="m", messages=bad)
    return script.then("evict", bytes_max=0).then("ask", **request).then("statistics")


def of_tools() -> Script:
    """Say what is replayed of a tool, what is run again, and what is in doubt."""
    script = Script().then("call", key="k").then("call", key="k").then("call", key="f", how="raises")
    script.then("call", key="f").then("call", key="f")
    for policy in ("raise", "again", "probe"):
        script.then("call", key=policy, how="is interrupted").then("in_doubt")
        script.then("call", key=policy).then("call", key=policy, policy=policy).then("call", key=policy)
    script.then("call", key="again twice", how="is interrupted")
    script.then("call", key="again twice", how="is interrupted", policy="again").then("in_doubt")
    script.then("call", key="again twice", policy="probe").then("in_doubt")
    script.wait(LIFETIMES_S["call"], but_us=LAST_US).then("call", key="k").wait(0, but_us=-LAST_US)
    return script.then("discard", kind="call").then("call", key="k").then("call", key="k").then("in_doubt")
