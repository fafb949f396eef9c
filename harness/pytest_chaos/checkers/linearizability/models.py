"""Models: what an object promises to clients that use it one after the other.

A model is any class with ``initial`` and ``step(state, call)``, which returns the state after the
call, or ``None`` where the call cannot have happened in that state. States must be hashable; a
model whose state may be nothing uses :data:`NOTHING`. ``step`` gets every call that took effect or
may have: ``call.gave(value)`` says whether it may have returned a value, which is true of any value
when the outcome is unknown.

    class Door:
        initial = "shut"

        def step(self, state, call):
            if call.function == "open":
                return "open" if state == "shut" else None
            return "shut" if state == "open" else None

Optional attributes make a search faster, and :class:`ObjectModel` has them all:

    functions    the names that it knows: other calls of a run's history are not its business
    observers    functions that never change a state, such as read
    by_process   whether ``step`` looks at ``call.process``; True if a model does not say
    is_keyed     whether each key is an object of its own; True if a model does not say
    part(call)   a name for what the call touches within the object, or None for all of it: parts
                 that no call joins are judged one by one. The default is None
    resets       functions after which ``leads_to`` does not hold; None if it never does
    leads_to(state, call)  whether the state may still grow to what an observer saw
    other_beginnings(calls)  states that it may have been in at first, if nobody told the model
    describe(state)        what a finding says of a state; its repr if a model does not say

Functions and shapes are those of Jepsen and Knossos (``cas-register``, ``mutex``, ...), so their
histories can be judged as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_chaos.errors import UsageError
from pytest_chaos.model.calls import Call, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping, Sequence


class _Nothing:
    """The state of an object that holds nothing."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "nothing"


NOTHING: Final = _Nothing()
"""The state of a register that was never written: ``None`` would mean "this cannot be"."""


class ObjectModel:
    """The base of the models here, and of yours if you like.

    >>> class Flag(ObjectModel):
    ...     initial, functions, observers = False, ("raise", "read"), ("read",)
    ...
    ...     def step(self, state, call):
    ...         if call.function == "raise":
    ...             return True
    ...         return state if call.gave(state) else None
    >>> Flag().step(False, Call("read", output=True)) is None
    True
    """

    initial: Any = NOTHING
    functions: Collection[str] = ()
    """The functions that the model knows; empty: any."""
    observers: Collection[str] = ()
    by_process: bool = False
    is_keyed: bool = True
    resets: Collection[str] | None = None

    def step(self, state: Any, call: Call) -> Any:
        """Return the state after the call, or ``None`` where it cannot have happened."""
        raise NotImplementedError

    def part(self, call: Call) -> Hashable:  # noqa: ARG002 - for models that have parts
        """Return the part of the object that the call touches; ``None`` joins all parts."""
        return None

    def leads_to(self, state: Any, call: Call) -> bool:  # noqa: ARG002 - as above
        """Whether a state may still grow to what an observer saw, if no reset comes between."""
        return True

    def describe(self, state: Any) -> str:
        """Return what a finding says of a state."""
        return repr(state)


_UNTOLD: Final = object()
_BEGINNINGS_MAX: Final = 8


class Register(ObjectModel):
    """A register: ``write`` puts a value, ``read`` returns the last one.

    ``initial`` is what it holds at first, ``None`` for nothing. If that is not told, it holds
    nothing, but what only another beginning explains is undecided, and is no violation.

    >>> Register().step(1, Call("read", output=2)) is None
    True
    """

    functions: Collection[str] = ("read", "write")
    observers = ("read",)

    def __init__(self, initial: Any = _UNTOLD) -> None:
        self._is_told = initial is not _UNTOLD
        self.initial = _state(initial if self._is_told else None)

    def other_beginnings(self, calls: Sequence[Call]) -> Sequence[Any]:
        """Return the values that clients met and none wrote, if the beginning is not told."""
        if self._is_told:
            return ()
        given: set[Any] = set()
        met: dict[Any, None] = {}
        for call in calls:
            if call.function == "write":
                given.add(call.input)
            elif call.function == "cas":
                given.add(call.input[1])
                met[call.input[0]] = None
            elif call.outcome is Outcome.OK:
                met[call.output] = None
        return [value for value in met if value is not None and value not in given][:_BEGINNINGS_MAX]

    def step(self, state: Any, call: Call) -> Any:
        """Return the state after a read or a write."""
        if call.function == "read":
            return state if call.gave(_value(state)) else None
        return _state(call.input)


class CasRegister(Register):
    """A register with ``cas``: its input is ``[old, new]``, and ``old`` must be there.

    An acknowledged ``cas`` has happened; if its output is ``false``, ``old`` was not there.

    >>> cas = Call("cas", input=(1, 2))
    >>> CasRegister().step(1, cas), CasRegister().step(3, cas)
    (2, None)
    """

    functions = ("read", "write", "cas")

    def step(self, state: Any, call: Call) -> Any:
        """Return the state after a read, a write or a cas."""
        if call.function != "cas":
            return super().step(state, call)
        old, new = call.input
        is_there = state == _state(old)
        if call.outcome is Outcome.UNKNOWN:
            return _state(new) if is_there else state
        if call.output is False:
            return None if is_there else state
        return _state(new) if is_there else None


