"""Whole explorations of real programs: what is found, how sure it is,
and what bad targets come to.
"""

from __future__ import annotations

import mmap
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.explore.document import document
from pytest_chaos.explore.explorer import Explorer
from pytest_chaos.explore.launch import default_base, is_memory, judge_state, launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import CONFIRMED_BY_A_KILL, CONFIRMED_BY_A_RUN, MODELLED, Family
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.values import Verdict
from pytest_chaos.runtime import processes as tree

from tests.harness.explore import explored as targets

if TYPE_CHECKING:
    from pytest_chaos.explore.report import Exploration, FamilyResult
    from pytest_chaos.explore.session import Progress
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


def _family(explored: Exploration, family: Family) -> FamilyResult:
    return next(each for each in explored.families if each.family is family)


def _signatures(explored: Exploration) -> set[str]:
    return {finding.signature for finding in explored.all_findings}


def test_a_sound_program_holds_under_everything(tmp_path: Path) -> None:
    """A file that is replaced with all fsyncs survives each crash, recovery, power loss and error;
    coverage is told.
    """
    explored = _explore(targets.Careful, tmp_path=tmp_path)

    assert explored.verdict is Verdict.HELD, explored.all_findings
    assert [each.family for each in explored.families] == list(Family)
    assert explored.coverage.startswith(f"{explored.steps} of {explored.steps} crash points, ")
    assert all(each.is_complete and each.points == each.points_total > 0 for each in explored.families)
    assert _family(explored, RECOVERY).coverage.startswith("not explored: no recovery makes a durable step (7 of 7")
    assert "sampled, at" not in explored.coverage
    assert _family(explored, CRASH).confirmed == 8
    assert explored.marks == 4
    assert not (tmp_path / "progress.json").exists()


class _Piped:
    """Saves, and then writes into a pipe that nobody reads any more."""

    name = "piped"

    def run(self, directory: Path, marks: Marks) -> None:
        """Take the error for what it is, and save once more."""
        (directory / "first").touch()
        reader, writer = os.pipe()
        os.close(reader)
        try:
            os.write(writer, b".")
        except BrokenPipeError:
            (directory / "second").touch()
            marks.ack("save", 2)

    def check(self, directory: Path, marks: Any) -> list[str]:
        """Find nothing wrong."""
        del directory, marks
        return []


def test_a_peer_that_has_gone_is_an_error_of_an_explored_function(tmp_path: Path) -> None:
    """As in any Python; a death by SIGPIPE would have ended the program before its second step."""
    explored = _explore(_Piped(), Family.CRASH, tmp_path=tmp_path)
    assert (explored.verdict, explored.steps) == (Verdict.HELD, 2)


class _MarksEarlier:
    """Makes the same steps in each run; from one run on, its mark comes before the last of them."""

    name = "marks earlier"
    late_runs = 2
    """The recorded run, and the one that is compared with it."""

    def __init__(self) -> None:
        self.starts = mmap.mmap(-1, 1)  # shared by all forks, and no file

    def run(self, directory: Path, marks: Marks) -> None:
        """Make two files, and acknowledge between the steps or behind them."""
        self.starts[0] += 1
        is_early = self.starts[0] > self.late_runs
        (directory / "first").touch()
        if is_early:
            marks.ack("save", 1)
        (directory / "second").touch()
        if not is_early:
            marks.ack("save", 1)

    def check(self, directory: Path, marks: Any) -> list[str]:
        """Find an acknowledgement without the first file."""
        return ["lost"] if marks and not (directory / "first").exists() else []


def test_a_kill_in_a_run_with_other_marks_is_judged_with_its_own(tmp_path: Path) -> None:
    """As a client's, whose server had not made its last step yet when it was answered."""
    explored = _explore(_MarksEarlier(), Family.CRASH, tmp_path=tmp_path)
    assert explored.verdict is Verdict.HELD, explored.all_findings
    assert explored.schedules > 1


def test_a_database_holds_and_its_recoveries_are_interrupted(tmp_path: Path) -> None:
    """SQLite in WAL mode survives; reopening it makes durable steps,
    at each of which it is killed again.
    """
    explored = _explore(targets.Database, CRASH, RECOVERY, POWER, tmp_path=tmp_path, jobs=2)

    assert explored.verdict is Verdict.HELD, explored.all_findings
    assert _family(explored, RECOVERY).states > 100


