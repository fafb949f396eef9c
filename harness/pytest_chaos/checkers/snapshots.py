"""Snapshots: what one read of several objects must never show.

These are Jepsen's tests of one anomaly each, with its shapes of calls: ``bank`` (a total that
changes), ``long-fork`` (two reads that do not agree which write came first), ``comments`` (a later
write without an earlier one) and ``sequential`` (so, of one client). Each costs one pass and a
sort. ``isolation`` finds more, from transactions whose values are unique.
"""

from __future__ import annotations

import bisect
import itertools
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from pytest_chaos.checkers import Bare, findings_of
from pytest_chaos.checkers.elements import CallChecker
from pytest_chaos.errors import UsageError
from pytest_chaos.model.calls import Call, Outcome, frozen
from pytest_chaos.model.values import Finding

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

State = dict[Any, Any]


def bank(
    *,
    total: float | None = None,
    accounts: Collection[Any] | None = None,
    negative: bool = False,
    transfer: str = "transfer",
    read: str = "read",
) -> CallChecker:
    """Return the checker of accounts between which money is moved: each read has the same total.

    The output of a ``read`` is an object, account to balance. ``bank:wrong-total`` for a read with
    another sum, ``bank:negative-balance`` unless ``negative``, ``bank:no-balance`` for an account
    without a number, ``bank:unexpected-account``. Without a total or accounts, those of the first
    read count.

    >>> reads = [Call("read", output={"a": 5, "b": 5}, start=0, end=1)]
    >>> reads += [Call("read", output={"a": 5, "b": 4}, start=2, end=3)]
    >>> [finding.text for finding in bank().judge(reads)]
    ['1 of 2 reads have another total than 10, that of the first read: 9 at place 3']
    """

    def judged(calls: Iterable[Call]) -> Iterable[Finding]:
        reads = [call for call in calls if call.function == read and call.outcome is Outcome.OK]
        if not reads:
            return _nothing("bank", "read of all accounts", read)
        states = [(call, _object(call)) for call in reads]
        first = states[0][1]
        wanted = sum(value for value in first.values() if value is not None) if total is None else total
        known = frozenset(first if accounts is None else accounts)
        whose = "" if total is not None else ", that of the first read"
        found = _of_accounts(states, wanted, known, negative=negative)
        texts = {
            "wrong-total": f"of {len(reads)} reads have another total than {wanted}{whose}",
            "negative-balance": f"of {len(reads)} reads show a balance below 0",
            "no-balance": f"of {len(reads)} reads show an account without a balance",
            "unexpected-account": f"of {len(reads)} reads show an account that is none",
        }
        return [
            finding
            for kind, text in texts.items()
            for finding in findings_of(f"bank:{kind}", f"{len(found[kind])} {text}", found[kind])
        ]

    return CallChecker("bank", (transfer, read), judged)


def _of_accounts(
    states: Iterable[tuple[Call, State]], wanted: float, known: frozenset[Any], *, negative: bool
) -> Mapping[str, list[Bare]]:
    found: defaultdict[str, list[Bare]] = defaultdict(list)
    for call, state in states:
        place = f"at place {call.start + 1}"
        strange = [account for account in state if account not in known]
        empty = [account for account, value in state.items() if value is None]
        below = {account: value for account, value in state.items() if value is not None and value < 0}
        if strange:
            found["unexpected-account"].append(Bare(f"{strange!r} {place}"))
        if empty:
            found["no-balance"].append(Bare(f"{empty!r} {place}"))
        elif (seen := sum(state.values())) != wanted:
            found["wrong-total"].append(Bare(f"{seen} {place}"))
        if below and not negative:
            found["negative-balance"].append(Bare(f"{below!r} {place}"))
    return found


def _object(call: Call) -> State:
    if not isinstance(call.output, dict) or not all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        for value in call.output.values()
    ):
        msg = (
            f"the output of {call.function} must be an object of accounts and numbers; got {call.output!r:.100} at "
            f"place {call.start + 1} of the history. Give the balance of each account"
        )
        raise UsageError(msg)
    return call.output


