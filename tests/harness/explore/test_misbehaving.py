"""Targets that a sceptical user brings: each comes to a sentence and a verdict,
and leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.launch import launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import CONFIRMED_BY_A_KILL, CONFIRMED_BY_A_RUN, Family
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.values import Verdict
from pytest_chaos.trace.program import launch as start

from tests.harness.explore.explored import Careful, KillsItsParent, KillsTheExplorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_chaos.explore.report import Exploration
    from pytest_chaos.explore.session import Progress
    from pytest_chaos.model.values import Finding, Mark
    from pytest_chaos.runtime.marks import Marks

CRASH, RECOVERY, POWER, IO = Family.CRASH, Family.RECOVERY, Family.POWER, Family.IO


@pytest.fixture(autouse=True)
def _steps() -> None:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))


def _explore(target: object, *families: Family, tmp_path: Path, **options: Any) -> Exploration:
    kept, progress = tmp_path / "kept", tmp_path / "progress.json"
    chosen = Options(seed="test", families=families or tuple(Family), kept=kept, progress=progress, **options)
    return launch(subject_of(target), chosen)


def _signatures(explored: Exploration) -> set[str]:
    return {finding.signature for finding in explored.all_findings}


class OddNames(Careful):
    """Has a file whose name is no UTF-8, and whose check speaks of it."""

    odd = os.fsdecode(b"odd \xff\n\x1b[31m")

    def run(self, directory: Path, marks: Marks) -> None:
        """Write a file that can only be named by bytes."""
        (directory / self.odd).write_text("1")
        marks.ack("save", 0)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Find it missing by its name."""
        if marks and not (directory / self.odd).exists():
            yield f"{self.odd} is gone"


def test_names_that_are_no_text_are_explored(tmp_path: Path) -> None:
    """A file name is bytes: what is no UTF-8 is recorded, rebuilt and told of,
    and its finding can be kept.
    """
    explored = _explore(OddNames, CRASH, POWER, tmp_path=tmp_path)

    crash, power = explored.families
    assert crash.verdict is Verdict.HELD, explored.all_findings
    assert {found.text for found in power.discoveries} == {"odd \\xff\n\x1b[31m is gone"}
    assert (Path(power.discoveries[0].folder) / "directory").is_dir()


def test_a_process_with_no_room_for_its_last_words_still_ends(tmp_path: Path) -> None:
    """A full disk fails even the last flush; the child must end there,
    and not run on as a second parent.
    """
    here = os.getpid()
    try:
        child = start(lambda: print("x" * 100_000), tmp_path, tmp_path / "marks", Path("/dev/full"), lambda: None)
    finally:
        if os.getpid() != here:
            os._exit(77)

    assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == 1


class HangsOnNothing(Careful):
    """Its check waits for marks that a crash before the end leaves out."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Wait for the last mark, for ever."""
        if len(marks) < 2 * self.numbers:
            signal.pause()
        return super().check(directory, marks)


