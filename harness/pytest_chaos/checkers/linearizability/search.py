"""The search for a linearization: an order of calls that a model allows, in real time.

Wing and Gong ("Testing and verifying concurrent objects", 1993) try every order of the calls that
overlap. Lowe ("Testing for linearizability", 2017) made that fast in two ways, and both are here: a
call takes effect *just in time*, when some call has to return, and a configuration that was seen
before is not searched again. A configuration is the place in the history, the state, and which of
the pending calls have taken effect (bits of an int: a bit is used again once its call has
returned).

Five cuts keep it small, and each keeps every verdict:

* Calls of an *observer* (a read) take effect as soon as the state allows them: they change nothing.
* An unknown observer is left out, and an unknown call that changes nothing now is not tried.
* Unknown calls that are alike take effect in the order in which they began.
* A model may say which states cannot lead to what the next observer saw (``leads_to``).
* Parts that the model says are independent (keys) are searched one by one: linearizability is
  local (Herlihy and Wing, 1990).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_chaos.model.calls import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Sequence

    from pytest_chaos.checkers.linearizability.models import ObjectModel
    from pytest_chaos.model.calls import Call

_LOOK_EVERY: Final = 0x7FF
"""How many configurations are tried between two looks at the budget: a power of two less one."""
STATES_KEPT: Final = 20
_CONFIGURATION_BYTES: Final = 400
"""What a remembered configuration costs, with its frame: measured at some 330 to 390 bytes."""


class Decision(enum.Enum):
    """The answer of a search. UNKNOWN: the budget ended first."""

    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    UNKNOWN = "unknown"


class SearchLimits(NamedTuple):
    """The budget of a search: configurations, bytes, and a question whether time is up."""

    configurations: int
    memory_bytes: int
    is_over: Callable[[], bool]


class SearchResult(NamedTuple):
    """What a search came to.

    ``prefix`` is the longest order of calls that the model allows, ``stuck`` the call that had to
    return next and could not. ``states`` are the states in which it was tried, ``pending`` the
    other calls that were open. ``spent`` counts configurations, ``reason`` says what ended the
    budget.
    """

    answer: Decision
    spent: int
    prefix: tuple[Call, ...] = ()
    stuck: Call | None = None
    states: tuple[object, ...] = ()
    pending: tuple[Call, ...] = ()
    reason: str = ""


class _Places:
    """The calls of one part as numbers: events in order, bits, and who is pending when."""

    def __init__(self, calls: Sequence[Call], model: ObjectModel) -> None:
        observers = model.observers
        self.calls = [
            call
            for call in calls
            if call.outcome is Outcome.OK or (call.outcome is Outcome.UNKNOWN and call.function not in observers)
        ]
        self.observes = [call.function in observers for call in self.calls]
        self.unknown = [call.end is None for call in self.calls]
        ends = [(call.end, 1, nth) for nth, call in enumerate(self.calls) if call.end is not None]
        self.events = sorted([(call.start, 0, nth) for nth, call in enumerate(self.calls)] + ends)
        self.bits = self._bits()
        self.before = self._alike(by_process=model.by_process)
        self.unknowns = [nth for nth, unknown in enumerate(self.unknown) if unknown]
        self.pending: dict[int, tuple[tuple[int, ...], tuple[int, ...], int]] = {}
        self._pend()
        self.next_seen = {} if model.resets is None else self._next_seen(model.resets)

    def _bits(self) -> list[int]:
        bits = [0] * len(self.calls)
        free: list[int] = []
        used = 0
        for _, is_end, nth in self.events:
            if is_end:
                free.append(bits[nth])
            elif free and not self.unknown[nth]:
                bits[nth] = free.pop()
            else:
                bits[nth] = 1 << used
                used += 1
        self.bits_used = used
        return bits

    def _alike(self, *, by_process: bool) -> list[int]:
        """Return for each unknown call the bit of the one before it that is alike; 0 for none."""
        before = [0] * len(self.calls)
        last: dict[Hashable, int] = {}
        for nth, call in enumerate(self.calls):
            if self.unknown[nth]:
                like = (call.function, call.key, call.input, call.process if by_process else None)
                before[nth] = last.get(like, 0)
                last[like] = self.bits[nth]
        return before

    def _pend(self) -> None:
        """Note at each return what is pending: acting calls, observers, how many unknown ones."""
        acting: dict[int, None] = {}
        watching: dict[int, None] = {}
        unknown = 0
        for place, (_, is_end, nth) in enumerate(self.events):
            kind = watching if self.observes[nth] else acting
            if is_end:
                del kind[nth]
                self.pending[place] = (tuple(acting), tuple(watching), unknown)
            elif self.unknown[nth]:
                unknown += 1
            else:
                kind[nth] = None

    def _next_seen(self, resets: Collection[str]) -> dict[int, tuple[Call, int, int]]:
        """Return for each return the observer that returns next, its bit, and those of open resets.

        There is none where a reset begins before that observer returns.
        """
        following: dict[int, tuple[int, bool]] = {}
        last: int | None = None
        is_reset_later = has_begun = False
        for place in range(len(self.events) - 1, -1, -1):
            _, is_end, nth = self.events[place]
            if is_end and self.observes[nth]:
                last, is_reset_later, has_begun = nth, False, True
            elif nth == last:
                has_begun = False
            elif not is_end and self.calls[nth].function in resets:
                is_reset_later = True
            if is_end and last is not None and not is_reset_later:
                following[place] = (last, has_begun)
        found: dict[int, tuple[Call, int, int]] = {}
        opened = 0
        for place, (_, is_end, nth) in enumerate(self.events):
            if self.calls[nth].function in resets and not is_end:
                opened |= self.bits[nth]
            if place in following:
                seen, has_begun = following[place]
                found[place] = (self.calls[seen], self.bits[seen] if has_begun else 0, opened)
            if self.calls[nth].function in resets and is_end:
                opened &= ~self.bits[nth]
        return found


def find_order(calls: Sequence[Call], model: ObjectModel, limits: SearchLimits) -> SearchResult:
    """Search one part of a history for a linearization. Inputs and outputs must be hashable."""
    return _Search(_Places(calls, model), model, limits).run()


_Path = tuple[int, Any]
"""The calls that have taken effect, last first: a chain that branches share."""


class _Search:
    def __init__(self, places: _Places, model: ObjectModel, limits: SearchLimits) -> None:
        self.places = places
        self.step = model.step
        self.leads_to = model.leads_to
        self.initial = model.initial
        self.limits = limits
        self.seen: set[tuple[int, int, object]] = set()
        self.farthest = -1
        self.best: _Path | None = None
        self.states: set[object] = set()
        self.spent = 0

    def _may_be(self, state: object, mask: int, place: int) -> bool:
        """Whether a new state can lead to what the observer that returns next has seen."""
        if (following := self.places.next_seen.get(place)) is None:
            return True
        call, bit, resets = following
        return bool(mask & bit) or (mask & resets) != resets or self.leads_to(state, call)

    def run(self) -> SearchResult:  # noqa: C901 - one loop, flat for speed: it is the whole cost of a check
        places, step, seen = self.places, self.step, self.seen
        events, calls, bits, unknown = places.events, places.calls, places.bits, places.unknown
        observes, before, pending, unknowns = places.observes, places.before, places.pending, places.unknowns
        next_seen = places.next_seen
        end = len(events)
        frames: list[list[Any]] = []
        place, mask, state = 0, 0, self.initial
        path: _Path | None = None
        entry_bytes = _CONFIGURATION_BYTES + places.bits_used // 7
        while True:
            stuck = False
            while place < end:
                _, is_end, nth = events[place]
                bit = bits[nth]
                if not is_end:
                    if observes[nth] and step(state, calls[nth]) is not None:
                        mask |= bit
                        path = (nth, path)
                elif mask & bit:
                    mask ^= bit
                else:
                    acting, watching, open_unknown = pending[place]
                    if acting or open_unknown:
                        key = (place, mask, state)
                        if key in seen:
                            stuck = True
                            break
                        seen.add(key)
                        frames.append([place, mask, state, path, 0])
                    self.spent += 1
                    if not self.spent & _LOOK_EVERY and (reason := self._over(len(seen) * entry_bytes)):
                        return SearchResult(Decision.UNKNOWN, self.spent, reason=reason)
                    after = step(state, calls[nth])
                    if after is None:
                        stuck = True
                        break
                    path = (nth, path)
                    if after != state:
                        state = after
                        for other in watching:
                            if not mask & bits[other] and step(state, calls[other]) is not None:
                                mask |= bits[other]
                                path = (other, path)
                        if next_seen and not self._may_be(state, mask, place):
                            stuck = True
                            break
                place += 1
            if not stuck:
                return SearchResult(Decision.LINEARIZABLE, self.spent, self._chain(path))
            if place > self.farthest:
                self.farthest, self.best = place, path
                self.states.clear()
            if place == self.farthest and len(self.states) < STATES_KEPT:
                self.states.add(state)
            while frames:
                frame = frames[-1]
                place, mask, state, path, tried = frame
                acting, watching, open_unknown = pending[place]
                if tried == len(acting) + open_unknown:
                    frames.pop()
                    continue
                frame[4] = tried + 1
                nth = acting[tried] if tried < len(acting) else unknowns[tried - len(acting)]
                bit = bits[nth]
                if mask & bit or (before[nth] and not mask & before[nth]):
                    continue
                after = step(state, calls[nth])
                if after is None or (after == state and unknown[nth]):
                    continue
                mask |= bit
                path = (nth, path)
                if after != state:
                    state = after
                    for other in watching:
                        if not mask & bits[other] and step(state, calls[other]) is not None:
                            mask |= bits[other]
                            path = (other, path)
                    nth = events[place][2]
                    if observes[nth] and step(state, calls[nth]) is not None:
                        mask |= bits[nth]
                        path = (nth, path)
                    if next_seen and not self._may_be(state, mask, place):
                        continue
                break
            else:
                return self._refuted()

    def _over(self, memory_bytes: int) -> str:
        if self.spent >= self.limits.configurations:
            return f"{self.spent:,} configurations were tried"
        if memory_bytes >= self.limits.memory_bytes:
            return f"some {memory_bytes // 1_000_000:,} MB of configurations are remembered"
        return "the time is over" if self.limits.is_over() else ""

    def _chain(self, path: _Path | None) -> tuple[Call, ...]:
        order: list[Call] = []
        while path is not None:
            nth, path = path
            order.append(self.places.calls[nth])
        return tuple(reversed(order))

    def _refuted(self) -> SearchResult:
        places = self.places
        acting, watching, open_unknown = places.pending[self.farthest]
        prefix = self._chain(self.best)
        done = set(map(id, prefix))
        opened = [places.calls[nth] for nth in (*acting, *watching, *places.unknowns[:open_unknown])]
        return SearchResult(
            Decision.NOT_LINEARIZABLE,
            self.spent,
            prefix,
            places.calls[places.events[self.farthest][2]],
            tuple(sorted(self.states, key=repr)),
            tuple(call for call in opened if id(call) not in done),
        )
