"""Explorations on workers of Dask, as a user calls them; and clusters that cannot be had."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_chaos
from pytest_chaos.cli.main import main
from pytest_chaos.explore.cluster.engine import close_clusters, engine_of
from pytest_chaos.explore.cluster.wire import Asked, Drop, Hand, Ship
from pytest_chaos.explore.launch import launch
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.target import Subject, subject_of

from scenarios.targets.checkpoints import Checkpoints
from scenarios.whole.clusters import marked, told
from tests import waiting
from tests.harness.explore import explored as targets

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("distributed", reason="a cluster needs the extra: pip install 'pytest-chaos[cluster]'")

ROOT = Path(__file__).parents[4]
TARGET = "tests/harness/explore/explored.py:Careful"
TEST = """
    import pytest

    class Store:
        name = "store"

        def run(self, directory, marks):
            (directory / "file").write_text("one")
            marks.ack("put", 1)

        def check(self, directory, marks):
            if marks and not (directory / "file").exists():
                yield "lost"

    @pytest.mark.chaos(id="store", title="A store survives a kill")
    def test_store(explore):
        found = explore(Store, faults=["crash"])
        assert "states were judged by 1 worker of cluster local:1" in found.notes
"""


def called(*words: str) -> tuple[int, str]:
    """Call ``chaos explore`` in this repository; return its exit code and what it printed."""
    command = [sys.executable, "-c", "from pytest_chaos.cli.main import main; main()", "explore", *words]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    return found.returncode, found.stdout + found.stderr


@contextlib.contextmanager
def scheduler(environment: dict[str, str] | None = None, *, workers: int = 1) -> Iterator[str]:
    """Start a scheduler, and workers with more in their environment; yield its address."""
    python = [sys.executable, "-m"]
    begin = [*python, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    head = subprocess.Popen(begin, stderr=subprocess.PIPE, text=True)
    started: list[subprocess.Popen[Any]] = [head]
    try:
        assert head.stderr is not None
        lines = iter(head.stderr.readline, "")
        address = next(match[1] for line in lines if (match := re.search(r"Scheduler at:\s+(tcp://\S+)", line)))
        for _ in range(workers):
            command = [*python, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
            env = {**_clean_environment(), **(environment or {})}
            started.append(
                subprocess.Popen([*command, "--no-dashboard"], env=env, stderr=subprocess.DEVNULL, cwd="/tmp")
            )
        yield address
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()
        if head.stderr is not None:
            head.stderr.close()


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CHAOS_"))}


@pytest.mark.parametrize("address", ["local:0", "http://host:8786", "tcp://host"])
def test_an_address_that_says_nothing_is_a_mistake_in_the_call(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 3, one sentence, nothing explored."""
    with pytest.raises(SystemExit) as ended:
        main(["explore", f"{targets.__file__}:Careful", "--cluster", address, "--results", str(tmp_path)])
    assert ended.value.code == 3
    said = capsys.readouterr().err
    assert "cluster must be local:N or slurm:N with N from 1 to 1,024, slurm, or tcp://HOST:PORT" in said
    assert f"got {address!r}. Give local:2 to try it on this machine" in said