def long_fork(*, group_size: int | None = None, functions: Collection[str] = ("txn", "read", "write")) -> CallChecker:
    """Return the checker of reads of the same keys, each written once: one order explains them all.

    A call is a transaction of one ``["w", key, value]``, or of several ``["r", key, value]``, where
    ``null`` is a key that was not written yet. ``long-fork:no-order`` for two reads of which each
    sees a key that the other does not. Parallel snapshot isolation allows it, snapshot isolation
    does not. With ``group_size``, a read of another number of keys is a mistake.

    >>> first = Call("read", output=[["r", "x", 1], ["r", "y", None]], process=1, start=0, end=1)
    >>> second = Call("read", output=[["r", "x", None], ["r", "y", 1]], process=2, start=2, end=3)
    >>> print(long_fork().judge([first, second])[0].text.partition(": ")[2])
    read at place 1 saw 'x' and not 'y', read at place 3 'y' and not 'x'
    """

    def judged(calls: Iterable[Call]) -> Iterable[Finding]:
        known = [call for call in calls if call.outcome is not Outcome.FAIL]
        groups: defaultdict[frozenset[Any], list[tuple[Call, State]]] = defaultdict(list)
        for call in known:
            if call.outcome is Outcome.OK and (state := _read(call, group_size)) is not None:
                groups[frozenset(state)].append((call, state))
        if not any(len(reads) > 1 for reads in groups.values()):
            return _nothing("long-fork", "two reads of the same keys", "read")
        twice = _written_twice(known, groups)
        if twice:
            text = "a key must be written once, to one value; these were not, so nothing was judged"
            return findings_of("long-fork:written-twice", text, twice, kind="harness")
        forks = [fork for reads in groups.values() if (fork := _fork(reads))]
        return findings_of(
            "long-fork:no-order", f"{len(forks)} of {len(groups)} groups of keys are read in no order", forks
        )

    return CallChecker("long-fork", functions, judged)


def _steps(call: Call) -> list[tuple[str, Any, Any]]:
    steps = call.output if call.outcome is Outcome.OK and call.output is not None else call.input
    if not isinstance(steps, list | tuple) or any(
        not isinstance(step, list | tuple) or len(step) != 3 or step[0] not in ("r", "w") for step in steps
    ):
        msg = (
            f'a transaction must be a list of ["r", key, value] or ["w", key, value]; got {steps!r:.100} at place '
            f"{call.start + 1} of the history. Give each operation three parts"
        )
        raise UsageError(msg)
    return [(function, frozen(key), frozen(value)) for function, key, value in steps]


def _read(call: Call, group_size: int | None) -> State | None:
    """Return what a read saw; ``None`` for a write. Raises UsageError for what is neither."""
    steps = _steps(call)
    if any(function == "w" for function, _, _ in steps):
        if len(steps) == 1:
            return None
        rule, got = "one write, or reads alone", str(call)
    elif group_size is not None and len(steps) != group_size:
        rule, got = f"a read of {group_size} keys (group size)", f"{len(steps)} keys"
    else:
        return {key: value for _, key, value in steps}
    msg = f"a transaction must be {rule}; got {got:.100} at place {call.start + 1} of the history. Split it"
    raise UsageError(msg)


def _written_twice(calls: Iterable[Call], groups: Mapping[frozenset[Any], list[tuple[Call, State]]]) -> list[Any]:
    """Return the keys that were written twice, or read with two values."""
    writes: defaultdict[Any, int] = defaultdict(int)
    values: defaultdict[Any, set[Any]] = defaultdict(set)
    for call in calls:
        for function, key, _ in _steps(call):
            writes[key] += function == "w"
    for _, state in itertools.chain.from_iterable(groups.values()):
        for key, value in state.items():
            if value is not None:
                values[key].add(value)
    return [key for key in dict.fromkeys((*writes, *values)) if writes[key] > 1 or len(values[key]) > 1]


