"""The order of states whose checks take long: representatives first, and the same verdict."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.launch import launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.order import Order, View
from pytest_chaos.explore.report import Exploration, Family, FamilyResult, together
from pytest_chaos.explore.server.reads import LookedAt, reads_of
from pytest_chaos.explore.simulate.content import Content, PageStore
from pytest_chaos.explore.simulate.state import Item, State
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.statistics import unseen_share
from pytest_chaos.model.values import Verdict
from pytest_chaos.trace.calls.reads import FileRead, WatchedReads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks

COMMITS = 30


def _state(number: int, call: str) -> State:
    items = {"a": Item("file", 0o644, 1)}
    return State(f"crash:{number}", number, number, items, updates=lambda: [(call, f"f{number}", "lost")])


def test_each_state_has_its_turn_and_a_rare_kind_an_early_one() -> None:
    """Of 300 states alike and one of its own, that one is the second; none is left out."""
    states = [_state(number, "write") for number in range(300)] + [_state(300, "rename")]
    ordered = list(Order().of(lambda: iter(states)))

    assert [state.step for state in ordered[:2]] == [0, 300]
    assert sorted(state.step for state in ordered) == list(range(301))


def test_equal_states_come_last() -> None:
    """A state that equals an earlier one tells nothing new."""
    states = [_state(1, "write"), _state(1, "rename"), _state(2, "unlink")]

    assert [state.step for state in Order().of(lambda: iter(states))] == [1, 2, 1]


def test_when_the_time_is_over_the_next_state_comes_at_once() -> None:
    """The caller notices then that its time is over, and does not take the end for completion."""
    states = [_state(number, "write") for number in range(300)]
    ordered = Order().of(lambda: iter(states), is_over=lambda: True)

    assert [next(ordered).step, next(ordered).step] == [0, 1]


def _files(index: bytes, audit: bytes, *, name: str = "audit") -> dict[str, Item]:
    return {
        path: Item("file", 0o644, node, Content(PageStore()).write(0, content))
        for node, (path, content) in enumerate({"index": index, name: audit}.items())
    }


READS = WatchedReads({"index": FileRead(is_opened=True, parts=((0, 4),)), "audit": FileRead(is_listed=True)})


@pytest.mark.parametrize(
    ("items", "marks", "is_seen"),
    [
        (_files(b"1234 and so on", b"x"), 0, False),
        (_files(b"1234", b"x" * 9000), 0, False),
        (_files(b"1235", b"x"), 0, True),
        (_files(b"12", b"x"), 0, True),
        (_files(b"1234", b"x"), 1, True),
        (_files(b"1234", b"x", name="other"), 0, True),
        (_files(b"1234", b"x") | {"unknown": Item("file", 0o644, 9)}, 0, True),
    ],
)
def test_a_start_sees_what_it_reads(items: dict[str, Item], marks: int, *, is_seen: bool) -> None:
    """A difference outside of the parts that it reads is not seen; one in files that it was not
    watched with is, for it might read those.
    """
    view = View(READS)

    assert (view.of(items, marks) != view.of(_files(b"1234", b"x"), 0)) is is_seen


def test_states_with_an_unread_difference_come_last() -> None:
    """Each has its turn; the first of those that look the same to a start has an early one."""
    unread = [State(f"crash:{place}", place, 0, _files(b"1", b"x" * place)) for place in range(20)]
    states = [*unread, State("crash:20", 20, 0, _files(b"2", b"x"))]
    order = Order(READS, [LookedAt(_files(b"1", b"y"), 0)])
    steps = [state.step for state in order.of(lambda: iter(states))]

    assert steps == [20, *range(20)]
    assert order.unread == order.unread_yielded == 20


def test_unread_differences_that_the_budget_did_not_reach_are_told() -> None:
    """The report does not leave them to the estimate, which knows of kinds alone."""
    left = FamilyResult(family=Family.CRASH, states=9, points=9, unread=40, is_complete=False)

    assert "at least 40 differ from earlier ones only in what a start did not read" in left.left_unread
    assert FamilyResult(family=Family.CRASH, states=9, points=9).left_unread == ""


class Keeper:
    """Commits to a log, then renames its summary into place without syncing the folder."""

    name = "keeper"

    def __init__(self, told: Path) -> None:
        self._told = told

    def run(self, directory: Path, marks: Marks) -> None:
        """Append and sync many times; publish in the end, and acknowledge that."""
        with (directory / "log").open("ab", buffering=0) as log:
            for number in range(COMMITS):
                log.write(b"%04d" % number)
                os.fsync(log.fileno())
                marks.ack("commit", number)
        with (directory / "new").open("wb") as new:
            new.write(b"x")
            new.flush()
            os.fsync(new.fileno())
        (directory / "new").rename(directory / "summary")
        marks.ack("publish", 0)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Find a summary that was acknowledged and is not there; tell that a state was judged."""
        is_bad = any(mark.operation == "publish" for mark in marks) and not (directory / "summary").exists()
        with self._told.open("a") as told:
            told.write("!" if is_bad else ".")
        if is_bad:
            yield "the summary is gone"