class SetModel(ObjectModel):
    """A set: ``add`` and ``remove`` an element, ``contains`` it, or ``read`` them all.

    ``add`` and ``remove`` may return whether they changed the set. Without a ``read``, each element
    is judged by itself.

    >>> sorted(SetModel().step(frozenset({1}), Call("add", input=2)))
    [1, 2]
    """

    initial = frozenset()
    functions = ("add", "remove", "contains", "read")
    observers = ("contains", "read")

    def step(self, state: frozenset[object], call: Call) -> frozenset[object] | None:
        """Return the set after the call."""
        if call.function == "read":
            return state if call.outcome is Outcome.UNKNOWN or frozenset(call.output or ()) == state else None
        is_in = call.input in state
        if call.function == "contains":
            return state if call.gave(is_in) else None
        changes = is_in is (call.function == "remove")
        if call.outcome is Outcome.OK and isinstance(call.output, bool) and call.output is not changes:
            return None
        return state ^ {call.input} if changes else state

    def part(self, call: Call) -> Hashable:
        """Return the element, or ``None`` for a read of all."""
        return None if call.function == "read" else (call.input,)


class QueueModel(ObjectModel):
    """A queue: ``enqueue`` a value, ``dequeue`` the oldest one, or ``None`` from an empty queue.

    With ``fifo=False`` any value that is in it may come out, as from a job queue with priorities.

    >>> QueueModel().step((("a", "b"), 0), Call("dequeue", output="b")) is None
    True
    """

    initial = ((), 0)
    functions = ("enqueue", "dequeue")

    def __init__(self, *, fifo: bool = True) -> None:
        self.fifo = fifo

    def step(self, state: tuple[tuple[Any, ...], int], call: Call) -> tuple[tuple[Any, ...], int] | None:
        """Return the values, and how many of them an unknown ``dequeue`` has taken."""
        values, taken = state
        if call.function == "enqueue":
            values = (*values, call.input)
            return (values if self.fifo else tuple(sorted(values, key=repr)), taken)
        if call.outcome is Outcome.UNKNOWN:
            if self.fifo:
                return (values[1:], 0)
            return (values, min(taken + 1, len(values)))
        if call.output is None:
            return ((), 0) if len(values) == taken else None
        if len(values) == taken or call.output not in values[: 1 if self.fifo else None]:
            return None
        place = values.index(call.output)
        return (values[:place] + values[place + 1 :], taken)

    def describe(self, state: tuple[tuple[Any, ...], int]) -> str:
        """Return the values, oldest first."""
        values, taken = state
        doubt = f", of which {taken} may be taken" if taken else ""
        return f"{', '.join(map(repr, values))}{doubt}" if values else "an empty queue"


class LockModel(ObjectModel):
    """A lock: ``acquire`` and ``release``; with fencing tokens, if ``acquire`` returns numbers.

    An ``acquire`` that returned ``false`` found it held. Each token must be above all before it. A
    ``release`` names its token as input, or is its process's own; one that returned ``false`` was
    not the holder's.

    >>> LockModel().step((1, 1, 7), Call("acquire", process=2, output=8)) is None
    True
    """

    initial: Any = (None, None, 0)
    functions = ("acquire", "release")
    by_process = True

    def step(self, state: tuple[Any, Any, int], call: Call) -> tuple[Any, Any, int] | None:
        """Return holder, token and highest token after the call."""
        holder, token, highest = state
        if call.function == "acquire":
            if call.output is False:
                return state if holder is not None else None
            if holder is not None:
                return state if call.outcome is Outcome.UNKNOWN else None
            if not _is_token(call.output):
                return (call.process, None, highest)
            return (call.process, call.output, call.output) if call.output > highest else None
        is_own = holder is not None and (
            token == call.input if _is_token(call.input) and token is not None else holder == call.process
        )
        if call.output is False:
            return None if is_own else state
        if is_own:
            return (None, None, highest)
        return state if call.outcome is Outcome.UNKNOWN else None

    def describe(self, state: Any) -> str:
        """Return who holds the lock, and by which token."""
        holder, token, highest = state
        if holder is None:
            return f"free, after token {highest}" if highest else "free"
        return f"held by {holder}" + (f" with token {token}" if token is not None else "")


class MutexModel(LockModel):
    """A lock that does not look at who releases it, as Knossos' ``mutex``.

    >>> MutexModel().step(True, Call("acquire")) is None
    True
    """

    initial = False
    by_process = False

    def step(self, state: Any, call: Call) -> Any:
        """Return whether it is held after the call."""
        wanted = call.function == "acquire"
        if state is wanted:
            return state if call.outcome is Outcome.UNKNOWN else None
        return wanted

    def describe(self, state: Any) -> str:
        """Return whether the lock is held."""
        return "held" if state else "free"


