"""The operations on keys of the core's state machine:
executions and tool calls, crashed, overtaken, in doubt, expired.

Each worker has an idempotency store and a ledger of its own, as a process would, and gets new ones
when it dies. The model of a key is what the world has seen and what is known of it; effects are
counted where they happen.
"""

from __future__ import annotations

import contextlib
import contextvars
from typing import TYPE_CHECKING, ClassVar, TypeVar

import pytest
from durable_agents import RAISE, RUN_AGAIN, Happened, IdempotencyStore, ManualClock, Probe, ToolLedger, ToolRun
from durable_agents.errors import InDoubt, InProgress, RequestConflict
from durable_agents.once.crash_points import CLAIM_CRASH_POINTS, END_CRASH_POINTS, TOOL_CRASH_POINTS
from durable_agents.once.requests import decoded_result
from durable_agents.once.tool_ledger import Outcomes
from durable_agents.service import PeriodicService
from durable_agents.store.rows import KeyStatus
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scenarios.model.keys import Key, Keys
from scenarios.model.states import Moment
from tests.recovery.crashes import CrashError, Crashes, rarely

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents import SqliteStore
    from durable_agents.once.claims import KeyClaims
    from durable_agents.once.tool_ledger import DoubtPolicy

Result = TypeVar("Result")

WORKERS = ("a", "b")
KEYS = ("k", "l")
TTL_S = 20.0
CLAIM_S = 2.0
POINTS = (*CLAIM_CRASH_POINTS, *END_CRASH_POINTS)
ENDED = (KeyStatus.DONE, KeyStatus.FAILED)