def _explored(folder: Path, monkeypatch: pytest.MonkeyPatch, *, slow_s: float) -> tuple[Exploration, str]:
    """Return the exploration, and a character for each state that was judged."""
    folder.mkdir()
    monkeypatch.setattr("pytest_chaos.explore.explorer.SLOW_CHECK_S", slow_s)
    explored = launch(subject_of(Keeper(folder / "told")), Options(seed="order", families=(Family.POWER,)))
    return explored, (folder / "told").read_text()


def test_a_bug_that_few_states_of_many_show_is_found_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the run it shows near the end, with representatives first within a few
    states. What is found, and in how many states, is the same.
    """
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    plain, told = _explored(tmp_path / "plain", monkeypatch, slow_s=1e9)
    ordered, told_in_order = _explored(tmp_path / "ordered", monkeypatch, slow_s=-1.0)

    assert told.index("!") > COMMITS
    assert told_in_order.index("!") <= 15
    assert plain.verdict is ordered.verdict is Verdict.VIOLATED
    (one,), (other,) = plain.families, ordered.families
    assert (one.states, one.violated) == (other.states, other.violated)
    assert (one.points, one.points_total) == (other.points, other.points_total)
    found, found_in_order = ([(each.signature, each.code) for each in every.discoveries] for every in (one, other))
    assert found == found_in_order


class Auditor:
    """Keeps orders in an index, and much in an audit log; acknowledges one order too early."""

    name = "auditor"
    orders, late, remarks = 12, 9, 10

    def __init__(self, told: Path) -> None:
        self._told = told

    def run(self, directory: Path, marks: Marks) -> None:
        """Append to both files, a line at a time."""
        with (directory / "index").open("ab", buffering=0) as index, (directory / "audit").open("ab", 0) as audit:
            for number in range(self.orders):
                if number == self.late:
                    marks.ack("order", number)
                for remark in range(self.remarks):
                    audit.write(b"%d: %d\n" % (number, remark))
                index.write(b"%d\n" % number)
                if number != self.late:
                    marks.ack("order", number)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Read the index alone; tell that a state was judged."""
        path = directory / "index"
        kept = path.read_text().split() if path.exists() else []
        lost = [mark.key for mark in marks if str(mark.key) not in kept]
        with self._told.open("a") as told:
            told.write("!" if lost else ".")
        if lost:
            yield "an order is lost"


def test_a_start_that_is_watched_finds_a_bug_in_fewer_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States that differ only in the audit log come last: the bug, whose states are of a kind with
    many others, shows after a fraction of them. What is found is the same.
    """
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.setattr("pytest_chaos.explore.explorer.SLOW_CHECK_S", -1.0)
    found = []
    for is_watched in (False, True):
        if not is_watched:
            monkeypatch.setattr("pytest_chaos.explore.explorer.reads_of", lambda *_, **__: None)
        else:
            monkeypatch.setattr("pytest_chaos.explore.explorer.reads_of", reads_of)
        told = tmp_path / f"told-{is_watched}"
        explored = launch(subject_of(Auditor(told)), Options(seed="order", families=(Family.CRASH,)))
        (crash,) = explored.families
        found.append((crash.states, crash.violated, [(each.signature, each.code) for each in crash.discoveries]))
        assert any("not of audit" in note for note in explored.notes) is is_watched, explored.notes
        assert explored.verdict is Verdict.VIOLATED
        before = told.read_text().index("!")
        assert (before < 3 * Auditor.orders) is is_watched, before

    assert found[0] == found[1]


@pytest.mark.parametrize(("kinds", "drawn"), [(50, 400), (1000, 500), (400, 400)])
def test_the_estimate_of_the_unseen_is_near_the_truth(kinds: int, drawn: int) -> None:
    """Drawn from kinds of known shares, the share of the kinds that were not drawn is known."""
    weights = [1 / (place + 1) for place in range(kinds)]
    sample = random.Random(7).choices(range(kinds), weights, k=drawn)  # noqa: S311 - a sample, no secret
    missed = sum(weight for kind, weight in enumerate(weights) if kind not in set(sample)) / sum(weights)
    once = sum(sample.count(kind) == 1 for kind in set(sample))

    assert abs(unseen_share(once, drawn) - missed) < 0.05


def test_what_was_not_met_is_told_where_not_all_was_judged() -> None:
    """Never as a bare percentage, and not at all where every state was judged."""
    sampled = FamilyResult(family=Family.POWER, states=1500, points=9, kinds=41, kinds_once=3, is_sampled=True)

    assert sampled.unseen == (
        "power: the kinds of the 1,500 judged states, by what they lack, are 41, of which 3 were met once: "
        "of 1,000 more states some 2 would be of a kind not met (Good-Turing)"
    )
    assert FamilyResult(family=Family.POWER, states=1500, points=9, kinds=41, kinds_once=3).unseen == ""
    both = together(sampled, sampled)
    assert (both.kinds, both.kinds_once) == (82, 6), "counted in each recording"
    assert unseen_share(0, 0) == 1.0
