"""Programs that write through memory get a verdict, for the right reason."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING, ClassVar

import pytest
from pytest_chaos.explore.families.stores import UNKNOWN_ORDER, is_certain
from pytest_chaos.explore.launch import judge_state, launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import CONFIRMED_BY_A_KILL, MODELLED, Family
from pytest_chaos.explore.simulate.content import PageStore
from pytest_chaos.explore.simulate.crash import WORD_SAMPLES, crash_states
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.values import Verdict

from tests.harness.trace.recordings import Script

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos.explore.report import Exploration, FamilyResult
    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks

PAGE = 4096
ROUNDS = 2


@pytest.fixture(autouse=True)
def _with_seccomp() -> None:
    if step_source().name != "seccomp":
        pytest.skip("mappings are followed by seccomp alone")


class Counter:
    """Counts in a mapped file, and flushes it."""

    name = "counter"
    is_flushed = True
    files: ClassVar[dict[str, int]] = {"counter": PAGE}

    def setup(self, directory: Path) -> None:
        """Make the files, durably."""
        for name, size in self.files.items():
            (directory / name).write_bytes(bytes(size))

    def run(self, directory: Path, marks: Marks) -> None:
        """Count."""
        with (directory / "counter").open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        for number in range(1, ROUNDS + 1):
            marks.intent("count", number)
            self.save(memory, number)
            marks.ack("count", number)

    def save(self, memory: mmap.mmap, number: int) -> None:
        """Store the number."""
        struct.pack_into("<Q", memory, 0, number)
        if self.is_flushed:
            memory.flush()

    def found(self, directory: Path) -> tuple[int, int]:
        """Return the two fields that have to be equal; here there is but one."""
        (number,) = struct.unpack_from("<Q", (directory / "counter").read_bytes())
        return number, number

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Find a number that was acknowledged, and is lost; or two that differ."""
        first, second = self.found(directory)
        if first != second:
            yield "the fields differ"
        if min(first, second) < max((int(mark.key or 0) for mark in marks if mark.kind == "ack"), default=0):
            yield "a number is lost"


class Unflushed(Counter):
    """Leaves the flush to the kernel."""

    name = "unflushed"
    is_flushed = False


class Pair(Counter):
    """Keeps two fields that have to be equal, and changes both before it flushes."""

    name = "pair"

    def save(self, memory: mmap.mmap, number: int) -> None:
        """Store the number twice."""
        struct.pack_into("<Q", memory, 512, number)
        super().save(memory, number)

    def found(self, directory: Path) -> tuple[int, int]:
        """Return both."""
        content = (directory / "counter").read_bytes()
        return struct.unpack_from("<Q", content)[0], struct.unpack_from("<Q", content, 512)[0]


class Log(Counter):
    """Appends records: a larger size, a new mapping, the record, its length last, each flushed."""

    name = "log"
    files: ClassVar[dict[str, int]] = {"log": PAGE}

    def run(self, directory: Path, marks: Marks) -> None:
        """Append."""
        with (directory / "log").open("r+b") as file:
            for number in range(1, ROUNDS + 1):
                marks.intent("count", number)
                file.truncate((number + 1) * PAGE)
                os.fsync(file.fileno())
                with mmap.mmap(file.fileno(), (number + 1) * PAGE) as memory:
                    memory[number * PAGE : (number + 1) * PAGE] = bytes([number]) * PAGE
                    memory.flush()
                    struct.pack_into("<Q", memory, 0, number)
                    memory.flush()
                marks.ack("count", number)

    def found(self, directory: Path) -> tuple[int, int]:
        """Return the length, and the number of good records before it."""
        content = (directory / "log").read_bytes()
        (length,) = struct.unpack_from("<Q", content)
        records = [content[each * PAGE : (each + 1) * PAGE] for each in range(1, length + 1)]
        return length, sum(record == bytes([place]) * PAGE for place, record in enumerate(records, 1))


class Hasty(Log):
    """Appends, and stores the length after the record without a flush between the two."""

    name = "hasty"

    def run(self, directory: Path, marks: Marks) -> None:
        """Append."""
        with (directory / "log").open("r+b") as file:
            for number in range(1, ROUNDS + 1):
                marks.intent("count", number)
                file.truncate((number + 1) * PAGE)
                os.fsync(file.fileno())
                with mmap.mmap(file.fileno(), (number + 1) * PAGE) as memory:
                    memory[number * PAGE : (number + 1) * PAGE] = bytes([number]) * PAGE
                    struct.pack_into("<Q", memory, 0, number)
                    memory.flush()
                marks.ack("count", number)