@pytest.fixture
def _few_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two hangs end a family: so each may have the time that a sound check takes on a machine
    that stalls.
    """
    monkeypatch.setattr("pytest_chaos.explore.session.HANGS_MAX", 2)


@pytest.mark.nightly  # a minute of waiting
@pytest.mark.usefixtures("_few_hangs")
def test_a_check_that_hangs_after_a_real_kill_is_confirmed(tmp_path: Path) -> None:
    """What the run came to is known when its check begins: the kill fired, and nothing diverged."""
    explored = _explore(HangsOnNothing, CRASH, tmp_path=tmp_path, check_timeout_s=3.0, confirmations=1)

    (crash,) = explored.families
    assert "harness:diverged" not in _signatures(explored)
    assert [(found.signature, found.label) for found in crash.discoveries] == [
        ("liveness:check-hangs", CONFIRMED_BY_A_KILL)
    ]


@pytest.mark.nightly  # half a minute of waiting
@pytest.mark.usefixtures("_few_hangs")
def test_a_family_that_only_hangs_is_ended(tmp_path: Path) -> None:
    """Each state that hangs costs a timeout: after some the rest is left, which is told,
    and is no pass.
    """
    explored = _explore(HangsOnNothing, POWER, IO, tmp_path=tmp_path, check_timeout_s=3.0)

    power, errors = explored.families
    for family in (power, errors):
        assert not family.is_complete
        assert family.verdict is Verdict.VIOLATED
        assert family.states < 25
    assert {found.label for found in errors.discoveries} == {CONFIRMED_BY_A_RUN}
    assert {"harness:too-many-hangs", "liveness:check-hangs"} == _signatures(explored)


class HangsOnErrors(Careful):
    """Waits for ever when it meets an I/O error."""

    def save(self, directory: Path, number: int) -> None:
        """Save, or hang."""
        try:
            super().save(directory, number)
        except OSError:
            signal.pause()


@pytest.mark.nightly  # half a minute of waiting
def test_once_a_run_has_hung_later_ones_have_less_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not end in the shorter time is told, and is neither a finding nor a pass."""
    monkeypatch.setattr("pytest_chaos.explore.session._SHORT_S", 1.0)
    monkeypatch.setattr("pytest_chaos.explore.session._TIMES_A_RUN", 0)
    monkeypatch.setattr("pytest_chaos.explore.session.HANGS_MAX", 6)

    explored = _explore(HangsOnErrors, IO, tmp_path=tmp_path, run_timeout_s=8.0)

    (errors,) = explored.families
    (found,) = errors.discoveries
    assert found.signature == "liveness:hangs-on-error"
    assert found.states < 6
    assert errors.confirmed == errors.points == errors.states
    (cut,) = (each for each in errors.problems if each.signature == "harness:cut-short")
    assert "after a run had hung for 8 s, later ones had 1 s" in cut.text


@pytest.mark.nightly  # a minute of waiting
@pytest.mark.usefixtures("_few_hangs")
def test_a_recovery_that_hangs_is_a_liveness_finding(tmp_path: Path) -> None:
    """It is the program that hangs after a crash, and nothing that could not be seen."""
    explored = _explore(
        HangsOnNothing, RECOVERY, tmp_path=tmp_path, run_timeout_s=3.0, check_timeout_s=3.0, recoveries=2
    )

    assert _signatures(explored) - {"harness:too-many-hangs"} == {"liveness:recovery-hangs"}
    assert explored.verdict is Verdict.VIOLATED


def test_a_budget_ends_real_runs_at_named_events(tmp_path: Path) -> None:
    """Where only audit events are seen the time that is given holds as well."""
    options = Options(seed="s", families=(CRASH,), budget_s=1e-9, source="audit", scratch=tmp_path)
    explored = launch(subject_of(Careful), options)

    assert not explored.families[0].is_complete
    assert "harness:incomplete:crash" in _signatures(explored)


class LosesFive(Careful):
    """Acknowledges five numbers and keeps none of them on the disk."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Write what is never synced."""
        with (directory / "numbers").open("w") as file:
            for number in range(5):
                print(number, file=file, flush=True)
        for number in range(5):
            marks.ack("save", number)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Find each number that is not there."""
        path = directory / "numbers"
        found = path.read_text(errors="replace").split() if path.exists() else []
        return [f"lost {mark.key}" for mark in marks if str(mark.key) not in found]


def test_a_state_counts_once_for_a_signature(tmp_path: Path) -> None:
    """A state in which five numbers are lost is one state, and not five."""
    explored = _explore(LosesFive, POWER, tmp_path=tmp_path, models=("ext4",))

    (power,) = explored.families
    assert len(power.discoveries) == 1
    assert power.discoveries[0].states < power.states


def test_a_check_that_raises_is_told_with_the_state_that_made_it(tmp_path: Path) -> None:
    """Whoever mends the check wants to see the state: the finding names the code that builds it."""

    class Raises(Careful):
        def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
            return [(directory / "state.json").read_text()] * (len(marks) > 99)

    explored = _explore(Raises, CRASH, tmp_path=tmp_path)

    (problem,) = explored.families[0].problems
    assert explored.verdict is Verdict.INCONCLUSIVE
    assert "--state 'crash:1" in problem.text


def test_a_target_that_kills_its_parent_is_inconclusive(tmp_path: Path) -> None:
    """Its run was not seen to the end, which says nothing of what it keeps."""
    explored = _explore(KillsItsParent, tmp_path=tmp_path)

    assert _signatures(explored) == {"harness:run-not-seen"}
    assert explored.verdict is Verdict.INCONCLUSIVE


def test_a_target_that_kills_the_explorer_is_inconclusive(tmp_path: Path) -> None:
    """Who asked is another process: it learns of the end, and nothing is left."""
    base = tmp_path / "scratch"
    base.mkdir()
    explored = launch(subject_of(KillsTheExplorer), Options(seed="s", scratch=base))

    assert _signatures(explored) == {"harness:explorer-killed"}
    assert explored.verdict is Verdict.INCONCLUSIVE
    assert list(base.iterdir()) == []


class WantsInput(Careful):
    """Asks its user for something."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Save a number, and ask."""
        self.save(directory, 1)
        marks.note(self.ask())

    def ask(self) -> str:
        """Read a line."""
        return input()


