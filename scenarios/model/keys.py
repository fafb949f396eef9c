"""The model of what is executed once: what a key covers, until when, and what is in doubt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scenarios.model.states import Holding, Model, Moment, Outcome, Refused, Tables, us

if TYPE_CHECKING:
    from collections.abc import Mapping

LIFETIMES_S: Final = {"execute": 24 * 3600.0, "ask": 7 * 24 * 3600.0, "call": 30 * 24 * 3600.0}
"""How long a result is kept, by what gave it."""

CLAIM_S: Final = 30.0
"""How long an execution has its key without a renewal."""


SCOPES: Final = {"execute": "idempotency", "call": "tool"}
"""The scopes in which the core keeps keys apart."""


@dataclass
class Key:
    """A key: how often its effect was seen, and the result that all get, if any."""

    request: Any = None
    effects: int = 0
    result: str | None = None
    expires_at: int = 0
    in_doubt: bool = False
    doubted_effects: int = 0
    used_at: int = 0

    def keep(self, result: str, now: int, ttl_s: float) -> None:
        """Keep a result for a time."""
        self.result, self.expires_at, self.in_doubt = result, now + us(ttl_s), False

    def live(self, now: int) -> str | None:
        """Return the result, unless it has expired: at its very moment it has."""
        return self.result if self.result is not None and now < self.expires_at else None


def cache_key(model: str, messages: Any, parameters: Any, operation: str) -> str:
    """Return what a key of an output covers: all that the output depends on."""
    return json.dumps([operation, model, messages, parameters], sort_keys=True)


class Keys(Model):
    """What is executed once: under a key, as an output of a model, as a call of a tool."""

    def __init__(self, lifetimes_s: Mapping[str, float] = LIFETIMES_S, claim_s: float = CLAIM_S) -> None:
        """Begin with nothing."""
        self.lifetimes_s, self.claim_s = lifetimes_s, claim_s
        self.keys: dict[tuple[str, str], Key] = {}
        self.hits = self.misses = self.tokens_saved = self.generations = 0

    def execute(
        self, moment: Moment, key: str, request: Any = None, how: str = "returns", after_s: float = 0.0
    ) -> Outcome:
        """Execute under a key, or replay; another request under it is a conflict.

        ``how``: it returns, it raises, or another caller asks meanwhile, ``after_s`` later: it
        waits, or takes over what had its key for too long.
        """
        known = self.of("execute", key)
        if (result := known.live(moment.now)) is not None:
            if known.request != request:
                raise Refused("RequestConflict")
            return {"result": result, "is_replay": True}
        known.request, known.result = request, None
        known.effects += 1
        if how == "raises":
            return {"failed": True}
        is_overtaken = how == "is overtaken" and after_s >= self.claim_s
        known.effects += is_overtaken
        result = f"{key} {known.effects}"
        known.keep(result, moment.now + us(after_s), self.lifetimes_s["execute"])
        outcome = {"result": result, "is_replay": is_overtaken}
        return outcome | ({"other": result if is_overtaken else "InProgress"} if how == "is overtaken" else {})

    def find(self, moment: Moment, key: str, request: Any = None) -> Outcome:
        """Look for a result."""
        known = self.keys.get(("execute", key), Key())
        result = known.live(moment.now)
        if result is not None and known.request != request:
            raise Refused("RequestConflict")
        return {"result": result}

    def forget(self, _: Moment, key: str) -> Outcome:
        """Delete a result."""
        known = self.keys.pop(("execute", key), Key())
        self.keys["execute", key] = Key(effects=known.effects)
        return {"was_there": known.result is not None}

    def ask(
        self,
        moment: Moment,
        model: str,
        messages: Any,
        parameters: Any = None,
        operation: str = "generate",
        tokens: int = 1,
    ) -> Outcome:
        """Ask for an output of a model: it is paid for once, as long as it lives."""
        known = self.keys.setdefault(("ask", cache_key(model, messages, parameters, operation)), Key())
        result = known.live(moment.now)
        if result is None:
            self.generations += 1
            self.misses += 1
            known.keep(f"generation {self.generations}", moment.now, self.lifetimes_s["ask"])
            known.effects = tokens
        else:
            self.hits += 1
            self.tokens_saved += known.effects
        known.used_at = moment.now
        return {"output": known.result, "is_hit": result is not None}

    def evict(self, _: Moment, bytes_max: int) -> Outcome:
        """Delete the outputs that were used least recently, until the rest fits."""
        kept = [known for (kind, _), known in self.keys.items() if kind == "ask" and known.result is not None]
        kept.sort(key=lambda known: known.used_at)
        sizes = [len(json.dumps([known.result, known.effects, 0], separators=(",", ":"))) for known in kept]
        evicted = 0
        while sum(sizes[evicted:]) > bytes_max and evicted < len(kept):
            kept[evicted].result = None
            evicted += 1
        return {"evicted": evicted}

    def statistics(self, _: Moment) -> Outcome:
        """Return the counts of the cache."""
        return {"hits": self.hits, "misses": self.misses, "tokens_saved": self.tokens_saved}

    def call(self, moment: Moment, key: str, how: str = "returns", policy: str = "raise") -> Outcome:
        """Call a tool, or replay; what began and has no end is in doubt.

        ``how``: it returns, it raises (the next call runs it), or it is interrupted. In doubt, the
        policy decides: raise, run again, or probe the world for the effect.
        """
        known = self.of("call", key)
        if (result := known.live(moment.now)) is not None:
            return {"result": result, "is_replay": True}
        if known.in_doubt and policy == "raise":
            raise Refused("InDoubt")
        has_happened = known.in_doubt and policy == "probe" and known.effects > known.doubted_effects
        self.begin(moment, key)
        known.effects += not has_happened
        if how == "is interrupted" and not has_happened:
            return {"interrupted": True}
        if how == "raises" and not has_happened:
            known.in_doubt, known.result = False, None
            return {"failed": True}
        known.keep(f"{key} {known.effects}", moment.now, self.lifetimes_s["call"])
        return {"result": known.result, "is_replay": False}

    def begin(self, _: Moment, key: str) -> None:
        """Begin a call: without an end it is in doubt, and its effect may have been seen or not."""
        known = self.of("call", key)
        if not known.in_doubt:
            known.in_doubt, known.result, known.doubted_effects = True, None, known.effects

    def of(self, kind: str, key: str) -> Key:
        """Return what is known of a key."""
        return self.keys.setdefault((kind, key), Key())

    def in_doubt(self, _: Moment) -> Outcome:
        """Return the calls that are in doubt."""
        return {"keys": sorted(key for (kind, key), known in self.keys.items() if kind == "call" and known.in_doubt)}

    def discard(self, moment: Moment, kind: str) -> Outcome:
        """Delete the results of one kind that have expired."""
        expired = [known for (each, _), known in self.keys.items() if each == kind and known.result is not None]
        expired = [known for known in expired if known.expires_at <= moment.now]
        for known in expired:
            known.result = None
        return {"discarded": len(expired)}

    def tables(self) -> Tables:
        """Return the rows of keys and calls, and how many outputs are kept."""
        rows = {(kind, key): known for (kind, key), known in self.keys.items() if known.result or known.in_doubt}
        return {
            "keys": {
                f"{SCOPES[kind]}/{key}": {
                    "status": "in_doubt" if known.result is None else "done",
                    "result": None if known.result is None else Holding(f'"{known.result}"'),
                    "expires_at": None if known.result is None else known.expires_at,
                }
                for (kind, key), known in rows.items()
                if kind in SCOPES
            },
            "outputs": {"all": {"count": sum(kind == "ask" for kind, _ in rows)}},
        }