def test_what_a_crash_shows_is_confirmed_by_a_real_kill(tmp_path: Path) -> None:
    """A file written in place is torn: the earliest step is told,
    with the state kept and a way to see it again.
    """
    explored = _explore(targets.Careless, CRASH, tmp_path=tmp_path)

    (torn,) = explored.discoveries
    assert (torn.signature, torn.step, torn.code) == ("check:the file cannot be read", 2, "crash:2")
    assert torn.label == CONFIRMED_BY_A_KILL
    assert "again:" in torn.reproduction
    assert len(torn.reproduction.splitlines()) <= 12
    assert (Path(torn.folder) / "directory" / "state.json").read_bytes() == b""
    assert (Path(torn.folder) / "marks.jsonl").read_text().count('"intent"') == 1


def test_what_only_a_power_failure_shows_is_modelled_and_small(tmp_path: Path) -> None:
    """A rename without fsyncs survives every kill and no power failure;
    the loss is reduced to what it takes.
    """
    explored = _explore(targets.Unsynced, CRASH, POWER, tmp_path=tmp_path)

    assert _family(explored, CRASH).verdict is Verdict.HELD
    unreadable = [found for found in explored.discoveries if "cannot be read" in found.signature]
    assert {found.model for found in unreadable} == {"strict", "ext4"}
    assert {(found.label, found.lost) for found in unreadable} == {(MODELLED, 1)}


def test_a_recovery_that_cannot_be_interrupted_is_found(tmp_path: Path) -> None:
    """Only a kill within the restart shows it, and a real one does."""
    explored = _explore(targets.BadRecovery, CRASH, RECOVERY, tmp_path=tmp_path)

    assert _family(explored, CRASH).verdict is Verdict.HELD
    assert _family(explored, RECOVERY).verdict is Verdict.VIOLATED
    assert CONFIRMED_BY_A_KILL in {found.label for found in explored.discoveries}
    assert all(found.code.startswith("recovery:crash:") for found in explored.discoveries)


def test_an_error_that_is_ignored_is_found(tmp_path: Path) -> None:
    """A program that acknowledges after a failed write is violated by a real run;
    giving up would have been fine.
    """
    explored = _explore(targets.BadOnErrors, IO, tmp_path=tmp_path)

    assert explored.verdict is Verdict.VIOLATED
    assert {found.label for found in explored.discoveries} == {CONFIRMED_BY_A_RUN}
    assert all(found.output.startswith("[Errno ") for found in explored.discoveries)
    assert _family(explored, IO).points == _family(explored, IO).points_total


def test_a_program_that_hangs_on_an_error_is_found(tmp_path: Path) -> None:
    """Waiting for ever after an error is a liveness finding, and the exploration goes on."""
    explored = _explore(targets.HangsOnErrors, IO, tmp_path=tmp_path, run_timeout_s=3.0, io_runs=2)

    assert "liveness:hangs-on-error" in _signatures(explored)


def test_a_long_run_is_sampled_over_its_whole_length(tmp_path: Path) -> None:
    """Where all moments would give too many states some are taken, to the end of the run,
    and the report says so.
    """
    explored = _explore(targets.Database, POWER, tmp_path=tmp_path, power_states=240)

    power = _family(explored, POWER)
    assert power.points < power.points_total
    assert "sampled, at" in power.coverage
    assert power.verdict is Verdict.HELD


def test_what_was_drawn_of_recoveries_and_errors_is_called_a_sample(tmp_path: Path) -> None:
    """Coverage names all there are, and says that only some were tried;
    where all were, nothing is called a sample.
    """
    some = _explore(targets.Restarts, RECOVERY, IO, tmp_path=tmp_path / "some", recoveries=2, io_runs=5)
    whole = _explore(targets.Restarts, RECOVERY, IO, tmp_path=tmp_path / "all")

    recoveries, errors = [_family(whole, family).points_total for family in (RECOVERY, IO)]
    assert _family(some, RECOVERY).coverage.startswith(f"2 of {recoveries} recoveries (sampled), interrupted in ")
    assert _family(some, IO).coverage == f"5 of {errors} I/O errors (sampled)"
    assert some.verdict is whole.verdict is Verdict.HELD
    assert "sampled" not in whole.coverage