class WantsATerminal(WantsInput):
    """Asks at its terminal."""

    def ask(self) -> str:
        """Read a line."""
        return Path("/dev/tty").read_text()


@pytest.mark.parametrize("target", [WantsInput, WantsATerminal])
def test_a_program_that_wants_a_terminal_is_inconclusive(tmp_path: Path, target: type) -> None:
    """It fails for want of what no exploration can give, which says nothing of what it keeps."""
    explored = _explore(target, CRASH, tmp_path=tmp_path)

    assert _signatures(explored) == {"harness:needs-terminal"}
    assert explored.verdict is Verdict.INCONCLUSIVE
    assert "(at test_misbehaving.py:" in explored.findings[0].text


class LeavesThings(Careful):
    """Its check leaves processes, in its session and out of it, and a thread."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Say how many are there from earlier checks."""
        del directory, marks
        me = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        for own in (False, True):
            subprocess.Popen(["sleep", "1000"], start_new_session=own)
        return [] if len(me) < 2 else [f"{len(me)} are there"]


def test_what_a_check_leaves_is_ended_before_the_next_one(tmp_path: Path) -> None:
    """So that it cannot answer for another state, or fill the machine; a note names it."""
    explored = _explore(LeavesThings, CRASH, tmp_path=tmp_path)

    assert explored.verdict is Verdict.HELD, explored.all_findings
    text = "the check left processes running, which were ended (sleep (2)): let it end what it starts"
    assert text in explored.notes
    assert explored.families[0].states > 5


class WrongTwice(Careful):
    """Leaves a state of which two things are wrong, in a file whose many writes make for a long
    code.
    """

    def run(self, directory: Path, marks: Marks) -> None:
        """Write every other page, backwards, and sync nothing."""
        marks.ack("begin")
        with (directory / "pages").open("wb", buffering=0) as file:
            for place in range(30, 0, -1):
                os.pwrite(file.fileno(), b"x" * 5000, place * 8192)
        marks.ack("end")

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Find two faults as soon as one page of the middle is missing."""
        path = directory / "pages"
        if len(marks) == 2 and (not path.exists() or path.read_bytes()[8192 * 9 : 8192 * 9 + 5000] != b"x" * 5000):
            yield "a page is missing"
            yield "and something else is wrong"


def test_each_finding_has_its_text_and_each_state_its_folder(tmp_path: Path) -> None:
    """Two findings of one state are both told in its text,
    and states with long codes do not share a folder.
    """
    explored = _explore(WrongTwice, POWER, tmp_path=tmp_path)

    found = explored.discoveries
    assert len({each.signature for each in found}) == 2
    assert len({each.folder for each in found}) == len({each.code for each in found})
    for each in found:
        assert each.text in Path(f"{each.folder}.txt").read_text()
        assert len(Path(each.folder).name) < 100


class Remembers(Careful):
    """Its check finds fault with whatever it sees after the third state:
    a cache that nobody empties.
    """

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self._seen = 0

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Count the states."""
        self._seen += 1
        return [*super().check(directory, marks), *(["too many states"] * (self._seen > 3))]


