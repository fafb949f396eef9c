"""Seeds: the same ones give the same numbers everywhere,
and different purposes have nothing in common.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given, strategies as st
from pytest_chaos.errors import UsageError
from pytest_chaos.model import seed as seeds

Purpose = st.lists(st.text(max_size=5) | st.integers(), max_size=4).map(tuple)


def test_a_drawn_seed_is_short_readable_and_new_each_time() -> None:
    """A thousand drawn seeds are all different, and each is accepted as it is."""
    drawn = {seeds.draw_seed() for _ in range(1_000)}

    assert len(drawn) == 1_000
    assert all(len(text) == 8 and text.isalnum() and seeds.normalise_seed(text) == text for text in drawn)


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [("7", "7"), ("  k3vin \n", "k3vin"), ("Zürich-1", "Zürich-1"), ("Zu\u0308rich", "Zürich"), ("x" * 64, "x" * 64)],
)
def test_any_word_is_a_seed(given_text: str, expected: str) -> None:
    """A word, a number or a name with an accent is a seed, however its accent was typed."""
    assert seeds.normalise_seed(given_text) == expected


EMPTY = "the seed must not be empty; got"
GIVE_ONE = "Give any word or number, or leave it out and one is drawn"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"{EMPTY} ''. {GIVE_ONE}"),
        (" \t\n", f"{EMPTY} ' \\t\\n'. {GIVE_ONE}"),
        ("x" * 65, "the seed must have at most 64 characters; got 65. Give a shorter one"),
        ("two words", "the seed must be printable text without blanks; got 'two words'. Leave out ' '"),
        ("bell\x07", "the seed must be printable text without blanks; got 'bell\\x07'. Leave out '\\x07'"),
        ("half\ud800", "the seed must be printable text without blanks; got 'half\\ud800'. Leave out '\\ud800'"),
        ("nul\x00", "the seed must be printable text without blanks; got 'nul\\x00'. Leave out '\\x00'"),
    ],
)
def test_what_is_no_seed_is_refused_in_one_sentence(text: str, message: str) -> None:
    """An empty, overlong or unprintable seed is refused with what came and what to do."""
    with pytest.raises(UsageError) as caught:
        seeds.normalise_seed(text)

    assert str(caught.value) == message


def test_streams_give_these_numbers_for_ever() -> None:
    """The pinned values hold on every machine and version:
    a seed in an old report must still repeat its run.
    """
    assert [seeds.stream("7").getrandbits(32) for _ in range(2)] == [1_784_727_005, 1_784_727_005]
    assert seeds.stream("k3vin", "plan", "01-kill-9", 12).random() == 0.9265984191286443
    stream = seeds.stream("Zürich", "moments")
    assert [stream.randrange(1_000) for _ in range(5)] == [509, 321, 385, 497, 960]


def test_another_interpreter_draws_the_same_numbers() -> None:
    """A stream does not depend on the process:
    another hash seed and another start draw the same.
    """
    program = "from pytest_chaos.model.seed import stream; print(stream('7', 'plan', 3).getrandbits(64))"
    drawn = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }

    assert drawn == {f"{seeds.stream('7', 'plan', 3).getrandbits(64)}\n"}


@given(first=Purpose, second=Purpose)
def test_different_purposes_have_different_streams(first: tuple[str | int, ...], second: tuple[str | int, ...]) -> None:
    """Two purposes share a stream if, and only if, they are the same parts of the same types."""
    same_numbers = seeds.stream("7", *first).getrandbits(128) == seeds.stream("7", *second).getrandbits(128)

    assert same_numbers is (_typed(first) == _typed(second))


def test_drawing_for_one_purpose_never_shifts_another() -> None:
    """A longer campaign for one scenario leaves the numbers of every other one as they were."""
    untouched = seeds.stream("7", "plan", "b").random()
    greedy = seeds.stream("7", "plan", "a")
    for _ in range(100):
        greedy.random()

    assert seeds.stream("7", "plan", "b").random() == untouched


@pytest.mark.parametrize("part", [True, None, 1.5, b"x"])
def test_a_purpose_of_another_type_is_refused(part: object) -> None:
    """A purpose that could be written in two ways would make two streams of one:
    only text and whole numbers.
    """
    with pytest.raises(UsageError, match=r"^a purpose must be text or a whole number; got .+ \(\w+\)$"):
        seeds.stream("7", part)  # type: ignore[arg-type]


def _typed(purpose: tuple[str | int, ...]) -> list[tuple[type, str | int]]:
    return [(type(part), part) for part in purpose]
