"""Tool ledgers with one known bug each.

| variant | bug | seen by |
|---|---|---|
| IntentAfterEffect | the intent is written when the effect is over | a kill between effect and record |
| LeavesToolsRunning | an interrupt ends the wait for a tool and not the tool | an agent that is asked to end |
| IgnoresProbe | runs again in doubt, whatever the probe would say | a kill between effect and record |
| ForgetsDoubt | takes an unfinished call for one that never began | a kill between effect and record, with raise |
| RunsLate | a tool is run under a claim that is over | a zombie that wakes before its tool |
| LargeChangesType | the first caller gets a text in the place of a large output (D8) | a large output |
| CachesFailures | exit 3 is recorded, and replayed from then on (D8) | a command that fails |
| CutsOutput | what is recorded is the first 100,000 bytes | a large output, replayed |
"""

from __future__ import annotations

import queue
import sys
import threading
from typing import TYPE_CHECKING, Any

import msgspec
from durable_agents import CommandOutput, ToolLedger, ToolRun
from durable_agents.once.crash_points import OncePoint
from durable_agents.once.tool_ledger import INLINE_BYTES_MAX, Probe

if TYPE_CHECKING:
    from durable_agents.once.claims import KeyClaim
    from durable_agents.once.owner_lock import OwnerLock
    from durable_agents.once.tool_ledger import Happened, _Call

CUT_BYTES = 100_000


class IntentAfterEffect(ToolLedger):
    """Runs the tool, and then writes that it is about to."""

    def _run(self, call: _Call, owner: OwnerLock | None = None) -> ToolRun:
        name = self._claims.stored(call.key)
        sys.audit(OncePoint.BEFORE_EFFECT, name)
        output = call.tool(owner)
        sys.audit(OncePoint.AFTER_EFFECT, name)
        late = msgspec.structs.replace(call, tool=lambda _: output)
        return super()._run(late, owner)


class LeavesToolsRunning(ToolLedger):
    """Runs the tool elsewhere, and when the wait for it is interrupted, gives up the wait alone."""

    def _effect(self, call: _Call, claim: KeyClaim, owner: OwnerLock | None) -> Any:
        outputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=lambda: outputs.put(call.tool(owner)), daemon=True).start()
        return super()._effect(msgspec.structs.replace(call, tool=lambda _: outputs.get()), claim, owner)


class IgnoresProbe(ToolLedger):
    """Has a probe and does not ask it."""

    def _decide(self, call: _Call, claim: KeyClaim) -> Happened | None:
        return None if isinstance(call.in_doubt, Probe) else super()._decide(call, claim)


class ForgetsDoubt(ToolLedger):
    """Believes that what has no outcome has had no effect."""

    def _decide(self, call: _Call, claim: KeyClaim) -> Happened | None:
        assert claim.is_in_doubt
        assert call.key
        return None


class RunsLate(ToolLedger):
    """Has a claim, and runs the tool whenever it comes to it."""

    def _effect(self, call: _Call, claim: KeyClaim, owner: OwnerLock | None) -> Any:
        with self._claims.executing(claim):
            return call.tool(owner)


class LargeChangesType(ToolLedger):
    """Returns a large output as it happens to have it the first time."""

    def _record(self, call: _Call, claim: KeyClaim, output: Any, duration_us: int = 0) -> ToolRun:
        run = super()._record(call, claim, output, duration_us)
        if isinstance(run.output, CommandOutput) and len(run.output.stdout) > INLINE_BYTES_MAX:
            text: Any = run.output.stdout.decode(errors="replace")
            return ToolRun(msgspec.structs.replace(run.output, stdout=text), run.is_replay)
        return run


class CachesFailures(ToolLedger):
    """Keeps every ending, asked or not."""

    def _record(self, call: _Call, claim: KeyClaim, output: Any, duration_us: int = 0) -> ToolRun:
        return super()._record(msgspec.structs.replace(call, keeps_failures=True), claim, output, duration_us)


class CutsOutput(ToolLedger):
    """Records what fits into a column."""

    def _record(self, call: _Call, claim: KeyClaim, output: Any, duration_us: int = 0) -> ToolRun:
        if isinstance(output, CommandOutput):
            cut = msgspec.structs.replace(output, stdout=output.stdout[:CUT_BYTES])
            super()._record(call, claim, cut, duration_us)
            return ToolRun(output, is_replay=False)
        return super()._record(call, claim, output, duration_us)