def test_a_finding_that_a_fresh_process_does_not_see_is_flaky(tmp_path: Path) -> None:
    """Each kept state is judged again before it is reported,
    by a process that has judged nothing else.
    """
    explored = _explore(Remembers, POWER, tmp_path=tmp_path)

    assert "harness:check-not-deterministic" in _signatures(explored)
    assert "harness:check-not-deterministic" not in _signatures(_explore(WrongTwice, POWER, tmp_path=tmp_path))


class HangsOnce(Careful):
    """Its check hangs once, as on a machine that stood still; ``flag`` is outside of all states."""

    flag = Path()

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Wait for ever, the first time that the second number is not there."""
        if len(marks) < 4 and not self.flag.exists():
            self.flag.touch()
            signal.pause()
        return super().check(directory, marks)


def test_a_check_that_hangs_once_has_decided_nothing(tmp_path: Path) -> None:
    """The same state is judged again, by a fresh process, before it is called a violation."""
    HangsOnce.flag = tmp_path / "flag"
    explored = _explore(HangsOnce, CRASH, tmp_path=tmp_path, check_timeout_s=2.0)

    assert explored.verdict is Verdict.INCONCLUSIVE
    assert _signatures(explored) == {"harness:check-not-deterministic"}


class LooksForATracer(Careful):
    """Does its work only when nobody watches it."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Look into its own status first."""
        (directory / "started").touch()
        status = Path("/proc/self/status").read_text()
        if "Seccomp:\t2" not in status:
            super().run(directory, marks)


class FailsUnwatched(Careful):
    """Needs to be watched."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Do all, and then fail."""
        super().run(directory, marks)
        if "Seccomp:\t2" not in Path("/proc/self/status").read_text():
            os._exit(3)


@pytest.mark.parametrize(
    ("target", "said"),
    [(LooksForATracer, "state.json is made; it wrote 4 marks, not 0"), (FailsUnwatched, "it ended with 3")],
)
def test_a_target_that_changes_under_a_tracer_is_told(tmp_path: Path, target: type, said: str) -> None:
    """It is run unwatched as well: what is explored has to be what runs in production."""
    if "Seccomp:\t2" in Path("/proc/self/status").read_text():
        pytest.skip("this process is under a filter itself, and so is every program it runs")
    explored = _explore(target, CRASH, tmp_path=tmp_path)

    (finding,) = explored.findings
    assert finding.signature == "harness:changes-when-watched"
    assert said in finding.text
    assert explored.verdict is Verdict.INCONCLUSIVE


class SetupHangs(Careful):
    """Waits for ever before its run begins."""

    def setup(self, directory: Path) -> None:
        """Wait."""
        (directory / "begun").touch()
        while True:
            signal.pause()


def test_a_setup_that_hangs_is_bounded(tmp_path: Path) -> None:
    """It gets the time of a run, and then is told by its name."""
    explored = _explore(SetupHangs, CRASH, tmp_path=tmp_path, run_timeout_s=0.3)

    assert _signatures(explored) == {"harness:setup-hangs"}
    assert explored.verdict is Verdict.INCONCLUSIVE


class ExitsInSetup(Careful):
    """Calls a tool in setup() that ends the process with 0."""

    def setup(self, directory: Path) -> None:
        """Exit, as a command line does when it is called as a function."""
        del directory
        raise SystemExit(0)


def test_a_setup_that_exits_has_decided_nothing(tmp_path: Path) -> None:
    """Its exit code 0 is not the exploration's, which would look like a pass."""
    explored = _explore(ExitsInSetup, tmp_path=tmp_path)

    assert _signatures(explored) == {"harness:setup-raised"}
    assert explored.verdict is Verdict.INCONCLUSIVE


class MakesItAnew(Careful):
    """Deletes its directory, and makes another one in its place."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Begin again, as an installer does."""
        super().run(directory, marks)
        shutil.rmtree(directory)
        directory.mkdir()
        super().run(directory, marks)


