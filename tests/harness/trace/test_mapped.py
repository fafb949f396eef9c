"""Stores through memory: each becomes a step before the next call, and is seen only once."""

from __future__ import annotations

import itertools
import mmap
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.trace import mapped
from pytest_chaos.trace.recording import Recorder, Recording
from pytest_chaos.trace.source import InjectError, KillBefore

from tests.harness.evidence.replaying import Replay, contents
from tests.harness.trace.lab import LIBC, Lab, said

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096


def _mapped(name: str = "a", size: int = 2 * PAGE) -> mmap.mmap:
    """Make a file of zeros, map it, and close its descriptor."""
    with open(name, "w+b") as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)


def test_stores_are_steps_before_the_next_call(lab: Lab) -> None:
    """Runs of words, in the order of their places; those of one look have one number."""

    def work() -> None:
        memory = _mapped()
        memory[PAGE] = 1
        memory[8:16] = b"together"
        Path("b").touch()
        memory[8:16] = b"changed!"
        memory.flush()
        memory[9] = 0

    observation, recording = lab.record(work)
    assert said(observation.steps) == [
        "create a",
        f"truncate a to {2 * PAGE} bytes",
        "write a 8 bytes at 8 (through memory)",
        f"write a 8 bytes at {PAGE} (through memory)",
        "create b",
        "write a 8 bytes at 8 (through memory)",
        "sync_data a",
        "write a 8 bytes at 8 (through memory)",
    ]
    assert [step.number for step in observation.steps] == list(range(1, 9))
    assert [step.look for step in observation.steps] == [0, 0, 1, 1, 0, 2, 0, 3]
    assert [step.call for step in observation.steps if step.look] == ["mmap"] * 4
    stored = [recording.content(step) for step in recording.steps if step.look]
    assert stored == [b"together", b"\x01" + bytes(7), b"changed!", b"c\0anged!"]


def test_without_a_recording_the_steps_are_the_same(lab: Lab) -> None:
    """A run that is killed at a step by its number must count as the recorded one did."""

    def work() -> None:
        memory = _mapped()
        with open("a", "r+b", buffering=0) as file:
            memory[:5] = b"first"
            file.write(b"second")
            os.pwrite(file.fileno(), b"third", PAGE)
            memory[PAGE] = 0

    recorded, _ = lab.record(work)
    lab.again()
    watched = lab.watch(work, expected=recorded.steps)
    assert said(watched.steps) == said(recorded.steps)
    assert watched.diverged_at is None
    assert said(recorded.steps)[2:] == [
        "write a 8 bytes at 0 (through memory)",
        "write a 6 bytes at 0",
        f"write a 5 bytes at {PAGE}",
        f"write a 8 bytes at {PAGE} (through memory)",
    ]


def _through_calls() -> None:
    memory = _mapped(size=4 * PAGE)
    memory[:] = b"x" * (4 * PAGE)
    with open("a", "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"y" * PAGE, 100)
        os.pwritev(file.fileno(), [b"u", b"v"], 0)
        file.truncate(PAGE + 100)
        file.truncate(3 * PAGE)
        if LIBC.fallocate(file.fileno(), 3, 0, PAGE) == 0:  # punch a hole, keep the size
            file.seek(PAGE)
        with open("b", "w+b", buffering=0) as other:
            other.write(b"copied")
            other.seek(0)
            os.sendfile(file.fileno(), other.fileno(), 0, 6)
        os.posix_fallocate(file.fileno(), 0, 5 * PAGE)
        file.seek(0, os.SEEK_END)
        file.write(b"at the end")


def test_what_calls_write_is_not_seen_twice(lab: Lab) -> None:
    """Writes of all kinds, a hole, a smaller and a larger size: no step through memory of them."""
    observation, _ = lab.record(_through_calls)
    assert [step for step in said(observation.steps) if "memory" in step] == [
        f"write a {4 * PAGE} bytes at 0 (through memory)"
    ]


def test_a_file_that_grows_is_compared_up_to_its_new_end(lab: Lab) -> None:
    """A record is appended by a larger size and a new mapping, again and again."""

    def work() -> None:
        with open("a", "w+b") as file:
            for number in range(1, 4):
                file.truncate(number * PAGE)
                with mmap.mmap(file.fileno(), number * PAGE) as memory:
                    struct.pack_into("<Q", memory, (number - 1) * PAGE, number)

    observation, _ = lab.record(work)
    assert said(observation.steps)[1:] == [
        each
        for number in range(3)
        for each in (
            f"truncate a to {(number + 1) * PAGE} bytes",
            f"write a 8 bytes at {number * PAGE} (through memory)",
        )
    ]


@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
def test_what_cannot_be_stored_is_not_followed(lab: Lab, flags: int) -> None:
    """A private mapping is the program's own; of one for reading nothing comes."""

    def work() -> None:
        Path("a").write_bytes(bytes(PAGE))
        with open("a", "r+b") as file:
            is_private = flags == mmap.MAP_PRIVATE
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if is_private else 0)
            memory = mmap.mmap(file.fileno(), PAGE, flags=flags, prot=protection)
            if is_private:
                memory[:3] = b"own"
            file.write(b"real")

    observation, _ = lab.record(work)
    assert said(observation.steps) == ["create a", f"write a {PAGE} bytes at 0", "write a 4 bytes at 0"]
    assert observation.blind_spots == ()