def test_a_scheduler_that_is_not_there_is_inconclusive(tmp_path: Path) -> None:
    """Exit 2, one sentence."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, said = called(TARGET, "--cluster", f"tcp://127.0.0.1:{port}", "--results", str(tmp_path))
    assert code == 2
    expected = (
        f"[harness:cluster-absent] cluster tcp://127.0.0.1:{port} must be a scheduler of Dask that answers within "
        "10 s; got: Connection refused. Start it (dask scheduler), or give another address; nothing was judged"
    )
    assert expected in said
    assert "Traceback" not in said


@pytest.mark.nightly
def test_a_session_of_pytest_explores_on_a_cluster(pytester: pytest.Pytester) -> None:
    """With one option; no warning of Dask becomes an error, and nothing is left."""
    pytester.makepyfile(test_store=textwrap.dedent(TEST))
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    mark = str(pytester.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAOS_TEST_CLUSTER", mark)
        found = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "--chaos-cluster=local:1")
    assert found.ret == 0
    found.stdout.fnmatch_lines(["*HELD store: 1 run*"])
    assert marked("CHAOS_TEST_CLUSTER", mark) == []


def test_a_wrong_option_of_pytest_is_told_before_anything_runs(pytester: pytest.Pytester) -> None:
    """Exit 4, as pytest has it for a mistake in the call."""
    pytester.makepyfile(test_store=textwrap.dedent(TEST))
    found = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "--chaos-cluster=local:0")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines(["*--chaos-cluster: cluster must be local:N*got 'local:0'*"])


@pytest.fixture(scope="module")
def local() -> Iterator[str]:
    """The address of a cluster of two that is started once."""
    yield "local:2"
    close_clusters()


def compared(target: object, folder: Path, cluster: str, **chosen: Any) -> tuple[object, object]:
    """Explore a target by our pool and by a cluster; return what is told of both."""
    subject: Subject = subject_of(target)
    found = [
        launch(subject, Options(seed="dask", kept=folder / (address or "ours"), jobs=2, cluster=address, **chosen))
        for address in ("", cluster)
    ]
    return told(found[0]), told(found[1])


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("target", "families"),
    [
        (targets.Careful, tuple(Family)),
        (targets.Careless, (Family.CRASH, Family.POWER)),
        (targets.Unsynced, (Family.POWER,)),
        (targets.BadRecovery, (Family.CRASH, Family.RECOVERY)),
        (targets.BadOnErrors, (Family.IO,)),
        (Checkpoints, (Family.CRASH, Family.POWER)),
    ],
)
def test_the_same_is_found_as_by_our_pool(
    target: type, families: tuple[Family, ...], local: str, tmp_path: Path
) -> None:
    """Verdicts, counts, findings and state codes, for the same seed."""
    ours, theirs = compared(target, tmp_path, local, families=families)
    assert theirs == ours


@pytest.mark.nightly
def test_a_scheduler_elsewhere_gets_the_target_with_its_sources(tmp_path: Path) -> None:
    """Its workers have another folder, and nothing of the target on their path."""
    with scheduler(workers=2) as address:
        ours, theirs = compared(targets.Unsynced, tmp_path, address, families=(Family.POWER,))
        close_clusters()
    assert theirs == ours


@pytest.mark.nightly
def test_a_worker_of_another_version_is_told(tmp_path: Path) -> None:
    """Its metadata say 9.9.9: exit 2, and nothing is judged."""
    other = tmp_path / "other"
    (other / "pytest_chaos-9.9.9.dist-info").mkdir(parents=True)
    (other / "pytest_chaos-9.9.9.dist-info" / "METADATA").write_text("Name: pytest-chaos\nVersion: 9.9.9\n")
    with scheduler({"PYTHONPATH": str(other)}) as address:
        code, said = called(TARGET, "--cluster", address, "--results", str(tmp_path))
    assert code == 2
    assert re.search(r"\[harness:cluster-version\] the worker \S+ of cluster \S+ must have pytest-chaos", said)
    assert "as here; got pytest-chaos 9.9.9. Install the same there" in said


@pytest.mark.nightly
def test_a_worker_with_other_code_refuses(tmp_path: Path) -> None:
    """The same number, and one line more: it does not judge, and says so."""
    copy = tmp_path / "copy"
    shutil.copytree(Path(pytest_chaos.__file__).parent, copy / "pytest_chaos")
    with (copy / "pytest_chaos" / "errors.py").open("a") as module:
        module.write("# another line\n")
    with scheduler({"PYTHONPATH": str(copy)}) as address:
        code, said = called(TARGET, "--cluster", address, "--results", str(tmp_path), "--faults", "crash")
    assert code == 2
    assert "[harness:cluster-refused] a worker has Python " in said


@pytest.mark.nightly
def test_a_port_that_is_no_scheduler_is_told_within_its_bound(tmp_path: Path) -> None:
    """It accepts, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        code, said = called(TARGET, "--cluster", address, "--results", str(tmp_path))
    assert code == 2
    assert f"cluster {address} does not answer as a scheduler of Dask" in said


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_a_session_that_is_ended(number: signal.Signals, pytester: pytest.Pytester) -> None:
    """Pytest is ended while its cluster judges."""
    slow = "        __import__('time').sleep(0.2)  # sleeps because the check has to be slow\n        if marks"
    pytester.makepyfile(test_store=textwrap.dedent(TEST).replace("        if marks", slow))
    mark = str(pytester.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAOS_TEST_CLUSTER", mark)
        session = pytester.popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--chaos-cluster=local:1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    bench = b"pytest_chaos.explore.cluster.bench"

    def judges() -> bool:
        return any(bench in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in marked("CHAOS_TEST_CLUSTER", mark))

    with contextlib.suppress(OSError):
        waiting.until(judges, "no bench was started")
    session.send_signal(number)
    session.wait()
    waiting.until(lambda: not marked("CHAOS_TEST_CLUSTER", mark), "processes of the cluster outlive the session")


@pytest.mark.nightly
def test_an_engine_of_a_closed_cluster_says_so() -> None:
    """A cluster's process that was ended is started anew for the next exploration."""
    first = engine_of("local:1")
    first.open()
    first.close()
    close_clusters()
    again = engine_of("local:1")
    again.open()
    assert again.workers == 1
    again.close()
    close_clusters()


@pytest.mark.nightly
def test_slurm_gets_a_job_script_for_each_worker() -> None:
    """As far as it can be tried without SLURM: the script that sbatch would get."""
    pytest.importorskip("dask_jobqueue", reason="workers of SLURM need it: pip install dask-jobqueue")
    script = (
        "from pytest_chaos.explore.cluster.address import read_address\n"
        "from pytest_chaos.explore.cluster.process import slurm_cluster\n"
        "print(slurm_cluster(read_address('slurm')._replace(workers=0), queue='short').job_script())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert "#SBATCH -J pytest-chaos" in done.stdout
    assert "#SBATCH -p short" in done.stdout
    assert "-m distributed.cli.dask_worker tcp://" in done.stdout


def test_messages_travel() -> None:
    """Each message is what it was."""
    for message in (Ship("a", b"1"), Hand(1, "a", b"2"), Drop((1, 2))):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Asked) == message
