"""``chaos explore`` and ``chaos init`` as a user meets them:
exit codes, what is printed, what is written.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.cli.explore import explore
from pytest_chaos.cli.init import target_text
from pytest_chaos.cli.main import run
from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.explore.launch import launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.plan import TIME_S_MAX
from pytest_chaos.runtime import processes as tree

from tests.harness.explore import explored
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_chaos.model.values import Finding, Mark

EXPLORED = str(Path(explored.__file__))
HELD, VIOLATED, INCONCLUSIVE, MISTAKE = range(4)
PROGRESS = "chaos-results/explore/unsynced-*/progress-*.json"
TARGET = """
class Target:
    name = "mine"

    def run(self, directory, marks):
        (directory / "state.json").write_text("{{}}")

    def check(self, directory, marks):
        path = directory / "state.json"
        return ["{error}"] if path.exists() and not path.read_text() else []
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)


def _explore(target: str, *arguments: str) -> int:
    return run(["explore", f"{EXPLORED}:{target}", "--seed", "cli", *arguments])


def test_a_sound_target_exits_0_and_tells_its_coverage(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line is the verdict with the coverage in numbers and the seed."""
    assert _explore("Careful", "--jobs", "2", "--budget", "60s") == HELD

    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("HELD: 10 of 10 crash points, ")
    assert "power-loss states" in last
    assert "seed cli" in last


def test_a_sample_is_called_one_on_the_terminal_and_in_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who asks for fewer recoveries and I/O errors than there are reads how many there would be."""
    arguments = ("--faults", "recovery,io", "--recoveries", "2", "--io-runs", "3", "--json", "out.json")
    assert _explore("Careful", *arguments) == HELD

    out = capsys.readouterr().out
    families = json.loads((tmp_path / "out.json").read_text())["families"]
    assert families["io"]["coverage"] == f"3 of {families['io']['points_total']} I/O errors (sampled)"
    assert "2 of 7 recoveries (sampled)" in families["recovery"]["coverage"]
    assert all(family["sampled"] and family["coverage"] in out.splitlines()[-1] for family in families.values())
    assert out.count("(sampled)") == 4  # in the table, which may break its lines, and in the last line


def test_a_violated_target_exits_1_and_its_state_can_be_seen_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed names a command that shows the finding again;
    the JSON holds what the contract says.
    """
    assert _explore("Careless", "--faults", "crash,power", "--model", "ext4", "--json", "out.json") == VIOLATED
    out = capsys.readouterr().out
    assert "confirmed by a real kill" in out
    assert f"chaos explore {EXPLORED}:Careless --seed cli --state 'crash:2'" in out
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written["families"]) == {"crash", "power"}
    assert {found["model"] for found in written["families"]["power"]["findings"]} == {"ext4"}

    assert _explore("Careless", "--state", "crash:2") == VIOLATED
    assert "[check:the file cannot be read]" in capsys.readouterr().out
    assert (tmp_path / "chaos-results/explore/state/directory/state.json").read_bytes() == b""


def test_an_undecided_target_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    """A program that makes no durable step is told so."""
    assert _explore("Idle") == INCONCLUSIVE

    assert "[harness:no-steps]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "0s"], "budget must be more than 0 s"),
        (["--budget", "soon"], "a time must read 60s, 5m or 1h"),
        (["--faults", "crash,flood"], "got flood"),
        (["--jobs", "0"], "jobs must be 1 to 256; got 0"),
        (["--jobs", "100000"], "jobs must be 1 to 256; got 100000"),
        (["--samples", "0"], "samples must be at least 1, and 1,000,000,000 at most; got 0"),
        (["--recoveries", "0"], "recoveries must be at least 1, and 1,000,000,000 at most; got 0"),
        (["--io-runs", "0"], "io-runs must be at least 1, and 1,000,000,000 at most; got 0"),
        (["--model", "ntfs"], "ntfs"),
        (["--state", "flood:1"], "must begin with one of crash"),
        (["--state", "crash:999"], "must name a state of careful"),
        (["--state", "io:999:EIO"], "must name an I/O error"),
        (["--scratch", "no/such/folder"], "must be a folder that exists"),
        (["--scratch", "/proc"], "with --scratch"),
        (["--json", "no/such/folder/out.json"], "--json must be a file that can be written"),
        (["--run", "true"], "--drive and --check; got several"),
    ],
)
def test_mistakes_exit_3_with_a_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be meant is told on standard error, without a traceback."""
    assert _explore("Careful", "--faults", "crash", *arguments) == MISTAKE

    out, error = capsys.readouterr()
    assert said in error
    assert "HELD" not in out  # a mistake is told before the work, and not after it
    assert "Traceback" not in error


NUMBERS = sorted(
    option.opts[0] for option in explore.params if option.type.name in {"integer", "duration"} and option.opts
)


@pytest.mark.parametrize("value", ["1e20", "nan", "inf", "-1", "9" * 20, "9" * 4000, "True", "0.5e", "²"])
def test_a_number_beyond_all_bounds_is_a_mistake(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option that takes a number or a time has a bound, and says so before the work."""
    assert len(NUMBERS) == 10
    for option in NUMBERS:
        assert _explore("Careful", f"{option}={value}") == MISTAKE, option

        out, error = capsys.readouterr()
        assert option.removeprefix("--") in error
        assert len(error.splitlines()) <= 5  # a bad word comes with the usage
        assert "Traceback" not in error
        assert out == ""


@pytest.mark.parametrize("target", [("--run", "touch a", "--check", "test -e ."), (f"{EXPLORED}:Careful",)])
def test_the_longest_times_are_times(target: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """A limit of eleven days is one that the kernel takes, of a command and of a function."""
    times = [f"{option}={TIME_S_MAX:.0f}" for option in ("--run-timeout", "--check-timeout", "--budget")]
    assert run(["explore", *target, "--faults=crash", *times]) == HELD, capsys.readouterr()


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e20, -1, 0, 10**4000, True, "1"], ids="abcdefgh")
def test_options_in_python_have_the_same_bounds(value: float) -> None:
    """The fixture ``explore`` takes numbers: all that are wrong are told in one error."""
    names = ("jobs", "samples", "recoveries", "io_runs", "budget_s", "run_timeout_s", "check_timeout_s")
    with pytest.raises(UsageError) as refused:
        Options(seed="s", **dict.fromkeys(names, value))  # type: ignore[arg-type] # that is the point
    assert str(refused.value).count(" must be ") == len(names)


def test_a_target_whose_name_raises_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """A property that raises is the user's, and told in a sentence:
    no error of ours, and no traceback.
    """
    assert run(["explore", f"{__file__}:Nameless"]) == MISTAKE

    out, error = capsys.readouterr()
    assert "the name of the target Nameless must be readable; got RuntimeError: no configuration" in error
    assert "Traceback" not in out + error


def test_targets_of_one_name_and_seed_keep_their_states_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is kept of one is not written over by the other,
    and each is seen again by what was printed of it.
    """
    printed: list[str] = []
    for place, error in (("one", "unreadable here"), ("two", "unreadable there")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(TARGET.format(error=error))
        assert run(["explore", f"{place}/mine.py", "--seed", "s", "--faults", "crash"]) == VIOLATED
        printed.append(capsys.readouterr().out)

    states = [text.partition("the state: ")[2].partition("\n")[0] for text in printed]
    assert states[0] != states[1]
    for state, text, error in zip(states, printed, ("unreadable here", "unreadable there"), strict=True):
        assert (tmp_path / state / "directory" / "state.json").read_bytes() == b""
        assert error in (tmp_path / state).with_suffix(".txt").read_text()
        assert run(shlex.split(text.partition("again: chaos ")[2].partition("\n")[0])) == VIOLATED
        assert error in capsys.readouterr().out

    assert run(["explore", f"{tmp_path}/one/mine.py:Target", "--seed", "s", "--faults", "crash"]) == VIOLATED
    assert len(list((tmp_path / "chaos-results" / "explore").glob("mine-*"))) == 2  # it is the first, named otherwise


def test_a_seed_of_any_letters_stays_in_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A seed is any printable text: its states lie in the folder of the results,
    and its command can be pasted.
    """
    seed = "../../../o'clock"
    before = set(tmp_path.iterdir()) | {tmp_path / "chaos-results"}
    assert run(["explore", f"{EXPLORED}:Careless", "--seed", seed, "--faults", "crash"]) == VIOLATED

    command = capsys.readouterr().out.partition("again: chaos ")[2].partition("\n")[0]
    assert run(shlex.split(command)) == VIOLATED
    assert set(tmp_path.iterdir()) == before
    assert all("states-" in str(path) for path in tmp_path.rglob("crash-*"))


def test_commands_of_any_language_are_explored(capsys: pytest.CaptureFixture[str]) -> None:
    """--run and --check are enough; marks are lines of a file that the program writes itself."""
    program = f"{sys.executable} {EXPLORED}"
    code = run(["explore", "--run", f"{program} run", "--check", f"{program} check", "--faults", "crash,power"])

    out = capsys.readouterr().out
    assert code == VIOLATED
    assert "lost 1" in out
    assert "crash points" in out


def test_what_every_family_says_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A check that raises leaves all families undecided for one reason, which is one line."""
    assert _explore("CheckRaises", "--faults", "crash,power,io") == INCONCLUSIVE

    assert capsys.readouterr().out.count("[harness:check-raised:KeyError]") == 1


def test_a_check_command_that_fails_is_inconclusive(capsys: pytest.CaptureFixture[str]) -> None:
    """An exit of neither 0 nor 1 decides nothing."""
    program = f"{sys.executable} {EXPLORED}"
    code = run(["explore", "--run", f"{program} run", "--check", f"{program} 7", "--faults", "crash"])

    assert code == INCONCLUSIVE
    assert "the check command ended with exit code 7" in capsys.readouterr().out


def test_init_writes_a_target_and_explores_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The example is violated, as most programs are; a file that is there already is left alone."""
    assert run(["init", "--seed", "s"]) == VIOLATED
    out = capsys.readouterr().out
    assert "wrote chaos_target.py" in out
    assert "of 10 crash points" in out
    assert run(["init"]) == MISTAKE
    assert run(["init", "--file", "none.py", "--", "no-such-program"]) == MISTAKE
    assert not Path("none.py").exists()
    assert "which exists already" in capsys.readouterr().err


def test_init_takes_the_users_own_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A program with arguments becomes the run of the target;
    its files are looked at in a way that fits any.
    """
    (tmp_path / "mine.py").write_text("import pathlib; pathlib.Path('data.json').write_text('{\"a\": 1}')")

    assert run(["init", "--file", "own.py", "--seed", "s", "--", sys.executable, "mine.py"]) == VIOLATED
    assert "data.json is no JSON any more" in capsys.readouterr().out
    assert str(tmp_path / "mine.py") in (tmp_path / "own.py").read_text()
    assert run(["init", "--file", "other.py", "--no-run"]) == HELD


@pytest.mark.parametrize("command", [(), ("python", "-m", "mine")])
def test_what_init_writes_is_python(command: tuple[str, ...]) -> None:
    """The target compiles, and its name is the command's."""
    text = target_text("chaos_target.py", command)

    compile(text, "chaos_target.py", "exec")
    assert "def check(self, directory, marks)" in text


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("python3.11", "mine.py", "milk"), "mine.py"),
        (("python", "-m", "mine"), "mine"),
        (("sh", "-c", "echo"), "sh"),
        (("/bin/cp", "mine.py", "b"), "cp"),
    ],
)
def test_a_target_is_named_like_the_program_and_not_its_interpreter(
    tmp_path: Path, command: tuple[str, ...], name: str
) -> None:
    """The first sentence of a page is about the program."""
    (tmp_path / "mine.py").write_text("")
    assert f"    name = {name!r}\n" in target_text("chaos_target.py", command)