def _fork(reads: Iterable[tuple[Call, State]]) -> Bare | None:
    """Return two reads that have no order: by size, each must include what the last one saw."""
    seen = [(frozenset(key for key, value in state.items() if value is not None), call) for call, state in reads]
    seen.sort(key=lambda each: len(each[0]))
    for (less, one), (more, other) in itertools.pairwise(seen):
        if not less <= more:
            mine, others = next(iter(less - more)), next(iter(more - less))
            return Bare(
                f"{one.function} at place {one.start + 1} saw {mine!r} and not {others!r}, {other.function} at place "
                f"{other.start + 1} {others!r} and not {mine!r}"
            )
    return None


def comments(write: str = "write", read: str = "read") -> CallChecker:
    """Return the checker of values that appear one after the other: none without those before it.

    A ``write`` had ended when another began, and a ``read`` of all values shows the later one
    alone: ``comments:missing``. Serializable systems may do so, strictly serializable ones may not.

    >>> calls = [Call("write", input=1, start=0, end=1), Call("write", input=2, start=2, end=3)]
    >>> calls += [Call("read", output=[2], process=1, start=4, end=5)]
    >>> [finding.text for finding in comments().judge(calls)]
    ['1 of 1 reads miss values: 1 at place 5, though 2 is there, which began later']
    """

    def judged(calls: Iterable[Call]) -> Iterable[Finding]:
        known = [call for call in calls if call.outcome is not Outcome.FAIL]
        reads = [call for call in known if call.function == read and call.outcome is Outcome.OK]
        if not reads:
            return _nothing("comments", "read of all values", read)
        writes = {frozen(call.input): call for call in known if call.function == write}
        ended = sorted(
            (call.end, nth, value) for nth, (value, call) in enumerate(writes.items()) if call.end is not None
        )
        ends = [end for end, _, _ in ended]
        missing: list[Bare] = []
        for call in reads:
            seen = {frozen(value) for value in call.output or ()}
            latest = max((each for each in seen if each in writes), key=lambda each: writes[each].start, default=None)
            if latest is None:
                continue
            before = ended[: bisect.bisect_left(ends, writes[latest].start)]
            lost = [value for _, _, value in before if value not in seen]
            if lost:
                text = f"{', '.join(map(repr, lost[:3]))} at place {call.start + 1}, though {latest!r} is there"
                missing.append(Bare(f"{text}, which began later"))
        return findings_of("comments:missing", f"{len(missing)} of {len(reads)} reads miss values", missing)

    return CallChecker("comments", (write, read), judged)


def sequential(add: str = "add", read: str = "read") -> CallChecker:
    """Return the checker of values that one client adds in order, and others read from the last on.

    The output of a ``read`` is ``[key, values]``, the newest value first, ``null`` where one is not
    there. A ``null`` after a value is ``sequential:missing``: the newer value is there, and one
    that its client had added before it is not.

    >>> bad = Call("read", output=["k", ["k_2", None, "k_0"]], start=0, end=1)
    >>> sequential().judge([bad])[0].text.partition(": ")[2]
    "['k_2', None, 'k_0'] of 'k' at place 1"
    """

    def judged(calls: Iterable[Call]) -> Iterable[Finding]:
        reads = [call for call in calls if call.function == read and call.outcome is Outcome.OK]
        if not reads:
            return _nothing("sequential", "read of a key's values", read)
        bad = list(_gaps(reads))
        text = f"{len(bad)} of {len(reads)} reads miss a value that was added before one they show"
        return findings_of("sequential:missing", text, bad)

    return CallChecker("sequential", (add, read), judged)


def _gaps(reads: Iterable[Call]) -> Iterator[Bare]:
    for call in reads:
        match call.output:
            case [key, list() | tuple() as values]:
                there = itertools.dropwhile(lambda value: value is None, values)
                if any(value is None for value in there):
                    yield Bare(f"{list(values)!r} of {key!r} at place {call.start + 1}")
            case _:
                msg = (
                    f"the output of {call.function} must be [key, values]; got {call.output!r:.100} at place "
                    f"{call.start + 1} of the history. Give the values, the newest first"
                )
                raise UsageError(msg)


def _nothing(name: str, what: str, function: str) -> tuple[Finding, ...]:
    text = f"no {what} is known, so nothing can be wrong: write intents and acks of {function}"
    return (Finding(signature=f"{name}:nothing-to-judge", text=text, kind="harness"),)
