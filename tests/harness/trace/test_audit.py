"""The audit source sees what both sources can see, and says what it cannot see."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.runtime.marks import Marks
from pytest_chaos.trace.audit import AuditSource
from pytest_chaos.trace.recording import Recorder
from pytest_chaos.trace.seccomp import SeccompSource
from pytest_chaos.trace.source import InjectError, KillAfterMark, KillBefore, Watch, source_for
from pytest_chaos.trace.step import Action

from tests.harness.evidence.replaying import contents

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.trace.source import Directive, Observation, StepSource

WATCH = Watch()
SEEN_BY_BOTH = frozenset(
    {
        Action.CREATE,
        Action.RENAME,
        Action.UNLINK,
        Action.MAKE_FOLDER,
        Action.REMOVE_FOLDER,
        Action.LINK,
        Action.SYMLINK,
        Action.CHANGE_MODE,
        Action.TRUNCATE,
    }
)


class Lab:
    """A watched folder and a mark file."""

    def __init__(self, folder: Path) -> None:
        self.directory = folder / "watched"
        self.directory.mkdir()
        self.marks = folder / "marks.jsonl"
        self.recording = folder / "recording"

    def watch(
        self,
        program: Callable[[], object],
        *,
        source: StepSource | None = None,
        directive: Directive = WATCH,
        **options: Any,
    ) -> Observation:
        """Run a program in an empty watched folder."""
        shutil.rmtree(self.directory)
        self.directory.mkdir()
        self.marks.write_bytes(b"")

        def called() -> None:
            program()

        watching = source or AuditSource()
        return watching.observe(called, self.directory, marks=self.marks, directive=directive, **options)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Return a lab in a folder of its own."""
    return Lab(tmp_path)


def work() -> None:
    """Do everything to names that Python can do."""
    Path("folder").mkdir()
    Path("folder/a").write_bytes(b"one")
    Path("folder/a").rename("folder/b")
    Path("folder/b").write_bytes(b"two")
    os.chmod("folder/b", 0o600)
    os.truncate("folder/b", 1)
    os.link("folder/b", "hard")
    os.symlink("folder/b", "soft")
    Path("missing").unlink(missing_ok=True)
    Path("soft").unlink()
    Path("folder/b").replace("moved")
    os.rmdir("folder")
    with open("moved", "rb") as file:
        file.read()


def test_both_sources_agree_on_what_both_see(lab: Lab) -> None:
    """The same steps, in the same order, with the same paths."""
    by_audit = lab.watch(work)
    by_seccomp = lab.watch(work, source=SeccompSource())
    assert by_audit.exit_code == by_seccomp.exit_code == 0
    both = [
        [(step.action, step.path, step.target, step.length) for step in seen.steps if step.action in SEEN_BY_BOTH]
        for seen in (by_audit, by_seccomp)
    ]
    assert both[0] == both[1]
    assert len(both[0]) == 11


def test_what_it_cannot_see_is_said(lab: Lab) -> None:
    """Contents always; a database, other processes and mappings when there are any."""

    def hidden() -> None:
        sqlite3.connect("a.db").close()
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)

    assert [spot.what for spot in lab.watch(work).blind_spots] == ["contents"]
    assert [spot.what for spot in lab.watch(hidden).blind_spots] == ["contents", "sqlite3", "process"]


@pytest.mark.parametrize("number", range(1, 12))
def test_a_kill_at_each_step_leaves_what_was_done_before(lab: Lab, number: int) -> None:
    """The step itself is not done: the folder is as the other source leaves it at that step."""
    observation = lab.watch(work, directive=KillBefore(number=number), expected=lab.watch(work).steps)
    assert (observation.fired, observation.signal, observation.count) == (True, signal.SIGKILL, number - 1)
    left = contents(lab.directory)
    step = lab.watch(work).steps[number - 1]
    seen = lab.watch(work, source=SeccompSource()).steps
    (there,) = [
        each.number
        for each in seen
        if (each.action, each.path, each.target, each.length) == (step.action, step.path, step.target, step.length)
    ]
    lab.watch(work, source=SeccompSource(), directive=KillBefore(number=there))
    assert contents(lab.directory) == left


def test_a_programs_own_points_are_steps(lab: Lab) -> None:
    """Events of any name but Python's own; marks lie between them in their order."""

    def points() -> None:
        marks = Marks(lab.marks, "agent")
        sys.audit("targets.one", 1)
        marks.ack("put", 1)
        os.listdir()
        sys.audit("shop.sold")

    observation = lab.watch(points)
    assert [(step.action, step.path, step.number) for step in observation.steps] == [
        (Action.POINT, "targets.one", 1),
        (Action.MARK, "", 1),
        (Action.POINT, "shop.sold", 2),
    ]
    assert lab.watch(points, directive=KillBefore(number=2)).signal == signal.SIGKILL
    assert lab.marks.read_text().count("put") == 1


def test_a_step_fails_with_an_error(lab: Lab) -> None:
    """The program sees it in place of doing it, once, or from there on."""

    def rename() -> None:
        Path("a").write_bytes(b"x")
        for _ in range(2):
            try:
                Path("a").rename("b")
            except OSError as failure:
                print(failure.errno)

    observation = lab.watch(rename, directive=InjectError(number=2, error="EIO"))
    assert (observation.fired, observation.output.split()) == (True, [str(errno.EIO)])
    assert contents(lab.directory).keys() == {"b"}
    lab.watch(rename, directive=InjectError(number=2, error="ENOSPC", times=None))
    assert contents(lab.directory).keys() == {"a"}


def test_a_name_that_is_not_utf_8_is_a_step(lab: Lab) -> None:
    """It is logged as any other name, and the program goes on."""
    observation = lab.watch(lambda: Path(os.fsdecode(b"caf\xe9")).mkdir())
    assert [step.path for step in observation.steps] == [os.fsdecode(b"caf\xe9")]
    assert observation.exit_code == 0


def test_a_program_that_behaves_otherwise_has_diverged(lab: Lab) -> None:
    """It is ended at the first step that differs."""
    expected = lab.watch(work).steps
    observation = lab.watch(lambda: Path("other").mkdir(), expected=expected)
    assert (observation.diverged_at, observation.signal) == (1, signal.SIGKILL)


def test_a_program_that_does_not_end_is_ended(lab: Lab) -> None:
    """After its time, and said so."""
    observation = lab.watch(signal.pause, timeout_s=0.3)
    assert observation.is_timed_out
    assert "did not end within 0.3 s" in observation.failure


def test_what_takes_the_other_source_is_refused(lab: Lab) -> None:
    """Recording, commands and marks to stop at; and what is no setting."""
    source = AuditSource()
    recorder = Recorder(lab.recording, "audit")
    with pytest.raises(StepsUnavailable, match="seccomp can"):
        lab.watch(work, recorder=recorder)
    recorder.close()
    with pytest.raises(StepsUnavailable, match="seccomp can"):
        source.observe(["true"], lab.directory, marks=lab.marks)
    with pytest.raises(StepsUnavailable, match="seccomp can"):
        lab.watch(work, directive=KillAfterMark(count=1))
    with pytest.raises(UsageError, match=r"must be a directory and the timeout must be > 0 \(got 0.0 s\)"):
        lab.watch(work, timeout_s=0.0)


def test_a_source_is_found_by_name() -> None:
    """The best there is, one that is named, and a sentence for one that is none."""
    assert [source_for(name).name for name in (None, "seccomp", "audit")] == ["seccomp", "seccomp", "audit"]
    with pytest.raises(UsageError, match="must be one of seccomp, audit; got 'ptrace'"):
        source_for("ptrace")
