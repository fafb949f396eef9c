"""Steps of two runs that differ in the names that a program draws, and in more than these."""

from __future__ import annotations

from pytest_chaos.trace.comparison import TraceComparison, drawn_names, effects_with, placeholders
from pytest_chaos.trace.step import Action, Step


def _steps(*made: tuple[Action, str, str]) -> list[Step]:
    return [
        Step(number=number, action=action, call="", path=path, target=target)
        for number, (action, path, target) in enumerate(made, 1)
    ]


def _published(name: str) -> list[Step]:
    return _steps(
        (Action.CREATE, f"new/{name}", ""),
        (Action.SYNC, f"new/{name}", ""),
        (Action.RENAME, f"new/{name}", "state.json"),
    )


def test_a_drawn_name_is_followed_through_the_run() -> None:
    """Created, synced and renamed under another name it is the same file all the same."""
    assert dict(drawn_names(_published("tmp4k2j"), _published("tmpx9_a"))) == {"tmp4k2j": "tmpx9_a"}
    comparison = TraceComparison(_published("tmpx9_a"))
    assert all(comparison.follows(step) for step in _published("tmp4k2j"))


def test_a_name_that_goes_on_as_another_one_is_another_step() -> None:
    """A renaming is one to one: what was created is what is synced."""
    comparison = TraceComparison(_published("tmpx9_a"))
    other = _steps((Action.CREATE, "new/tmp4k2j", ""), (Action.SYNC, "new/tmp0000", ""))

    assert [comparison.follows(step) for step in other] == [True, False]


def test_threads_that_change_places_are_told() -> None:
    """The earlier run has used both names: neither was drawn."""
    first = _steps((Action.CREATE, "left", ""), (Action.CREATE, "rite", ""))
    second = _steps((Action.CREATE, "rite", ""), (Action.CREATE, "left", ""))

    assert not TraceComparison(first).follows(second[0])
    assert not drawn_names(second, first)


def test_two_names_are_not_drawn_for_one() -> None:
    """Two files of this run cannot both stand for one of the earlier run's."""
    first = _steps((Action.CREATE, "aaaa", ""), (Action.RENAME, "aaaa", "file"), (Action.RENAME, "file", "aaaa"))
    second = _steps((Action.CREATE, "bbbb", ""), (Action.RENAME, "bbbb", "file"), (Action.RENAME, "file", "cccc"))

    assert drawn_names(second, first) == {"bbbb": "aaaa"}


def test_a_name_that_has_gone_may_be_drawn_again() -> None:
    """A name made of the time is the same twice in a fast run, and not in a slow one."""

    def saved_twice(name: str, again: str) -> list[Step]:
        return _steps(
            (Action.CREATE, name, ""),
            (Action.RENAME, name, "file"),
            (Action.CREATE, again, ""),
            (Action.RENAME, again, "file"),
        )

    slow, fast = saved_twice("f.10001", "f.10002"), saved_twice("f.20005", "f.20005")
    for first, second in ((slow, fast), (fast, slow), (slow, slow)):
        comparison = TraceComparison(first)
        assert all(comparison.follows(step) for step in second)


def test_other_lengths_and_short_names_are_no_drawn_names() -> None:
    """Draws have equally many letters, and more than a few; a number may be longer or shorter."""
    for name, other in (("a", "b"), ("tmpaa", "tmpaaa"), ("1", "12345"), ("tmpaa", "tmp123")):
        assert not TraceComparison(_published(name)).follows(_published(other)[0])
    assert TraceComparison(_published("st14082959489994944994.tmp")).follows(_published("st9215578769100556801.tmp")[0])


def test_a_step_beyond_the_end_is_another_step() -> None:
    """The earlier run had ended there."""
    assert not TraceComparison(_published("tmpx9_a")[:2]).follows(_published("tmpx9_a")[2])


def _effects(drawn: list[str], steps: list[Step]) -> list[tuple[Action, str, str, int, int]]:
    return effects_with(placeholders(drawn, steps), steps)


def test_drawn_names_do_not_count_in_the_effects() -> None:
    """Runs that differ in these alone have equal effects; any other name tells them apart."""
    first, second = _published("tmpx9_a"), _published("tmp4k2j")

    assert _effects(["tmpx9_a"], first) == _effects(["tmp4k2j"], second)
    assert _effects([], first) != _effects([], second)
    assert _effects([], first) == [step.effect for step in first]


def test_effects_still_tell_which_drawn_name_is_which() -> None:
    """Of two files the first goes, or the second: other programs, whatever the names are."""

    def two(gone: str) -> list[Step]:
        made = [(Action.CREATE, "aaaa", ""), (Action.SYMLINK, "bbbb", "to/aaaa")]
        return _steps(*made, (Action.UNLINK, gone, ""))

    assert _effects(["aaaa", "bbbb"], two("aaaa")) != _effects(["aaaa", "bbbb"], two("bbbb"))