class KeyMachine(RuleBasedStateMachine):
    """What two workers do with keys."""

    keys_kind: ClassVar[type[IdempotencyStore]] = IdempotencyStore
    ledger_kind: ClassVar[type[ToolLedger]] = ToolLedger
    store: SqliteStore
    clock: ManualClock

    def attempt(self, worker: str | None, call: Callable[[], Result], crash: str | None) -> Result | None:
        """Call, with a crash armed; the whole machine knows how."""
        raise NotImplementedError

    def prepare_keys(self) -> None:
        """Begin with two workers that have done nothing."""
        self.keys = Keys(dict.fromkeys(("execute", "call"), TTL_S), CLAIM_S)
        self.seen: dict[str, int] = {}
        self.stores: dict[str, IdempotencyStore] = {}
        self.ledgers: dict[str, ToolLedger] = {}
        for worker in WORKERS:
            self._start(worker)

    def close_keys(self) -> None:
        """Let the workers go."""
        for worker in WORKERS:
            self._end(worker)

    def restart_keys(self, worker: str) -> None:
        """Let a worker die, as all others see it, and begin anew."""
        self._end(worker)
        self._start(worker)

    def _start(self, worker: str) -> None:
        keys = self.keys_kind(self.store, clock=self.clock, ttl_s=TTL_S, wait_s=0, claim_s=CLAIM_S)
        ledger = self.ledger_kind(self.store, clock=self.clock, ttl_s=TTL_S, wait_s=0, claim_s=CLAIM_S)
        for part in (keys._claims, ledger._claims):
            _never_renewed(part)
        self.stores[worker], self.ledgers[worker] = keys, ledger

    def _end(self, worker: str) -> None:
        self.stores[worker]._claims.close()
        self.ledgers[worker]._claims.close()

    def effect(self, name: str) -> str:
        """Have an effect on the world, and return what it put out."""
        self.seen[name] = self.seen.get(name, 0) + 1
        return f"{name} {self.seen[name]}"

    # What workers do.

    @rule(
        worker=st.sampled_from(WORKERS),
        key=st.sampled_from(KEYS),
        meanwhile=st.sampled_from([None, None, "asks", "asks otherwise", "overtakes", "raises"]),
        crash=rarely(POINTS),
    )
    def execute(self, worker: str, key: str, meanwhile: str | None, crash: str | None) -> None:
        """Ask for the result under a key, while another may ask too,
        or take over what took too long.
        """
        known, other = self.keys.of("execute", f"execute {key}"), self.stores[WORKERS[worker == WORKERS[0]]]
        crash = crash if meanwhile is None else None

        def produce() -> str:
            made = self.effect(f"execute {key}")
            if meanwhile == "raises":
                raise ConnectionError
            if meanwhile is not None:
                contextvars.Context().run(self._meanwhile, other, key, meanwhile)
            return made

        before = known.live(self.clock.now())
        if before is None and meanwhile == "raises":
            with pytest.raises(ConnectionError):
                self.stores[worker].execute(key, produce)
            known.effects += 1
            known.result = None
            return
        done = self.attempt(worker, lambda: self.stores[worker].execute(key, produce), crash)
        if before is not None:
            assert done is not None
            assert (done.result, done.is_replay) == (before, True)
            return
        known.result = known.result if done is None and crash in POINTS[:2] else None
        if done is not None or crash in END_CRASH_POINTS:
            known.effects += 1 + (meanwhile == "overtakes")
        if done is not None or crash == END_CRASH_POINTS[-1]:
            known.keep(f"execute {key} {known.effects}", self.clock.now(), TTL_S)
        if done is not None:
            assert (done.result, done.is_replay) == (known.result, meanwhile == "overtakes")

    @rule(
        worker=st.sampled_from(WORKERS), key=st.sampled_from(KEYS), point=st.sampled_from(POINTS), is_late=st.booleans()
    )
    def interrupt(self, worker: str, key: str, point: str, is_late: bool) -> None:  # noqa: FBT001 - drawn
        """Interrupt a worker, which lives: it can ask again at once,
        and another one a claim's length later.
        """
        known, before = (
            self.keys.of("execute", f"execute {key}"),
            self.keys.of("execute", f"execute {key}").live(self.clock.now()),
        )
        Crashes.armed, Crashes.error = point, KeyboardInterrupt
        with contextlib.suppress(KeyboardInterrupt):
            self.stores[worker].execute(key, lambda: self.effect(f"execute {key}"))
        Crashes.armed, Crashes.error = None, CrashError
        if before is None:
            known.result = None if point not in POINTS[:2] else known.result
            known.effects += point in END_CRASH_POINTS
            if point == END_CRASH_POINTS[-1]:
                known.keep(f"execute {key} {known.effects}", self.clock.now(), TTL_S)
        if is_late:
            for _ in range(3):
                self.clock.advance(CLAIM_S / 2)
                self.stores[worker]._claims.renew()
            worker = WORKERS[worker == WORKERS[0]]
        self.execute(worker, key, None, None)

    def _meanwhile(self, other: IdempotencyStore, key: str, what: str) -> None:
        if what == "overtakes":
            self.clock.advance(CLAIM_S + 1)
            assert not other.execute(key, lambda: self.effect(f"execute {key}")).is_replay
        elif what == "asks otherwise":
            with pytest.raises(RequestConflict):
                other.execute(key, lambda: self.effect(f"execute {key}"), request="another")
        else:
            with pytest.raises(InProgress):
                other.execute(key, lambda: self.effect(f"execute {key}"))

    @rule(
        worker=st.sampled_from(WORKERS),
        key=st.sampled_from(KEYS),
        policy=st.sampled_from(["again", "raise", "probe", "probe"]),
        crash=rarely((*POINTS, *TOOL_CRASH_POINTS)),
    )
    def call_a_tool(self, worker: str, key: str, policy: str, crash: str | None) -> None:
        """Call a tool through the ledger, and decide what is in doubt."""
        known, name = self.keys.of("call", f"tool {key}"), f"tool {key}"

        def call() -> ToolRun:
            policies: dict[str, DoubtPolicy] = {
                "again": RUN_AGAIN,
                "raise": RAISE,
                "probe": Probe(lambda: self._probe(name, known)),
            }
            return self.ledgers[worker].run("tool", key, lambda: self.effect(name), in_doubt=policies[policy], key=key)

        before = known.live(self.clock.now())
        if before is None and known.in_doubt and policy == "raise":
            self._raised(worker, call, crash)
            return
        happened = known.in_doubt and policy == "probe" and known.effects > known.doubted_effects
        done = self.attempt(worker, call, crash)
        if before is not None:
            self._answered(done, before, is_replay=True)
            return
        self._called(name, policy, crash if done is None else None, happened=happened)
        if done is not None:
            self._answered(done, known.result, is_replay=False)

    def _answered(self, done: ToolRun | None, output: str | None, *, is_replay: bool) -> None:
        assert done is not None
        assert (done.output, done.is_replay) == (output, is_replay)

    def _probe(self, name: str, known: Key) -> Happened | None:
        seen = self.seen.get(name, 0)
        return Happened(f"{name} {seen}") if seen > known.doubted_effects else None

    def _raised(self, worker: str, call: Callable[[], ToolRun], crash: str | None) -> None:
        def refused() -> bool:
            with pytest.raises(InDoubt):
                call()
            return True

        self.attempt(worker, refused, crash)

    def _called(self, name: str, policy: str, crash: str | None, *, happened: bool) -> None:
        """Note in the model what a call that was not answered by a result came to."""
        moment = Moment(self.clock.now(), self.clock.monotonic())
        if crash in CLAIM_CRASH_POINTS[:2] or (happened and crash not in {None, END_CRASH_POINTS[-1]}):
            return
        if crash in {CLAIM_CRASH_POINTS[2], TOOL_CRASH_POINTS[0]}:
            self.keys.begin(moment, name)
            return
        has_ended = crash in {None, END_CRASH_POINTS[-1]}
        self.keys.call(moment, name, "returns" if has_ended else "is interrupted", policy)

    # What must hold after every step.

    @invariant()
    def the_world_has_seen_what_the_model_says(self) -> None:
        """No effect more, and none less."""
        for kind, keys in (
            ("execute", {key: self.keys.of("execute", f"execute {key}") for key in KEYS}),
            ("tool", {key: self.keys.of("call", f"tool {key}") for key in KEYS}),
        ):
            for key, known in keys.items():
                assert self.seen.get(f"{kind} {key}", 0) == known.effects

    @invariant()
    def the_keys_are_those_of_the_model(self) -> None:
        """A result is there as the model has it, and what is in doubt has a row that says so."""
        outcomes = Outcomes(self.ledgers["a"].outputs, 10**6)
        for key in KEYS:
            executed, called = self.store.key(f"idempotency/{key}"), self.store.key(f"tool/{key}")
            now = self.clock.now()
            if (result := self.keys.of("execute", f"execute {key}").live(now)) is not None:
                assert executed is not None
                assert executed.result is not None
                assert decoded_result(executed.result) == result
            else:
                assert executed is None or executed.status not in ENDED or now >= (executed.expires_at or 0)
            if (result := self.keys.of("call", f"tool {key}").live(now)) is not None:
                assert called is not None
                assert called.result is not None
                assert outcomes.decoded(called.result)[0] == result
            elif self.keys.of("call", f"tool {key}").in_doubt:
                assert called is not None
                assert called.status not in ENDED


def _never_renewed(claims: KeyClaims) -> None:
    """Put a loop in the place of the renewals that was not started:
    time moves by the machine alone.
    """
    claims._renewals = PeriodicService(claims.renew, interval_s=3600)