class LeaseModel(ObjectModel):
    """A lease with fencing tokens: it may expire at any time, and only the tokens keep order.

    ``acquire`` returns a token above all before it, or ``None``. ``renew``, ``write``, ``complete``
    and ``release`` name a token as input. One that was accepted had the newest token; one that
    returned ``false`` may have been refused for its age, too. ``complete`` and ``release`` end it.

    >>> LeaseModel().step((8, True), Call("write", input=7, output=True)) is None
    True
    """

    initial = (0, False)
    functions = ("acquire", "renew", "write", "complete", "release")

    def step(self, state: tuple[int, bool], call: Call) -> tuple[int, bool] | None:
        """Return the newest token, and whether it is granted, after the call."""
        newest, is_granted = state
        if call.function == "acquire":
            if call.outcome is Outcome.UNKNOWN:
                return (newest, False)  # the old one has expired; the new token is not known
            if not _is_token(call.output):
                return state
            return (call.output, True) if call.output > newest else None
        if call.output is False:
            return state
        if not is_granted or call.input != newest:
            return state if call.outcome is Outcome.UNKNOWN else None
        return (newest, call.function not in {"complete", "release"})

    def describe(self, state: tuple[int, bool]) -> str:
        """Return the newest token, and whether it holds."""
        newest, is_granted = state
        return f"granted with token {newest}" if is_granted else f"free, after token {newest}" if newest else "free"


class CounterModel(ObjectModel):
    """A counter: ``add`` a number, ``read`` it. With ``answers``, ``add`` returns the new value.

    >>> CounterModel().step(3, Call("add", input=2)), CounterModel().step(3, Call("read", output=4))
    (5, None)
    """

    initial = 0
    functions = ("add", "read")
    observers = ("read",)

    def __init__(self, *, answers: bool = False) -> None:
        self.answers = answers

    def step(self, state: int, call: Call) -> int | None:
        """Return the number after the call."""
        if call.function == "read":
            return state if call.gave(state) else None
        after = state + int(call.input)
        return after if not self.answers or call.gave(after) else None


class MapModel(ObjectModel):
    """A map: ``put``, ``append`` (to a text), ``delete`` and ``get`` of one key; ``read`` of all.

    Without a ``read``, each key is judged by itself.

    >>> MapModel().step((("a", 1),), Call("get", key="a", output=2)) is None
    True
    """

    initial = ()
    functions = ("put", "append", "delete", "get", "read")
    observers = ("get", "read")
    is_keyed = False
    resets = ("put", "delete")

    def __init__(self, missing: Any = None) -> None:
        self.missing = missing

    def step(self, state: tuple[tuple[Any, Any], ...], call: Call) -> tuple[tuple[Any, Any], ...] | None:
        """Return the map after the call, as sorted pairs."""
        function = call.function
        if function == "read":
            return state if call.outcome is Outcome.UNKNOWN or call.output == state else None
        held = self.missing
        for key, value in state:
            if key == call.key:
                held = value
        if function == "get":
            return state if call.gave(held) else None
        if len(state) == 1 and state[0][0] == call.key:
            rest: tuple[tuple[Any, Any], ...] = ()
        else:
            rest = tuple(pair for pair in state if pair[0] != call.key)
        if function == "delete":
            return rest
        value = call.input if function == "put" else (held or "") + call.input
        return tuple(sorted((*rest, (call.key, value)), key=repr)) if rest else ((call.key, value),)

    def describe(self, state: tuple[tuple[Any, Any], ...]) -> str:
        """Return the map, as JSON shows an object."""
        return repr(dict(state))

    def part(self, call: Call) -> Hashable:
        """Return the key, or ``None`` for a read of all."""
        return None if call.function == "read" else (call.key,)

    def leads_to(self, state: tuple[tuple[Any, Any], ...], call: Call) -> bool:
        """Whether the text of the only key is the beginning of what was seen."""
        if call.function == "read" or len(state) != 1:
            return True
        text = state[0][1]
        return not isinstance(text, str) or (isinstance(call.output, str) and call.output.startswith(text))


MODELS: Final[Mapping[str, Callable[[], ObjectModel]]] = {
    "register": Register,
    "cas-register": CasRegister,
    "set": SetModel,
    "queue": QueueModel,
    "unordered-queue": lambda: QueueModel(fifo=False),
    "mutex": MutexModel,
    "lock": LockModel,
    "lease": LeaseModel,
    "counter": CounterModel,
    "map": MapModel,
}
"""The models by name, for ``linearizable("cas-register")`` and ``chaos check --model``."""


def model_named(name: str) -> ObjectModel:
    """Return a new model of this name. Raises UsageError for a name that is none.

    >>> model_named("cas-register").functions
    ('read', 'write', 'cas')
    """
    if name not in MODELS:
        msg = f"the model must be one of {', '.join(MODELS)}; got {name!r}. Give one of them, or a class with step()"
        raise UsageError(msg)
    return MODELS[name]()


def _state(value: Any) -> Any:
    return NOTHING if value is None else value


def _value(state: Any) -> Any:
    return None if state is NOTHING else state


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