class Nameless:
    """Has a name only where there is a configuration."""

    run = check = print

    @property
    def name(self) -> str:
        """Fail."""
        msg = "no configuration"
        raise RuntimeError(msg)


class HangsWhenLost(explored.Unsynced):
    """Its check waits for ever for what a power loss has taken, and for nothing else."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Wait for it to come back."""
        if list(super().check(directory, marks)):
            signal.pause()
        return ()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_with_what_it_has_and_it_can_go_on(tmp_path: Path, number: signal.Signals) -> None:
    """A signal in the middle of an exploration: exit 2 (or 1 with findings), no process left,
    a file to go on from.
    """
    code = (
        "import sys; from pytest_chaos.cli.main import main; "
        f"main(['explore', {__file__ + ':HangsWhenLost'!r}, '--seed', 's', '--scratch', {str(tmp_path / 'scratch')!r},"
        "'--check-timeout', '10m'])"  # the second family hangs for longer than anybody waits: it is in the middle
    )
    (tmp_path / "scratch").mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(PROGRESS)) and process.poll() is None:
            pass
        process.send_signal(number)
        out, _ = process.communicate(timeout=120)

    assert process.returncode == INCONCLUSIVE, out
    assert "[harness:interrupted]" in out
    assert list(tmp_path.glob(PROGRESS))
    assert list((tmp_path / "scratch").iterdir()) == []