def test_each_of_several_files_has_its_stores(lab: Lab) -> None:
    """Two mapped files, and one that was renamed and one that was unlinked since."""

    def work() -> None:
        first, second, third = (_mapped(name) for name in "abc")
        os.rename("a", "z")
        os.unlink("c")
        first[0] = second[0] = third[0] = 1
        Path("d").touch()

    observation, _ = lab.record(work)
    assert [step for step in said(observation.steps) if "memory" in step] == [
        "write z 8 bytes at 0 (through memory)",
        "write b 8 bytes at 0 (through memory)",
        "write c 8 bytes at 0 (through memory)",
    ]


def test_a_child_stores_to_the_mapping_of_its_parent(lab: Lab) -> None:
    """After a fork both have the mapping; what a child stored before it ended is there, too."""

    def work() -> None:
        memory = _mapped()
        if (child := os.fork()) == 0:
            memory[0] = 1
            Path("b").touch()
            memory[PAGE] = 2
            os._exit(0)
        os.waitpid(child, 0)
        memory[64:72] = b"together"
        Path("c").touch()

    observation, _ = lab.record(work)
    assert said(observation.steps)[2:] == [
        "write a 8 bytes at 0 (through memory)",
        "create b",
        "write a 8 bytes at 64 (through memory)",
        f"write a 8 bytes at {PAGE} (through memory)",
        "create c",
    ]


def test_a_call_that_is_under_way_is_no_store(lab: Lab) -> None:
    """A process writes megabytes to the mapped file while another one makes calls: no byte of it is
    taken for a store, half done or done.
    """

    def work() -> None:
        memory = _mapped(size=4 << 20)
        with open("a", "r+b", buffering=0) as file:
            if (child := os.fork()) == 0:
                for number in range(1, 20):
                    os.pwrite(file.fileno(), bytes([number]) * (4 << 20), 0)
                os._exit(0)
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                Path("b").touch()
                Path("b").unlink()
        memory[0] = 0

    observation, _ = lab.record(work)
    assert [str(step).partition(": ")[2] for step in observation.steps if step.look] == [
        "write a 8 bytes at 0 (through memory)"
    ]


def test_what_is_stored_over_a_call_that_is_done_is_seen(lab: Lab) -> None:
    """A child writes and ends; its parent stores to the same bytes before its own next call."""

    def work() -> None:
        memory = _mapped()
        with open("a", "r+b", buffering=0) as file:
            if (child := os.fork()) == 0:
                file.write(b"by a call")
                os._exit(0)
            os.waitpid(child, 0)
            Path("b").touch()
            memory[:9] = b"by memory"
            Path("c").touch()

    observation, _ = lab.record(work)
    assert said(observation.steps)[2:] == [
        "write a 9 bytes at 0",
        "create b",
        "write a 16 bytes at 0 (through memory)",
        "create c",
    ]


def _kills_and_continues(memory: mmap.mmap) -> None:
    memory[0] = 1
    Path("b").touch()
    memory[0] = 2
    Path("c").touch()


def test_a_kill_after_stores_is_exact(lab: Lab) -> None:
    """The call after the stores is not done; the stores are, and are in the run's own recording."""
    whole = lab.watch(lambda: _kills_and_continues(_mapped()))
    assert whole.count == 6
    lab.again()
    killed = lab.watch(lambda: _kills_and_continues(_mapped()), directive=KillBefore(number=6), expected=whole.steps)
    assert killed.fired
    assert said(killed.steps) == said(whole.steps)[:5]
    assert (lab.directory / "a").read_bytes()[0] == 2
    assert not (lab.directory / "c").exists()


def test_what_another_process_stores_until_the_kill_is_recorded(lab: Lab) -> None:
    """A child stores without an end, and makes no call: the last word that it stored is there."""

    def work() -> None:
        memory = _mapped()
        if os.fork() == 0:
            for number in itertools.count(1):
                struct.pack_into("<Q", memory, 0, number)
        while not memory[0]:
            pass
        for name in "bcdef":
            Path(name).touch()

    recorder = Recorder(lab.folder / "killed", "seccomp")
    killed = lab.watch(work, directive=KillBefore(number=8), recorder=recorder)
    recorder.close()
    recording = Recording(recorder.folder)
    Replay(recording, lab.folder / "replayed", lab.folder / "store").apply_until(recording.count)
    assert contents(lab.folder / "replayed") == contents(lab.directory)
    assert any(step.look for step in killed.steps)
    assert not (lab.directory / "f").exists()


def test_no_kill_comes_about_at_a_store(lab: Lab) -> None:
    """A store has happened when it is seen: the run ends there, and the kill has not fired."""
    killed = lab.watch(lambda: _kills_and_continues(_mapped()), directive=KillBefore(number=5))
    assert not killed.fired
    assert said(killed.steps)[-1] == "write a 8 bytes at 0 (through memory)"
    assert not (lab.directory / "c").exists()