def test_a_directory_that_was_deleted_and_made_anew_is_told(tmp_path: Path) -> None:
    """What is there at the end is another folder than the watched one."""
    explored = _explore(MakesItAnew, tmp_path=tmp_path)

    assert _signatures(explored) == {"harness:directory-deleted"}, explored.all_findings


class Sparse(Careful):
    """Reserves room for a database that it does not have yet."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Make a file of a tebibyte, with a page at its beginning and one at its end."""
        with (directory / "sparse").open("wb") as file:
            file.truncate(1 << 40)
            file.seek((1 << 40) - 4096)
            file.write(b"end")
        super().run(directory, marks)


def test_a_file_that_is_mostly_a_hole_costs_what_is_in_it(tmp_path: Path) -> None:
    """A tebibyte of nothing is neither read nor written, or this would not end."""
    explored = _explore(Sparse, CRASH, IO, tmp_path=tmp_path)

    assert explored.verdict is Verdict.HELD, explored.all_findings


class DrawsNames(Careful):
    """Writes aside by ``tempfile``, as most libraries that write atomically do,
    and leaves one file behind.
    """

    def run(self, directory: Path, marks: Marks) -> None:
        """Save the numbers, each through a file of a drawn name."""
        for number in range(1, 4):
            marks.intent("save", number)
            descriptor, name = tempfile.mkstemp(dir=directory)
            with os.fdopen(descriptor, "w") as file:
                file.write(json.dumps({"number": number}))
                file.flush()
                os.fsync(descriptor)
            Path(name).replace(directory / "state.json")
            folder = os.open(directory, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
            marks.ack("save", number)
        tempfile.mkstemp(dir=directory, prefix="left-")


def test_a_program_that_draws_the_names_of_its_files_is_explored(tmp_path: Path) -> None:
    """Two runs that differ in nothing else are the same program:
    all families, real kills and errors included.
    """
    explored = _explore(DrawsNames, tmp_path=tmp_path)

    assert explored.verdict is Verdict.HELD, explored.all_findings
    assert any("draws names (tmp" in note for note in explored.notes)
    assert all(family.confirmed for family in explored.families if family.family in {CRASH, IO})


class FindsDrawnNames(DrawsNames):
    """Its check speaks of every file whose name was drawn."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Call a file that a crash left behind by its name."""
        del marks
        if not any(path.name.startswith("left-") for path in directory.iterdir()):
            yield from (f"{path.name} is left behind" for path in directory.glob("tmp*"))


@pytest.mark.parametrize("target", [DrawsNames, FindsDrawnNames])
def test_a_program_that_draws_names_is_gone_on_with(tmp_path: Path, target: type) -> None:
    """The next run draws others, and does the same: what was found of the first is not explored
    again, but renamed.
    """
    heard: list[str] = []

    def interrupt(now: Progress) -> None:
        if now.family == POWER:
            raise KeyboardInterrupt

    def explore(listen: Callable[[Progress], None]) -> Exploration:
        kept, progress = tmp_path / "kept", tmp_path / "progress.json"
        chosen = Options(seed="test", families=(CRASH, POWER), kept=kept, progress=progress)
        return launch(subject_of(target), chosen, listen=listen)

    part = explore(interrupt)
    assert "harness:interrupted" in _signatures(part)
    rest = explore(lambda now: heard.append(now.family))
    assert set(heard) == {POWER}
    assert {finding.kind for finding in rest.all_findings} == {finding.kind for finding in rest.discoveries}
    (crash, _), (crash_before, *_) = rest.families, part.families
    assert [found.code for found in crash.discoveries] == [found.code for found in crash_before.discoveries]
    assert rest.verdict is (Verdict.HELD if target is DrawsNames else Verdict.VIOLATED)


def test_a_drawn_name_does_not_keep_a_finding_from_being_confirmed(tmp_path: Path) -> None:
    """The real kill leaves the same under another name:
    it is the finding that the recording gave.
    """
    explored = _explore(FindsDrawnNames, CRASH, tmp_path=tmp_path)

    (crash,) = explored.families
    assert {found.label for found in crash.discoveries} == {CONFIRMED_BY_A_KILL}, explored.all_findings
    assert len(crash.discoveries) == 3
    assert not crash.problems