@pytest.mark.parametrize("family", list(Family))
def test_an_interrupted_family_counts_of_as_many_as_a_finished_one(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the budget or Ctrl-C ends it: what it is a part of stays, sampled or not."""
    monkeypatch.setattr("pytest_chaos.explore.session._TELL_EVERY_S", 0.0)  # or it is over before it is heard of

    def interrupt(progress: Progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"recoveries": 4, "io_runs": 12, "power_states": 240}
    chosen = Options(seed="test", families=(family,), **options)
    (whole,) = _explore(targets.Database, family, tmp_path=tmp_path / "whole", **options).families
    (part,) = launch(subject_of(targets.Database), chosen, listen=interrupt).families
    (late,) = _explore(targets.Database, family, tmp_path=tmp_path / "late", budget_s=0.001, **options).families

    assert not part.is_complete
    assert not late.is_complete
    assert part.points_total == late.points_total == whole.points_total > part.points > 0
    assert (" so far" in part.coverage) == (family is not CRASH)


@pytest.mark.parametrize("family", list(Family))
def test_a_state_can_be_built_again_by_its_code(tmp_path: Path, family: Family) -> None:
    """The code of a report gives the state, and the finding, in another session."""
    target = {
        CRASH: targets.Careless, RECOVERY: targets.BadRecovery, POWER: targets.Unsynced, IO: targets.BadOnErrors
    }[family]  # fmt: skip
    found = _explore(target, family, tmp_path=tmp_path).discoveries[0]

    judged = judge_state(subject_of(target), Options(seed="test"), found.code, tmp_path / "state")
    assert found.signature in {finding.signature for finding in judged.findings}
    assert judged.verdict is Verdict.VIOLATED
    assert (tmp_path / "state" / "directory").is_dir()


def test_the_same_seed_finds_the_same(tmp_path: Path) -> None:
    """Two explorations with one seed differ in nothing but their time,
    whatever the number of workers.
    """
    first, second = (
        _explore(targets.Unsynced, CRASH, POWER, tmp_path=tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2)
    )

    def shape(explored: Exploration) -> list[tuple[str, str, int, int]]:
        return [(each.signature, each.code, each.states, each.lost) for each in explored.discoveries]

    assert shape(first) == shape(second)
    assert first.coverage == second.coverage


def test_the_json_is_what_the_contract_says(tmp_path: Path) -> None:
    """Per family: states, confirmed, verdict, findings, and each finding with signature, step,
    kind, text, label.
    """
    value: Any = msgspec.to_builtins(document(_explore(targets.Careless, CRASH, POWER, tmp_path=tmp_path)))

    assert value["verdict"] == "VIOLATED"
    assert set(value["families"]) == {"crash", "power"}
    crash = value["families"]["crash"]
    assert (crash["verdict"], crash["states"] > 0, crash["confirmed"] > 0) == ("VIOLATED", True, True)
    assert {"signature", "step", "kind", "text", "confirmed", "label"} <= set(crash["findings"][0])
    assert crash["findings"][0]["confirmed"] is True
    assert value["families"]["power"]["findings"][0]["confirmed"] is False
    msgspec.json.encode(value)


def test_a_pass_says_what_it_could_not_see(tmp_path: Path) -> None:
    """Writes of some bytes cannot tear, and what is never acknowledged cannot be lost."""

    class Large(targets.Careful):
        def save(self, directory: Path, number: int) -> None:
            super().save(directory, number)
            (directory / "large").write_bytes(bytes(10_000))

    class Silent(targets.Careful):
        def run(self, directory: Path, marks: Marks) -> None:
            self.save(directory, 1)
            marks.note("saved")

    def notes(target: type) -> list[str]:
        explored = _explore(target, CRASH, POWER, tmp_path=tmp_path)
        assert explored.verdict is Verdict.HELD
        return [note.partition(":")[0] for note in explored.notes]

    tears = [
        "no write reaches into a second page of 4,096 bytes, so no kill could tear one",
        "no write reaches into a second sector of 512 bytes, so no power loss could tear one",
    ]
    assert notes(targets.Careful) == tears
    assert notes(Large) == ["power"], "a sample says what it did not meet, and nothing else is to be said"
    assert notes(Silent) == [*tears, "the program acknowledged nothing, so nothing had to be there"]


# Bad targets


@pytest.mark.parametrize(
    ("target", "signature", "text"),
    [
        (targets.Endless, "harness:does-not-end", "it did not end within 0.5 s"),
        (targets.WritesOutside, "harness:writes-outside", "outside of its directory"),
        (targets.DeletesDirectory, "harness:directory-deleted", "deleted the directory"),
        (targets.Idle, "harness:no-steps", "made no durable step"),
        (targets.BadSetup, "harness:setup-raised", "no setup today"),
        (targets.CheckRaises, "harness:check-raised:KeyError", "a mistake in the check"),
        (targets.CheckRaisesAtOnce, "harness:check-raised:KeyError", "so without any fault"),
        (targets.CheckExits, "harness:check-died", "died within it"),
        (targets.CheckReturnsNonsense, "harness:check-unclear", "must return findings or texts"),
    ],
)
def test_a_target_that_decides_nothing_is_inconclusive_and_told_why(
    tmp_path: Path, target: type, signature: str, text: str
) -> None:
    """Each misbehaviour has a finding of its own with a sentence;
    never a pass, never a violation.
    """
    timeout_s = 0.5 if target is targets.Endless else 30.0
    explored = _explore(target, CRASH, tmp_path=tmp_path, run_timeout_s=timeout_s)

    assert explored.verdict is Verdict.INCONCLUSIVE
    assert text in {finding.signature: finding.text for finding in explored.all_findings}[signature]


@pytest.mark.parametrize(
    ("target", "signature"), [(targets.WrongCheck, "check:there are # marks"), (targets.Fails, "clean-run:failed")]
)
def test_a_clean_run_that_fails_is_a_finding_of_its_own_kind(tmp_path: Path, target: type, signature: str) -> None:
    """What is wrong without any fault is a bug or a wrong check, and nothing is explored."""
    explored = _explore(target, tmp_path=tmp_path)

    assert explored.verdict is Verdict.VIOLATED
    assert {finding.kind for finding in explored.findings} == {"clean-run"}
    assert signature in _signatures(explored)
    assert explored.families == ()


@pytest.mark.nightly  # half a minute of waiting; test_misbehaving.py has one that hangs once
def test_a_check_that_hangs_is_bounded(tmp_path: Path) -> None:
    """It becomes a liveness finding, its worker is replaced, and the other states are judged."""
    explored = _explore(targets.CheckHangs, CRASH, tmp_path=tmp_path, check_timeout_s=3.0, confirmations=0)

    assert _signatures(explored) == {"liveness:check-hangs"}
    assert _family(explored, CRASH).points == explored.steps


@pytest.mark.parametrize("target", [targets.CheckModifies, targets.CheckDeletes])
def test_a_check_that_changes_the_state_does_not_poison_the_next(tmp_path: Path, target: type) -> None:
    """Every state is written anew: a sound program holds though each check ruins what it saw."""
    assert _explore(target, CRASH, POWER, tmp_path=tmp_path).verdict is Verdict.HELD


def test_a_target_that_prints_megabytes_is_explored(tmp_path: Path) -> None:
    """What run and check print is thrown away beyond a megabyte."""
    explored = _explore(targets.Chatty, CRASH, tmp_path=tmp_path)

    assert explored.verdict is Verdict.HELD, explored.all_findings


def test_assertions_of_a_check_are_findings(tmp_path: Path) -> None:
    """A check may simply assert: what fails is a violation, not a broken check."""
    explored = _explore(targets.CheckAsserts, CRASH, tmp_path=tmp_path)

    assert {found.signature for found in explored.discoveries} == {"assertion:the number is lost"}


def test_what_is_there_before_the_run_is_part_of_every_state(tmp_path: Path) -> None:
    """setup() makes the folder that runs, kills and states begin from."""
    explored = _explore(targets.WithSetup, tmp_path=tmp_path)

    assert explored.verdict is Verdict.HELD, explored.all_findings


def test_no_process_and_no_file_is_left(tmp_path: Path) -> None:
    """Whatever the check starts, and whatever the states are written to, is gone at the end."""
    before = {process.pid for process in tree.descendants(os.getpid())}
    base = tmp_path / "scratch"
    base.mkdir()
    launch(subject_of(targets.CheckLeavesProcess), Options(seed="s", families=(CRASH,), scratch=base))
    launch(subject_of(targets.LeavesDaemon), Options(seed="s", families=(CRASH,), scratch=base))

    assert {process.pid for process in tree.descendants(os.getpid()) if process.alive} <= before
    assert list(base.iterdir()) == []


# Limits


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"budget_s": 0.0}, "budget must be more than 0 s"),
        ({"jobs": 0}, "jobs must be 1 to 256; got 0"),
        ({"families": ()}, "families must name at least one of"),
        ({"run_timeout_s": 0.0}, "run-timeout must be more than 0 s"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    """A mistake is told in one sentence before anything runs."""
    with pytest.raises(UsageError, match=text):
        launch(subject_of(targets.Careful), Options(seed="s", scratch=tmp_path, **options))


@pytest.mark.parametrize(("target", "family"), [(targets.HangsOnError, IO), (targets.CheckWaits, CRASH)])
def test_a_budget_bounds_each_run_and_check(tmp_path: Path, target: type, family: Family) -> None:
    """What hangs is ended with the budget, long before its own time is over, and is no finding."""
    explored = _explore(target, family, tmp_path=tmp_path, budget_s=1.0, run_timeout_s=600, check_timeout_s=600)

    assert explored.verdict is Verdict.INCONCLUSIVE
    assert _signatures(explored) == {f"harness:incomplete:{family}"}
    assert not explored.families[0].is_complete


def test_a_budget_that_ends_leaves_the_exploration_inconclusive_and_resumable(tmp_path: Path) -> None:
    """What is not reached is told with what was; the next exploration does only the rest,
    and finds the same.
    """
    whole = _explore(targets.Careless, tmp_path=tmp_path / "whole")
    tmp_path.joinpath("parts").mkdir()
    part = _explore(targets.Careless, tmp_path=tmp_path / "parts", budget_s=0.02)

    assert part.verdict is not Verdict.HELD
    ended = [finding for finding in part.all_findings if finding.signature.startswith("harness:incomplete:")]
    assert re.match(r"crash: tried \d+ of \d+ crash points, and was ended: give a larger budget", ended[0].text)
    assert (tmp_path / "parts" / "progress.json").exists()
    rest = _explore(targets.Careless, tmp_path=tmp_path / "parts")
    assert rest.coverage == whole.coverage
    assert {found.code for found in rest.discoveries} == {found.code for found in whole.discoveries}


def test_an_interruption_keeps_what_was_found(tmp_path: Path) -> None:
    """Ctrl-C in the middle: a result with what there is, no process left,
    and a file to go on from.
    """
    before = {process.pid for process in tree.descendants(os.getpid())}

    def interrupt(progress: object) -> None:
        if getattr(progress, "family", "") == "power":
            raise KeyboardInterrupt

    explored = launch(
        subject_of(targets.Careless),
        Options(seed="s", families=(CRASH, POWER), progress=tmp_path / "progress.json"),
        listen=interrupt,
    )
    assert "harness:interrupted" in _signatures(explored)
    assert [(each.family, each.is_complete) for each in explored.families] == [(CRASH, True), (POWER, False)]
    assert "check:the file cannot be read" in _signatures(explored)
    assert {process.pid for process in tree.descendants(os.getpid()) if process.alive} <= before


def test_without_a_memory_file_system_it_goes_on_and_says_so(tmp_path: Path) -> None:
    """States on a disk take longer and show the same; a report notes it."""
    if is_memory(tmp_path):
        pytest.skip(f"{tmp_path} is on a memory file system, and so is every folder that this test could take")
    explored = launch(subject_of(targets.Careful), Options(seed="s", families=(CRASH,), scratch=tmp_path))

    assert explored.verdict is Verdict.HELD
    assert "not to memory" in explored.notes[-1]
    assert default_base().is_dir()


def test_a_folder_for_states_that_is_none_is_refused(tmp_path: Path) -> None:
    """A scratch folder has to be there."""
    with pytest.raises(UsageError, match="must be a folder that exists"):
        launch(subject_of(targets.Careful), Options(seed="s", scratch=tmp_path / "none"))


def test_too_little_room_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than 16 MiB for states is too little to begin with,
    and the user is told what to give.
    """
    monkeypatch.setattr("pytest_chaos.explore.explorer.ROOM_BYTES_MIN", 1 << 62)

    with pytest.raises(UsageError, match="free for states"):
        Explorer(subject_of(targets.Careful), step_source(), Options(seed="s"), tmp_path)


def test_a_disk_that_fills_up_is_told(tmp_path: Path) -> None:
    """Writing a state can fail for want of room: the exploration is INCONCLUSIVE,
    and says what to do.
    """

    class FullAfter(Explorer):
        def _explore(self) -> Any:
            raise OSError(28, "No space left on device")

    explored = FullAfter(subject_of(targets.Careful), step_source(), Options(seed="s"), tmp_path).explore()
    assert explored.verdict is Verdict.INCONCLUSIVE
    assert "there is no room for states" in explored.findings[0].text


def test_a_disk_that_is_full_for_the_recording_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recording lies elsewhere than the states: the fuller of the two is named,
    with what moves it.
    """

    class FullAfter(Explorer):
        def _explore(self) -> Any:
            raise OSError(28, "No space left on device")

    (full := tmp_path / "full").mkdir()
    free = {tmp_path: 1 << 40, full: 0}
    explorer = FullAfter(subject_of(targets.Careful), step_source(), Options(seed="s"), tmp_path, disk=full)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free[folder]))
    assert "for the recording" in explorer.explore().findings[0].text


# Without seccomp


class Announcing(targets.Careless):
    """Says what it is about to do, as a program may: an audit event of its own before each save."""

    name = "announcing"

    def save(self, directory: Path, number: int) -> None:
        """Truncate, announce, write: the event is where the file is empty."""
        with (directory / "state.json").open("w") as file:
            sys.audit("recovery.saving", number)
            file.write(f'{{"number": {number}}}')


def test_named_events_give_real_kills_where_nothing_can_be_recorded(tmp_path: Path) -> None:
    """The audit source finds by a kill what is between two of its events,
    and says what is out of its reach.
    """
    options = Options(seed="s", families=(CRASH, POWER, IO), source="audit", scratch=tmp_path)
    explored = launch(subject_of(Announcing), options)

    crash, power, _ = explored.families
    assert crash.verdict is Verdict.VIOLATED
    assert crash.coverage.endswith("named events")
    assert {found.label for found in crash.discoveries} == {CONFIRMED_BY_A_KILL}
    assert [finding.signature for finding in power.problems] == ["harness:needs-seccomp:power"]


class Prepared(targets.Careful):
    """Cannot run without what its setup wrote."""

    name = "prepared"

    def setup(self, directory: Path) -> None:
        """Write what the run needs."""
        (directory / "prepared").write_text("yes")

    def run(self, directory: Path, marks: Marks) -> None:
        """Read it, then do as ever."""
        assert (directory / "prepared").read_text() == "yes"
        super().run(directory, marks)


def test_each_run_at_named_events_begins_with_what_setup_wrote(tmp_path: Path) -> None:
    """A run that is killed or failed finds the same folder as the clean run."""
    explored = launch(subject_of(Prepared), Options(seed="s", families=(CRASH,), source="audit", scratch=tmp_path))
    assert explored.verdict is Verdict.HELD, explored.all_findings


def test_named_events_alone_are_no_pass_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without system calls to see a sound program is INCONCLUSIVE;
    who asks for events gets HELD.
    """
    options = Options(seed="s", families=(CRASH, IO))
    asked = launch(subject_of(targets.Careful), msgspec.structs.replace(options, source="audit"))
    monkeypatch.setattr("pytest_chaos.trace.seccomp.SeccompSource", _unknown_machine)
    fallen_back = launch(subject_of(targets.Careful), options)

    assert asked.verdict is Verdict.HELD, asked.all_findings
    assert fallen_back.verdict is Verdict.INCONCLUSIVE
    assert "harness:named-events-only" in _signatures(fallen_back)


def _unknown_machine(_files: object) -> None:
    message = "the system calls of this machine are not known"
    raise StepsUnavailable(message)