def _begin_and_kill(scratch: Path, number: signal.Signals, *, guardians: slice = slice(0)) -> list[tree.Process]:
    """Explore what leaves a daemon at once, kill the command once the daemon is there,
    and return all its processes.
    """
    scratch.mkdir()
    arguments = ["explore", f"{EXPLORED}:LeavesDaemonAndWaits", "--scratch", str(scratch)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    code = f"from pytest_chaos.cli.main import main; main({arguments!r})"
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        until(lambda: list(scratch.glob("*/session-*/clean/daemon.pid")))
        family = tree.descendants(process.pid)
        for each in family[guardians]:  # the only child of the command, which stands in, and its only child
            tree.end(each)
        process.send_signal(number)
    return family


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_exploration_leaves_no_process_and_no_file(tmp_path: Path, number: signal.Signals) -> None:
    """Whatever kills the command, its guardian ends the workers, the target and its daemons,
    and removes the folder.
    """
    scratch = tmp_path / "scratch"
    family = _begin_and_kill(scratch, number)
    assert len(family) >= 5, family  # the stand-in, the guardian, the explorer, the target and its daemon

    _wait_for_the_end_of(family)
    assert list(scratch.iterdir()) == []


def test_a_killed_exploration_and_guardian_leave_no_process_and_no_file(tmp_path: Path) -> None:
    """Where the guardian is killed with the command,
    the process that stands in for it does the same.
    """
    scratch = tmp_path / "scratch"
    family = _begin_and_kill(scratch, signal.SIGKILL, guardians=slice(1, 2))

    _wait_for_the_end_of(family)
    assert list(scratch.iterdir()) == []


def test_what_killed_guardians_leave_is_swept_by_the_next(tmp_path: Path) -> None:
    """When the guardian and its stand-in are killed with the command,
    the next exploration removes the rest.
    """
    scratch = tmp_path / "scratch"
    family = _begin_and_kill(scratch, signal.SIGKILL, guardians=slice(2))
    _wait_for_the_end_of(family[:3])  # of the two, and of the explorer, which dies with the guardian
    launch(subject_of(explored.Careful), Options(seed="s", families=(Family.CRASH,), scratch=scratch))

    _wait_for_the_end_of(family)
    assert list(scratch.iterdir()) == []


def _wait_for_the_end_of(family: list[tree.Process]) -> None:
    until(lambda: not _alive(family))


def _alive(family: list[tree.Process]) -> list[tree.Process]:
    return [each for each in family if tree.is_running(each.pid, each.start_ticks)]


def test_where_steps_cannot_be_seen_it_is_inconclusive(tmp_path: Path) -> None:
    """A program that is watched already can have no second supervisor:
    as in a container without seccomp, exit 2.
    """
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arguments = ["explore", f"{EXPLORED}:Careful", "--scratch", str(scratch)]
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r}); from pytest_chaos.cli.main import main; "
    )
    program = [sys.executable, "-c", f"{code} main({arguments!r})"]
    seen = step_source().observe(program, tmp_path, marks=tmp_path.with_name("marks"), timeout_s=60)

    assert seen.exit_code == INCONCLUSIVE, seen.output
    assert "[harness:named-events-only]" in seen.output
    assert "steps cannot be counted by seccomp here" in seen.output
    assert "Traceback" not in seen.output
    assert list(scratch.iterdir()) == []


def test_the_doctor_believes_no_list_where_the_filter_is_refused(tmp_path: Path) -> None:
    """The kernel lists what it can do, and a container refuses it all the same:
    the doctor tries.
    """
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r}); from pytest_chaos.cli import doctor; "
    program = [sys.executable, "-c", f"{code} (tmp := open('kept', 'w')).write(doctor._seccomp().status)"]
    seen = step_source().observe(program, tmp_path, marks=tmp_path.with_name("marks"), timeout_s=60)

    assert seen.exit_code == 0, seen.output
    assert (tmp_path / "kept").read_text() == "missing"


def test_a_command_needs_seccomp(capsys: pytest.CaptureFixture[str]) -> None:
    """Audit events are Python's own: of a command none are seen, which is told,
    and not that it did nothing.
    """
    assert run(["explore", "--run", "true", "--check", "true", "--source", "audit"]) == INCONCLUSIVE

    assert "to see its steps takes seccomp" in capsys.readouterr().out
