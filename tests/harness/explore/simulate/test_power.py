"""Power loss: what is certain and what may be missing, under each model,
and how samples are drawn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings, strategies as st
from pytest_chaos.errors import UsageError
from pytest_chaos.explore.simulate.content import PageStore
from pytest_chaos.explore.simulate.power import (
    EXHAUSTIVE_MAX,
    PENDING_MAX,
    SAMPLES,
    SECTOR_BYTES,
    Choice,
    Model,
    Pending,
    power_states,
    walk_moments,
)
from pytest_chaos.model.seed import stream
from pytest_chaos.trace.step import Action

from tests.harness.trace.recordings import Script

if TYPE_CHECKING:
    from pytest_chaos.explore.simulate.state import State
    from pytest_chaos.trace.recording import Recording

BOTH = pytest.mark.parametrize("model", list(Model))


def _files(state: State) -> tuple[tuple[str, bytes], ...]:
    return tuple(
        sorted((path, item.content.to_bytes()) for path, item in state.items.items() if item.content is not None)
    )


def _last(recording: Recording, model: Model) -> set[tuple[tuple[str, bytes], ...]]:
    """Return the distinct folders that a power failure at the end of the run may leave."""
    states = [state for state, _ in power_states(recording, PageStore(), model, seed="s")]
    end = (max(state.step for state in states), max(state.marks for state in states))
    return {_files(state) for state in states if (state.step, state.marks) == end}


def test_a_new_name_is_certain_only_once_its_folder_was_synced(tmp_path: Path) -> None:
    """Strict: an fsync of the file says nothing of its name. ext4: it commits the name too."""
    written = Script(tmp_path).create("a").write("a", b"1").sync("a").done()
    synced = Script(tmp_path).create("a").write("a", b"1").sync("a").sync("").done()

    assert _last(written, Model.STRICT) == {(), (("a", b"1"),)}
    assert _last(written, Model.EXT4) == {(("a", b"1"),)}
    assert _last(synced, Model.STRICT) == {(("a", b"1"),)}


@BOTH
def test_what_was_not_synced_may_be_missing_or_there(tmp_path: Path, model: Model) -> None:
    """A pending write is lost or not, and so is the name."""
    recording = Script(tmp_path).before("old", b"0").write("old", b"1").create("new").done()

    assert _last(recording, model) == {
        (("old", b"0"),), (("old", b"1"),), (("new", b""), ("old", b"0")), (("new", b""), ("old", b"1")),
    }  # fmt: skip


@BOTH
def test_writes_land_in_any_order(tmp_path: Path, model: Model) -> None:
    """The later of two writes may be there without the earlier one:
    a hole of zeros stands in its place.
    """
    recording = Script(tmp_path).before("a", b"").write("a", b"1").write("a", b"2", offset=1).done()

    assert _last(recording, model) == {(("a", each),) for each in (b"", b"1", b"\x002", b"12")}


@BOTH
def test_a_write_is_torn_by_sectors(tmp_path: Path, model: Model) -> None:
    """Each of the sectors that a write touches may land without the others."""
    new = b"x" * (2 * SECTOR_BYTES)
    recording = Script(tmp_path).before("a", bytes(3 * SECTOR_BYTES)).write("a", new, offset=100).done()

    landed = set()
    for ((_, content),) in _last(recording, model):
        landed.add(tuple(b"x" in content[k * SECTOR_BYTES : (k + 1) * SECTOR_BYTES] for k in range(3)))
    assert len(landed) == 8


def test_metadata_is_lost_in_order_under_ext4_and_in_any_way_under_strict(tmp_path: Path) -> None:
    """Of three new files ext4 leaves a prefix; POSIX promises nothing about any of them."""
    recording = Script(tmp_path).create("a").create("b").create("c").done()
    names = {model: {tuple(path for path, _ in files) for files in _last(recording, model)} for model in Model}

    assert names[Model.EXT4] == {(), ("a",), ("a", "b"), ("a", "b", "c")}
    assert len(names[Model.STRICT]) == 8


def test_an_fsync_commits_what_the_journal_had_before(tmp_path: Path) -> None:
    """ext4: the name of an older file is certain with that of the synced one;
    a younger one's is not.
    """
    recording = Script(tmp_path).create("a").create("b").sync("b").create("c").done()

    assert {tuple(path for path, _ in files) for files in _last(recording, Model.EXT4)} == {("a", "b"), ("a", "b", "c")}


def test_a_rename_without_an_fsync_can_leave_an_empty_file(tmp_path: Path) -> None:
    """The classic: the name is there before the data,
    so the old content is lost and the new one is not there.
    """
    script = Script(tmp_path).before("a", b"old").create("tmp").write("tmp", b"new").rename("tmp", "a")
    recording = script.done()
    script = Script(tmp_path).before("a", b"old").create("tmp").write("tmp", b"new").sync("tmp").rename("tmp", "a")
    safe = script.done()

    for model in Model:
        assert (("a", b""),) in _last(recording, model)
        assert {dict(files)["a"] for files in _last(safe, model)} == {b"old", b"new"}


@BOTH
def test_a_rename_happens_whole_or_not_at_all(tmp_path: Path, model: Model) -> None:
    """There is never a moment at which neither name has the file."""
    recording = Script(tmp_path).before("a", b"1").rename("a", "b").done()

    assert _last(recording, model) == {(("a", b"1"),), (("b", b"1"),)}


def test_a_folder_commits_what_came_before_in_the_same_folders(tmp_path: Path) -> None:
    """Strict: a rename between folders cannot overtake what stood in its way in the
    other folder.
    """
    script = Script(tmp_path).folder("d").sync("").create("a").sync("a").create("d/b").rename("a", "d/b").sync("")

    (files,) = _last(script.done(), Model.STRICT)
    assert [path for path, _ in files] == ["d/b"]


@BOTH
def test_a_truncation_may_be_lost_and_stays_when_synced(tmp_path: Path, model: Model) -> None:
    """O_TRUNC and a write, without an fsync, can leave the old content, nothing, or the new one."""
    recording = Script(tmp_path).before("a", b"old").truncate("a", 0).write("a", b"new").done()
    synced = Script(tmp_path).before("a", b"old").truncate("a", 0).sync("a").done()

    assert {b"old", b"", b"new"} <= {dict(files)["a"] for files in _last(recording, model)}
    assert _last(synced, model) == {(("a", b""),)}


def test_a_committed_truncation_does_not_wait_for_older_writes(tmp_path: Path) -> None:
    """ext4: a later fsync of another file commits the truncation;
    the write before it then cannot come back.
    """
    script = Script(tmp_path).before("a", b"").write("a", b"123").truncate("a", 0).create("b").sync("b")

    assert _last(script.done(), Model.EXT4) == {(("a", b""), ("b", b""))}


@BOTH
def test_a_sync_of_everything_leaves_one_state(tmp_path: Path, model: Model) -> None:
    """After sync(2) nothing is uncertain."""
    script = Script(tmp_path).create("a").write("a", b"1").truncate("a", 9).folder("d").create("d/b")
    recording = script.step(Action.CHANGE_MODE, "a", mode=0o600).step(Action.SYNC_ALL).done()

    assert len(_last(recording, model)) == 1


@BOTH
def test_sync_range_promises_nothing(tmp_path: Path, model: Model) -> None:
    """sync_file_range is no fsync: what it was told to write may be missing."""
    recording = Script(tmp_path).before("a", b"0").write("a", b"1").step(Action.SYNC_RANGE, "a").done()

    assert len(_last(recording, model)) == 2


@BOTH
def test_a_lost_folder_takes_what_is_in_it_along(tmp_path: Path, model: Model) -> None:
    """A file cannot be there without the folder it is in, even if its own name was synced."""
    recording = Script(tmp_path).folder("d").create("d/a").write("d/a", b"1").sync("d/a").done()

    assert all(len(files) in {0, 1} for files in _last(recording, model))
    states = [state for state, _ in power_states(recording, PageStore(), model, seed="s")]
    assert all("d" in state.items for state in states if "d/a" in state.items)


@BOTH
def test_no_state_has_a_file_of_shared_memory(tmp_path: Path, model: Model) -> None:
    """SQLite's -shm is memory: no power-loss state has it,
    and what is done to it makes no states.
    """
    recording = Script(tmp_path).create("a.db-shm").truncate("a.db-shm", 9).write("a.db-shm", b"1").done()

    assert {_files(state) for state, _ in power_states(recording, PageStore(), model, seed="s")} == {()}


@BOTH
def test_a_permission_is_lost_like_a_name(tmp_path: Path, model: Model) -> None:
    """Chmod without a sync may not have happened."""
    recording = Script(tmp_path).before("a", b"1").step(Action.CHANGE_MODE, "a", mode=0o600).done()

    states = [state for state, _ in power_states(recording, PageStore(), model, seed="s")]
    assert {state.items["a"].mode for state in states} == {0o644, 0o600}


def test_many_writes_are_sampled_and_the_report_can_say_so(tmp_path: Path) -> None:
    """Where a moment allows more states than are built, a sample of each kind of loss is drawn,
    the same each time.
    """
    script = Script(tmp_path).before("a", bytes(40 * SECTOR_BYTES))
    for number in range(40):
        script.write("a", b"x" * SECTOR_BYTES, offset=number * SECTOR_BYTES)
    recording = script.done()

    states = list(power_states(recording, PageStore(), Model.STRICT, seed="s"))
    again = list(power_states(recording, PageStore(), Model.STRICT, seed="s"))
    other = list(power_states(recording, PageStore(), Model.STRICT, seed="t"))
    at_end = [state for state, is_exhaustive in states if state.step == 41 and not is_exhaustive]
    assert len(at_end) == SAMPLES
    assert {0, 40} < {state.lost for state in at_end}
    assert any(is_exhaustive for _, is_exhaustive in states)
    assert [state.code for state, _ in states] == [state.code for state, _ in again]
    assert [state.code for state, _ in states] != [state.code for state, _ in other]


def test_a_write_of_megabytes_is_sampled_too(tmp_path: Path) -> None:
    """A single large write has more sectors than can be enumerated; its tears are drawn."""
    recording = Script(tmp_path).create("a").write("a", b"x" * (1 << 20)).done()

    assert 3 < len({state.digest for state, _ in power_states(recording, PageStore(), Model.EXT4, seed="s")}) < 100


@BOTH
def test_of_a_program_that_never_syncs_the_newest_writes_are_uncertain(tmp_path: Path, model: Model) -> None:
    """The oldest of too many pending writes is taken to be written back:
    states cost the same however long it runs.
    """
    script = Script(tmp_path).before("a", b"")
    for number in range(PENDING_MAX + 2):
        script.write("a", b"x", offset=number)
    *_, (moment, loss) = walk_moments(script.done(), PageStore(), model)

    pending = loss.pending
    assert len(pending.sectors) == PENDING_MAX
    lost = loss.build(pending, Choice(0, (0,) * PENDING_MAX), moment)
    assert _files(lost) == (("a", b"xx"),)
    assert _files(loss.build(pending, pending.everything, moment)) == (("a", b"x" * (PENDING_MAX + 2)),)


@BOTH
def test_many_new_names_are_bounded_too(tmp_path: Path, model: Model) -> None:
    """Of more than 512 names that were not synced the oldest are taken to be there."""
    script = Script(tmp_path)
    for number in range(PENDING_MAX + 3):
        script.create(f"{number}")
    *_, (moment, loss) = walk_moments(script.done(), PageStore(), model)

    pending = loss.pending
    assert pending.changes == PENDING_MAX
    assert set(loss.build(pending, Choice(0, ()), moment).items) == {"0", "1", "2"}


@BOTH
def test_every_state_is_built_again_from_its_code(tmp_path: Path, model: Model) -> None:
    """The choices in a code are those of the state, and give the same state again."""
    script = Script(tmp_path).before("a", bytes(2000)).write("a", b"x" * 1500).create("b").truncate("a", 3)
    recording = script.mark("ack", 1).rename("b", "c").done()

    codes = {state.code: state.digest for state, _ in power_states(recording, PageStore(), model, seed="s")}
    for moment, loss in walk_moments(recording, PageStore(), model):
        for code, digest in codes.items():
            _, _, place, text = code.split(":")
            if place == f"{moment.number}m{moment.marks}":
                pending = loss.pending
                assert loss.build(pending, pending.decode(text), moment).digest == digest


def test_a_loss_says_in_words_what_is_missing(tmp_path: Path) -> None:
    """A reader sees the step at which power failed, and each step that is lost or torn."""
    recording = Script(tmp_path).before("a", b"").write("a", b"x" * 1024).create("b").done()

    texts = {str(state) for state, _ in power_states(recording, PageStore(), Model.STRICT, seed="s")}
    assert any("1: write a 1024 bytes at 0 has 1 of 2 sectors" in text for text in texts)
    assert any("2: create b is lost" in text for text in texts)
    assert any("nothing is lost" in text for text in texts)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 6000)), min_size=1, max_size=6),
    st.integers(0, 7000),
    st.data(),
)
def test_what_landed_is_what_writing_it_gives(writes: list[tuple[int, int]], size: int, data: st.DataObject) -> None:
    """Whatever sectors of whatever writes have landed,
    the file holds what writing just them in order gives.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Script(Path(folder)).before("a", b"." * size)
        for number, (offset, length) in enumerate(writes):
            script.write("a", bytes([65 + number]) * length, offset=offset)
        *_, (moment, loss) = walk_moments(script.done(), PageStore(), Model.STRICT)
    pending = loss.pending
    masks = tuple(data.draw(st.integers(0, (1 << sectors) - 1)) for sectors in pending.sectors)
    expected = bytearray(b"." * size)
    for number, ((offset, length), mask) in enumerate(zip(writes, masks, strict=True)):
        for place in range(offset, offset + length):
            if mask >> (place // SECTOR_BYTES - offset // SECTOR_BYTES) & 1:
                expected.extend(bytes(max(0, place + 1 - len(expected))))
                expected[place] = 65 + number

    ((_, content),) = _files(loss.build(pending, Choice(0, masks), moment))
    assert content == expected


_PENDING = st.builds(
    Pending,
    changes=st.integers(0, 6),
    in_order=st.booleans(),
    sectors=st.lists(st.integers(1, 12), max_size=6).map(tuple),
)


@given(_PENDING, st.text(max_size=3))
def test_choices_are_possible_and_their_codes_read_back(pending: Pending, seed: str) -> None:
    """Every choice, drawn or enumerated, is within what is pending, is a prefix where order holds,
    and has its code.
    """
    everything = pending.everything
    choices = list(pending.choices(lambda: stream(f"s{seed}", "test")))

    assert everything in choices
    for choice in choices:
        assert choice.metadata | everything.metadata == everything.metadata
        assert all(mask | full == full for mask, full in zip(choice.data, everything.data, strict=True))
        assert not pending.in_order or (choice.metadata & (choice.metadata + 1)) == 0
        assert pending.decode(pending.encode(choice)) == choice
    if pending.is_exhaustive:
        assert len(set(choices)) == len(choices) == pending.choices_count <= EXHAUSTIVE_MAX


@given(_PENDING)
def test_smaller_losses_lose_less(pending: Pending) -> None:
    """Each step of a reduction has fewer losses than the choice it began with,
    and none begins with nothing lost.
    """
    nothing = Choice(0, tuple(0 for _ in pending.sectors))

    assert all(pending.lost(smaller) < pending.lost(nothing) for smaller in pending.smaller(nothing))
    assert list(pending.smaller(pending.everything)) == []


@pytest.mark.parametrize("text", ["", "1", "1.zz", "x.w", "1.w-w-w", "2.w-w", "1.w-1f", "1.wx999999999999"])
def test_a_code_of_another_recording_is_refused(text: str) -> None:
    """A code that does not fit what is pending is a mistake, not another state."""
    with pytest.raises(UsageError, match="a choice for 2 pending writes"):
        Pending(1, in_order=False, sectors=(1, 4)).decode(text)