class Restless(Counter):
    """Stores to another place in each run."""

    name = "restless"
    files: ClassVar[dict[str, int]] = {"counter": 16 * PAGE}

    def save(self, memory: mmap.mmap, number: int) -> None:
        """Store the number, and a word somewhere else."""
        memory[512 + os.urandom(1)[0] * 200] = 1
        super().save(memory, number)


class Repaired(Pair):
    """Is repaired by the first field, through memory, when it starts again."""

    name = "repaired"

    def recover(self, directory: Path) -> None:
        """Make both fields equal: the smaller is right, for nothing more was acknowledged."""
        with (directory / "counter").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            (first,), (second,) = struct.unpack_from("<Q", memory), struct.unpack_from("<Q", memory, 512)
            struct.pack_into("<Q", memory, 0, min(first, second))
            struct.pack_into("<Q", memory, 512, min(first, second))
            memory.flush()


class Restarts(Counter):
    """Counts its starts twice, in two fields; a start that is interrupted leaves them different."""

    name = "restarts"

    def recover(self, directory: Path) -> None:
        """Count this start in both fields."""
        with (directory / "counter").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            for place in (1024, 2048):
                struct.pack_into("<Q", memory, place, struct.unpack_from("<Q", memory, place)[0] + 1)
            memory.flush()

    def found(self, directory: Path) -> tuple[int, int]:
        """Return both counts of starts."""
        content = (directory / "counter").read_bytes()
        return struct.unpack_from("<Q", content, 1024)[0], struct.unpack_from("<Q", content, 2048)[0]

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Find counts that differ."""
        del marks
        yield from (each for each in super().check(directory, ()) if each == "the fields differ")


def explored(target: Counter, *families: Family) -> Exploration:
    """Explore a target with all families, or some."""
    options = Options(seed="s", families=families or tuple(Family), command="chaos explore x:X")
    return launch(subject_of(target), options)


def _of(exploration: Exploration, family: Family) -> FamilyResult:
    return next(each for each in exploration.families if each.family is family)


def _texts(exploration: Exploration) -> dict[Family, set[str]]:
    return {each.family: {found.text for found in each.discoveries} for each in exploration.families}


@pytest.mark.parametrize("target", [Counter(), Log(), Repaired()], ids=lambda each: each.name)
def test_a_sound_program_holds(target: Counter) -> None:
    """Kills, recoveries, power losses and I/O errors: each has states, and none is wrong."""
    found = explored(target)
    assert (found.verdict, found.findings) == (Verdict.HELD, ())
    assert _of(found, Family.CRASH).states > ROUNDS
    assert _of(found, Family.CRASH).points == _of(found, Family.CRASH).points_total == found.steps
    assert _of(found, Family.CRASH).confirmed > 0


def test_without_a_flush_a_power_loss_is_found() -> None:
    """A kill loses nothing of the page cache; the loss names the store."""
    found = explored(Unflushed(), Family.CRASH, Family.POWER)
    assert _texts(found) == {Family.CRASH: set(), Family.POWER: {"a number is lost"}}
    (lost, *_) = _of(found, Family.POWER).discoveries
    assert "write counter 8 bytes at 0 (through memory) is lost" in lost.state


def test_a_kill_between_two_stores_is_found(tmp_path: Path) -> None:
    """No call lies between them, so no real kill can show it; the state code builds it again.
    Whichever comes first, the fields differ.
    """
    target = Pair()
    found = explored(target, Family.CRASH)
    assert _texts(found) == {Family.CRASH: {"the fields differ"}}
    (torn, *_) = _of(found, Family.CRASH).discoveries
    assert torn.label == MODELLED
    assert "stores through memory" in torn.state
    judged = judge_state(subject_of(target), Options(seed="s"), torn.code, tmp_path / "torn")
    assert [finding.text for finding in judged.findings] == ["the fields differ"]


def test_a_recovery_that_is_killed_between_two_stores_is_found() -> None:
    """Its stores are its own look: whichever comes first, the next start finds two counts."""
    found = explored(Restarts(), Family.RECOVERY)

    assert _texts(found) == {Family.RECOVERY: {"the fields differ"}}
    (discovery,) = _of(found, Family.RECOVERY).discoveries
    assert "the recovery killed among the stores through memory" in discovery.state


def test_what_the_right_order_avoids_is_not_decided() -> None:
    """A length that is stored last is right; whether it is, no call tells."""
    found = explored(Hasty(), Family.CRASH)
    crash = _of(found, Family.CRASH)
    assert (found.verdict, crash.discoveries) == (Verdict.INCONCLUSIVE, ())
    (problem,) = crash.problems
    assert problem.signature == UNKNOWN_ORDER
    assert "the fields differ" in problem.text
    assert "crash:" in problem.text


@pytest.mark.parametrize(
    ("lines", "bad", "is_so"),
    [
        ((0, 1), {1, 2}, True),
        ((0, 1), {2}, False),
        ((0, 0), {1, 2}, False),  # one instruction may store both
        ((0, 1, 2), {1, 2, 4}, True),
        ((0, 1, 2), {3, 5, 6}, True),
        ((0, 1, 2), {1, 2, 5, 6}, True),
        ((0, 1, 2), {1, 2, 5}, False),
        (tuple(range(6)), {1 << word for word in range(6)}, True),
        (tuple(range(6)), {63 ^ 1 << word for word in range(6)}, True),
        (tuple(range(6)), {63 ^ 1 << word for word in range(5)}, False),
        ((0, 0, 1, 2, 3, 4), {1 << word for word in range(6)}, False),
    ],
)
def test_a_finding_counts_if_no_order_avoids_it(lines: tuple[int, ...], bad: set[int], *, is_so: bool) -> None:
    """Words are stored one after the other, from none to all; those of a line perhaps at once."""
    assert is_certain(lines, bad) is is_so


def test_a_sample_says_that_it_is_one() -> None:
    """Of a page there are too many subsets of words; of two words there are two."""
    log, pair, counter = (explored(target, Family.CRASH) for target in (Log(), Pair(), Counter()))
    assert _of(log, Family.CRASH).coverage.endswith("crash points (sampled)")
    assert "sampled" not in _of(pair, Family.CRASH).coverage
    for found in (log, pair, counter):
        assert any("the order of such stores between two calls is not known" in note for note in found.notes)


@pytest.mark.parametrize(("target", "is_said"), [(Counter(), True), (Log(), False)], ids=["counter", "log"])
def test_a_note_says_where_nothing_can_be_torn(target: Counter, *, is_said: bool) -> None:
    """A single word is stored at once, a page is not."""
    assert is_said == any("no kill could tear one" in note for note in explored(target, Family.CRASH).notes)


def test_the_seed_draws_the_sample(tmp_path: Path) -> None:
    """The same states for the same seed, others for another, each with a code of its own."""
    script = Script(tmp_path).before("a", bytes(PAGE)).write("a", b"x" * PAGE, look=1).write("a", b"call")
    recording = script.done()

    def sampled(seed: str) -> dict[str, bytes]:
        states = crash_states(recording, PageStore(), seed)
        return {state.code: state.digest for state in states if state.stored is not None}

    assert sampled("one") == sampled("one") != sampled("two")
    assert list(sampled("one")) == [f"crash:1~{number}" for number in range(1, WORD_SAMPLES + 1)]


def test_stores_that_differ_between_runs_are_no_error() -> None:
    """A program that does not store the same twice is recorded under several schedules."""
    found = explored(Restless(), Family.CRASH, Family.POWER)
    assert (found.verdict, found.findings) == (Verdict.HELD, ())
    assert found.schedules > 1
    assert any("need not make the same steps twice" in note for note in found.notes)


def test_an_error_that_is_not_handled_is_found_behind_stores() -> None:
    """I/O errors meet the flush, and no store."""

    class Heedless(Counter):
        def save(self, memory: mmap.mmap, number: int) -> None:
            struct.pack_into("<Q", memory, 0, 0)
            try:
                memory.flush()
            except OSError:
                return
            super().save(memory, number)

    found = explored(Heedless(), Family.IO)
    assert _texts(found) == {Family.IO: {"a number is lost"}}
    assert {each.code.split(":")[2] for each in _of(found, Family.IO).discoveries} == {"EIO"}


def test_a_confirmed_kill_is_one_at_a_call() -> None:
    """What a kill before the next call shows is confirmed by one, stores and all."""

    class Forgetful(Counter):
        def save(self, memory: mmap.mmap, number: int) -> None:
            struct.pack_into("<Q", memory, 0, 0)
            memory.flush()
            super().save(memory, number)

    found = explored(Forgetful(), Family.CRASH)
    assert CONFIRMED_BY_A_KILL in {each.label for each in _of(found, Family.CRASH).discoveries}