def test_one_process_dies_at_the_step_after_a_store(lab: Lab) -> None:
    """A child was to die alone where this run has a store: it dies at the next step."""

    def work() -> None:
        memory = _mapped()
        if (child := os.fork()) == 0:
            _kills_and_continues(memory)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
        Path("d").touch()

    seen = lab.watch(work, directive=KillBefore(number=5, process=2))
    assert (seen.fired, seen.exit_code) == (True, 0)
    assert said(seen.steps)[4:] == ["write a 8 bytes at 0 (through memory)", "create d"]


def test_an_error_at_a_store_comes_at_the_next_call(lab: Lab) -> None:
    """In another run than the planned one a store may have the number."""

    def work() -> None:
        with pytest.raises(OSError, match="No space"):
            _kills_and_continues(_mapped())

    seen = lab.watch(work, directive=InjectError(number=5, error="ENOSPC"))
    assert (seen.fired, seen.exit_code) == (True, 0)
    assert str(seen.struck) == "6: create c"


def test_a_write_that_failed_is_no_store(lab: Lab) -> None:
    """A write that is failed in place of being done leaves file and shadow as they were."""

    def work() -> None:
        memory = _mapped()
        with open("a", "r+b", buffering=0) as file:
            with pytest.raises(OSError, match="No space"):
                file.write(b"lost")
            file.write(b"kept")
        memory[PAGE] = 1

    seen = lab.watch(work, directive=InjectError(number=3, error="ENOSPC"))
    assert said(seen.steps)[2:] == ["write a 4 bytes at 0", f"write a 8 bytes at {PAGE} (through memory)"]


def test_other_stores_in_a_second_run_are_a_difference(lab: Lab) -> None:
    """Stores that come out grouped differently end a run that was to be the same."""

    def stores(place: int) -> Callable[[], None]:
        def work() -> None:
            memory = _mapped()
            memory[place] = 1
            Path("b").touch()

        return work

    recorded = lab.watch(stores(0))
    lab.again()
    other = lab.watch(stores(PAGE), expected=recorded.steps)
    assert other.diverged_at == 3
    assert other.diverged == f"3: write a 8 bytes at {PAGE} (through memory)"


def test_stores_that_are_scattered_make_a_bounded_number_of_steps(lab: Lab) -> None:
    """Ten thousand words far apart are not ten thousand steps."""

    def work() -> None:
        memory = _mapped(size=4 << 20)
        for place in range(0, 4 << 20, 400):
            memory[place] = 1

    observation, _ = lab.record(work)
    assert 1 <= sum(step.look > 0 for step in observation.steps) <= mapped.RUNS_MAX


def test_a_hole_costs_nothing_and_can_be_stored_to(lab: Lab) -> None:
    """A gigabyte with one word in it, as databases map ahead."""

    def work() -> None:
        memory = _mapped(size=1 << 30)
        memory[1 << 29] = 1

    recorded = lab.watch(work)
    assert said(recorded.steps)[2:] == [f"write a 8 bytes at {1 << 29} (through memory)"]
    assert recorded.blind_spots == ()


def test_a_file_that_is_too_large_is_a_blind_spot(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the shadow would need too much memory, what is stored is not seen, and that is told."""
    monkeypatch.setattr(mapped, "SHADOW_BYTES_MAX", 1 << 20)

    def work() -> None:
        Path("a").write_bytes(b"x" * (2 << 20))
        with open("a", "r+b") as file:
            mmap.mmap(file.fileno(), 2 << 20)
        memory = _mapped("b", 2 << 20)
        memory[:] = b"y" * (2 << 20)
        Path("c").touch()

    spots = [(spot.what, spot.text) for spot in lab.watch(work).blind_spots]
    assert spots == [("shared-mapping", "a"), ("shared-mapping", "b")]


def test_memory_files_are_not_followed(lab: Lab) -> None:
    """The lock file of a database is no data; that its stores are not seen is told."""

    def work() -> None:
        memory = _mapped("lock.mdb")
        memory[0] = 1

    seen = lab.watch(work)
    assert [(spot.what, spot.text) for spot in seen.blind_spots] == [("shared-mapping", "lock.mdb")]
    assert said(seen.steps) == ["create lock.mdb", f"truncate lock.mdb to {2 * PAGE} bytes"]


def test_a_mapping_outside_the_folder_is_no_matter(lab: Lab, tmp_path: Path) -> None:
    """Files elsewhere, and memory without a file, are not followed."""
    (tmp_path / "outside").write_bytes(bytes(PAGE))

    def work() -> None:
        Path("a").touch()
        with open(tmp_path / "outside", "r+b") as file:
            mmap.mmap(file.fileno(), PAGE)[0] = 1
        mmap.mmap(-1, PAGE)[0] = 1

    seen = lab.watch(work)
    assert (said(seen.steps), seen.blind_spots) == (["create a"], ())
