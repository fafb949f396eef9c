"""The simulated disk: contents as values, steps applied to a tree,
and the states that kills leave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings, strategies as st
from pytest_chaos.explore.simulate.content import PAGE_BYTES, Content, PageStore
from pytest_chaos.explore.simulate.crash import TEARS_MAX, crash_states, find_crash, tears
from pytest_chaos.explore.simulate.disk import Disk, RecordingError
from pytest_chaos.explore.simulate.state import live_items, marks_of
from pytest_chaos.trace.step import Action

from tests.harness.trace.recordings import Script

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.explore.simulate.state import State
    from pytest_chaos.trace.recording import Recording

_SIZES = st.integers(min_value=0, max_value=3 * PAGE_BYTES)
_CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _SIZES, st.binary(min_size=1, max_size=2 * PAGE_BYTES)),
        st.tuples(st.just("resize"), _SIZES, st.just(b"")),
        st.tuples(st.just("zero"), _SIZES, st.binary(max_size=PAGE_BYTES)),
    ),
    max_size=8,
)


def _play(recording: Recording) -> dict[str, bytes | str]:
    """Return what is at each path when the recording is over:
    contents of files, kinds of other things.
    """
    disk = Disk(recording, PageStore())
    for step in recording.steps:
        disk.apply(step)
    return {
        path: item.content.to_bytes() if item.content is not None else item.kind
        for path, item in live_items(disk).items()
    }


def _files(state: State) -> dict[str, bytes]:
    return {path: item.content.to_bytes() for path, item in state.items.items() if item.content is not None}


@settings(max_examples=60, deadline=None)
@given(_CHANGES)
def test_a_content_is_what_a_file_would_be(changes: list[tuple[str, int, bytes]]) -> None:
    """Whatever is written, cut and zeroed, the content has a file's bytes,
    and an older one stays as it is.
    """
    content, plain = Content(PageStore()), bytearray()
    for action, place, data in changes:
        before, old = content, bytes(plain)
        if action == "write":
            content = content.write(place, data)
            plain.extend(bytes(max(0, place - len(plain))))
            plain[place : place + len(data)] = data
        elif action == "resize":
            content = content.resize(place)
            plain = plain[:place] + bytes(max(0, place - len(plain)))
        else:
            content = content.zero(place, len(data))
            end = min(len(plain), place + len(data))
            plain[place:end] = bytes(max(0, end - place))
        assert content.to_bytes() == plain
        assert before.to_bytes() == old
    assert content.digest == Content(PageStore()).write(0, bytes(plain)).digest


def test_equal_contents_have_equal_digests_however_they_came_about() -> None:
    """A page that was written and written back leaves no trace in the digest;
    one that moved does.
    """
    store = PageStore()
    page, other = b"a" * PAGE_BYTES, b"b" * PAGE_BYTES
    direct = Content(store).write(0, page + other)

    assert direct.write(0, other).write(0, page).digest == direct.digest
    assert Content(store).write(0, other + page).digest != direct.digest
    assert Content(store).resize(PAGE_BYTES).digest != Content(store).digest
    assert direct.write(0, other).changed_pages(direct) == [0]


def test_pages_beyond_the_memory_go_to_a_file(tmp_path: Path) -> None:
    """A store with room for one page in memory gives back all three that it was given."""
    store = PageStore(tmp_path, memory_bytes_max=PAGE_BYTES)
    data = b"".join(bytes([number]) * PAGE_BYTES for number in (1, 2, 3))
    content = Content(store).write(0, data, keep=store.keep)

    assert content.to_bytes() == data
    assert list(tmp_path.iterdir()) == []  # the file has no name, so nothing can be left behind
    store.close()


def test_steps_give_the_tree_that_the_calls_would(tmp_path: Path) -> None:
    """Files, folders, links, renames over a file and of a folder,
    and unlinks end as on a real disk.
    """
    script = Script(tmp_path).before("old", b"old").folder("d").create("d/a").write("d/a", b"abc")
    script.link("hard", "d/a").write("hard", b"X", offset=1).symlink("soft", "d/a")
    script.create("tmp").write("tmp", b"new").rename("tmp", "old")
    script.step(Action.RENAME, "d", target="e", node=3)
    script.create("gone").unlink("gone")

    assert _play(script.done()) == {
        "old": b"new", "e": "folder", "e/a": b"aXc", "hard": b"aXc", "soft": "symlink",
    }  # fmt: skip


def test_all_actions_that_change_a_file_are_applied(tmp_path: Path) -> None:
    """Growing, cutting, allocating and punching give the bytes that the kernel would."""
    script = Script(tmp_path).create("a").write("a", b"123456")
    script.truncate("a", 4).step(Action.ALLOCATE, "a", offset=2, length=4).step(Action.ZERO, "a", offset=1, length=2)

    assert _play(script.done()) == {"a": b"1\0\x004\0\0"}


def test_an_exchange_and_what_comes_from_outside_are_applied(tmp_path: Path) -> None:
    """Two names change places; a file that is moved in brings its content,
    one that is moved out is gone.
    """
    script = Script(tmp_path).create("a").write("a", b"a").create("b").write("b", b"b").create("c")
    script.step(Action.EXCHANGE, "a", target="b").step(Action.RENAME, "c", target="")
    content = script._recorder.keep(b"from outside")
    script.step(Action.RENAME, "", target="in", node=99, content=content, length=12)

    assert _play(script.done()) == {"a": b"b", "b": b"a", "in": b"from outside"}


def test_an_unnamed_file_is_there_once_it_is_linked(tmp_path: Path) -> None:
    """O_TMPFILE: nothing to be seen until linkat gives it a name."""
    script = Script(tmp_path).step(Action.CREATE_UNNAMED, "", node=7)
    content = script._recorder.keep(b"data")
    script.step(Action.WRITE, "", node=7, length=4, content=content)
    recording = script.step(Action.LINK, "named", node=7).done()

    *before, last = [_files(state) for state in crash_states(recording, PageStore(), "s")]
    assert before == [{}, {}]
    assert last == {}
    assert _play(recording) == {"named": b"data"}


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        (Action.WRITE, {"path": "a", "node": 50, "length": 1}),
        (Action.CREATE, {"path": "no/such/folder", "node": 50}),
        (Action.EXCHANGE, {"path": "a", "target": "b", "node": 50}),
    ],
)
def test_a_recording_that_does_not_fit_together_is_refused(tmp_path: Path, action: Action, fields: dict) -> None:  # type: ignore[type-arg]
    """A step on what is not there is an error that names the step, never a guess."""
    recording = Script(tmp_path).step(action, **fields).done()

    with pytest.raises(RecordingError, match="does not fit together at 1: "):
        _play(recording)


def test_a_kill_leaves_what_was_done_before_each_step(tmp_path: Path) -> None:
    """There is a state before every step, with the marks so far,
    and one between the work and its mark.
    """
    recording = Script(tmp_path).mark("intent", 1).create("a").write("a", b"1").mark("ack", 1).unlink("a").done()

    seen = [(state.code, state.marks, _files(state), state.kill) for state in crash_states(recording, PageStore(), "s")]
    assert seen == [
        ("crash:1m0", 0, {}, False),
        ("crash:1", 1, {}, True),
        ("crash:2", 1, {"a": b""}, True),
        ("crash:3m1", 1, {"a": b"1"}, False),
        ("crash:3", 2, {"a": b"1"}, True),
    ]


def test_a_large_write_is_torn_between_pages(tmp_path: Path) -> None:
    """A kill may leave any number of whole pages of a write,
    counted in the file and not in the write.
    """
    recording = Script(tmp_path).create("a").write("a", b"x" * (2 * PAGE_BYTES), offset=100).done()

    sizes = [len(_files(state)["a"]) for state in crash_states(recording, PageStore(), "s") if "+" in state.code]
    assert sizes == [PAGE_BYTES, 2 * PAGE_BYTES]
    assert tears(0, PAGE_BYTES) == []
    assert len(tears(0, 10_000 * PAGE_BYTES)) == TEARS_MAX


def test_a_state_is_found_again_by_its_code(tmp_path: Path) -> None:
    """What a report names can be built again from the same recording;
    what it does not name is none.
    """
    recording = Script(tmp_path).create("a").write("a", b"x" * (3 * PAGE_BYTES)).done()
    for state in crash_states(recording, PageStore(), "s"):
        found = find_crash(recording, PageStore(), state.code, "s")
        assert found is not None
        assert found.digest == state.digest
    assert find_crash(recording, PageStore(), "crash:99", "s") is None


def test_states_differ_by_marks_names_contents_and_links(tmp_path: Path) -> None:
    """A check could tell these states apart, so their digests differ;
    equal ones are built only once.
    """
    script = Script(tmp_path).create("a").mark("ack", 1).link("b", "a").write("a", b"1").write("a", b"1")
    digests = [state.digest for state in crash_states(script.sync("a").sync("a").done(), PageStore(), "s")]

    assert len(digests) == 7
    assert len(set(digests)) == 5


def test_marks_are_read_in_order(tmp_path: Path) -> None:
    """The marks of a recording are those that were written, each with its place."""
    recording = Script(tmp_path).mark("intent", 1).create("a").mark("ack", 1).done()

    assert [(mark.kind, mark.key, mark.order) for mark in marks_of(recording)] == [("intent", 1, 0), ("ack", 1, 1)]
