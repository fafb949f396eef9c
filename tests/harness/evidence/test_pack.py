"""Packs are made of real journals and real SQLite files, in whatever condition a crash left them.

It is long because each such condition is a test of its own, and all are built from one journal.
"""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from pytest_chaos.errors import EvidenceError
from pytest_chaos.evidence import dump_failure_evidence, open_pack, salvage, verify, write
from pytest_chaos.evidence.limits import DEFAULT
from pytest_chaos.evidence.redact import MASK, SECRETS
from pytest_chaos.model.values import (
    AfterMark,
    AgentSummary,
    Assertion,
    Fault,
    Finding,
    Mark,
    MarkKind,
    Plan,
    Receipt,
    RunRecord,
    Scenario,
    Verdict,
)
from pytest_chaos.runtime import owner
from pytest_chaos.runtime.journal import AgentStarted, Journal, RunHeader

if TYPE_CHECKING:
    from collections.abc import Iterator

SCENARIO = Scenario(id="01-kill-9", title="A kill loses nothing", steps=("write", "kill"))
PLAN = Plan(
    seed="0x5eed",
    scenario="01-kill-9",
    faults=(Fault(kind="kill", agent="writer", when=AfterMark(kind=MarkKind.ACK, operation="put", count=3)),),
)
NODE_ID = "scenarios/test_kill.py::test_kill[at-commit]"


def header(tmp_path: Path) -> RunHeader:
    """The header of a run whose session lives below ``tmp_path``."""
    return RunHeader(
        run_id="run-1", node_id=NODE_ID, scenario=SCENARIO, seed="0x5eed", plan=PLAN, root=str(tmp_path),
        session_folder=str(tmp_path / "session"), reproduce=f"pytest '{NODE_ID}' --chaos-seed 0x5eed",
    )  # fmt: skip


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal as it is right after the run began."""
    made = Journal(tmp_path / "journal")
    made.create(header(tmp_path))
    return made


def add_marks(journal: Journal, *marks: Mark) -> None:
    """Append marks as an agent does."""
    with journal.marks_path.open("ab") as stream:
        stream.writelines(b"\n" + msgspec.json.encode(mark) + b"\n" for mark in marks)


def make_database(path: Path, *statements: str) -> Path:
    """Make a database by these statements, all closed again."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in ("CREATE TABLE t (x)", "INSERT INTO t VALUES (1), (2)", *statements):
            connection.execute(statement)
    return path


def rows(pack: Path, sql: str) -> list[tuple[object, ...]]:
    """Ask a pack's index."""
    with closing(sqlite3.connect(f"file:{pack / 'evidence.sqlite'}?mode=ro&immutable=1", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def full_journal(journal: Journal) -> Journal:
    """Fill a journal with one of everything."""
    add_marks(
        journal,
        Mark(kind=MarkKind.INTENT, operation="put", key=1, agent="writer", pid=11),
        Mark(kind=MarkKind.ACK, operation="put", key=1, value={"bytes": 10}, agent="writer", pid=11),
        Mark(kind=MarkKind.NOTE, operation="pragmas", key="007", agent="writer", pid=11),
    )
    journal.add_receipt(
        Receipt(kind="kill", agent="writer", when="after put", fired=True, evidence="signal 9", fault=0, order=2)
    )
    journal.add_agent(AgentStarted(name="writer", pid=11, command="targets:writer", kwargs={"n": 3}))
    journal.add_agent(
        AgentSummary(name="writer", target="targets:writer", pid=11, exit_status="signal 9", duration_s=0.5)
    )
    (journal.output_folder / "writer.log").write_text("first line\nsecond line\n")
    make_database(journal.work_folder / "store.db")
    finding = Finding(signature="durability.lost", text="put 1 was acknowledged and is gone", orders=(1,))
    journal.write_failure("AssertionError: lost")
    journal.write_record(
        RunRecord(
            scenario=SCENARIO, node_id=NODE_ID, run_id="run-1", seed="0x5eed", verdict=Verdict.VIOLATED, plan=PLAN,
            findings=(finding,), assertions=(Assertion(name="none lost", observed="1 lost", holds=False),),
            duration_s=1.5,
        )
    )  # fmt: skip
    return journal


def test_a_pack_says_all_that_the_journal_said(journal: Journal, tmp_path: Path) -> None:
    """Run, plan, receipts, findings, assertions, marks, agents,
    logs and failure come back out of a pack.
    """
    path = write(full_journal(journal).folder, tmp_path / "pack", queries={"rows": "SELECT count(*) AS n FROM t"})
    assert verify(path) == []
    pack = open_pack(path)
    assert (pack.run_id, pack.node_id, pack.seed, pack.scenario) == ("run-1", NODE_ID, "0x5eed", SCENARIO)
    assert (pack.plan, pack.verdict) == (PLAN, Verdict.VIOLATED)
    assert pack.receipts == journal.receipts()
    assert [finding.signature for finding in pack.findings] == ["durability.lost"]
    assert pack.findings[0].orders == (1,)
    assert pack.assertions == (Assertion(name="none lost", observed="1 lost", holds=False),)
    assert pack.marks == journal.history().marks
    assert (pack.agents[0]["exit_status"], pack.agents[0]["command"]) == ("signal 9", "targets:writer")
    assert pack.answers[0]["rows"] == '[{"n":2}]'
    assert pack.databases[0]["integrity_check"] == "ok"
    assert pack.problems == ()
    assert rows(path, "SELECT line, text FROM log_lines") == [(1, "first line"), (2, "second line")]
    assert "AssertionError: lost" in (path / "failure.txt").read_text()
    assert f"pytest '{NODE_ID}' --chaos-seed 0x5eed" in (path / "failure.txt").read_text()
    assert "ended: process 11, signal 9" in (path / "agents/writer.log").read_text()


def test_the_copies_are_byte_exact_and_a_hot_journal_stays_hot(journal: Journal, tmp_path: Path) -> None:
    """A rollback journal that a crash left is copied as it lies,
    and rolled back only in the scratch copy.
    """
    path = make_database(journal.work_folder / "store.db")
    killed = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA cache_size=1'); c.execute('BEGIN'); c.execute(\"INSERT INTO t WITH RECURSIVE n(i) AS ("
        "SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000)"
        " SELECT printf('%.100c', 'x') FROM n\"); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", killed, str(path)], check=False).returncode == -9
    before = {file.name: file.read_bytes() for file in journal.work_folder.iterdir()}
    assert set(before) == {"store.db", "store.db-journal"}
    pack = write(journal.folder, tmp_path / "pack")
    assert {file.name: file.read_bytes() for file in (pack / "database/store.db").iterdir()} == before
    assert {file.name: file.read_bytes() for file in journal.work_folder.iterdir()} == before
    assert rows(pack, "SELECT row_count FROM table_counts") == [(2,)]
    assert rows(pack, "SELECT integrity_check FROM databases") == [("ok",)]


@pytest.fixture
def killed_wal(journal: Journal) -> Path:
    """A database in WAL mode whose writer was killed: its rows are still in the log."""
    path = journal.work_folder / "store.db"
    script = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA journal_mode=WAL'); c.execute('PRAGMA wal_autocheckpoint=0');"
        "c.execute('CREATE TABLE t (x)'); c.execute('INSERT INTO t VALUES (42)');"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert path.with_name("store.db-wal").stat().st_size > 0
    return path


def test_rows_that_are_still_in_the_log_are_read(journal: Journal, killed_wal: Path, tmp_path: Path) -> None:
    """The scratch copy takes the write-ahead log along, and the copies keep it."""
    pack = write(journal.folder, tmp_path / "pack")
    assert rows(pack, "SELECT row FROM table_rows") == [('{"x":42}',)]
    assert rows(pack, "SELECT journal_mode, wal_frames > 0 FROM databases") == [("wal", 1)]
    copied = {file.name for file in (pack / "database/store.db").iterdir()}
    assert copied == {"store.db", "store.db-wal", "store.db-shm"}
    assert (pack / "database/store.db/store.db-wal").read_bytes() == killed_wal.with_name("store.db-wal").read_bytes()


def test_a_missing_log_is_seen_as_what_is_left(journal: Journal, killed_wal: Path, tmp_path: Path) -> None:
    """Without its log the database still opens, in WAL mode, and lacks what was in it."""
    killed_wal.with_name("store.db-wal").unlink()
    pack = write(journal.folder, tmp_path / "pack")
    assert rows(pack, "SELECT row FROM table_rows") == []
    files = rows(pack, "SELECT suffix FROM database_files ORDER BY suffix")
    assert ("-wal",) not in files


@pytest.mark.parametrize("empty", [True, False])
def test_a_log_without_its_database_is_found(
    journal: Journal, killed_wal: Path, tmp_path: Path, *, empty: bool
) -> None:
    """A log beside an empty file, or beside none, is evidence of a database that lost everything
    else.
    """
    killed_wal.write_bytes(b"")
    if not empty:
        killed_wal.unlink()
    pack = write(journal.folder, tmp_path / "pack")
    assert (pack / "database/store.db/store.db-wal").stat().st_size > 0
    assert ("the database file is missing, only its side files are there",) in rows(
        pack, "SELECT text FROM problems"
    ) or empty
    (error,) = rows(pack, "SELECT header_error FROM databases")
    assert "empty" in str(error[0])


@pytest.mark.parametrize("damage", ["corrupt", "truncated", "rubbish", "unreadable"])
def test_one_broken_database_stops_nothing(journal: Journal, tmp_path: Path, damage: str) -> None:
    """Whatever is wrong with one file is told of that file;
    the other one and the run are all there.
    """
    full_journal(journal)
    broken = make_database(journal.work_folder / "broken.sqlite", "INSERT INTO t SELECT zeroblob(100000)")
    content = broken.read_bytes()
    if damage == "corrupt":
        broken.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    elif damage == "truncated":
        broken.write_bytes(content[:5000])
    elif damage == "rubbish":
        broken.write_bytes(b"not a database at all" * 100)
    else:
        broken.unlink()
        broken = Path("/proc/self/mem")  # reading it from its start fails, for root too
        journal.add_database(broken)
    path = write(journal.folder, tmp_path / "pack")
    assert verify(path) == []
    pack = open_pack(path)
    good = [row for row in pack.databases if row["name"] == "store.db"]
    assert good[0]["integrity_check"] == "ok"
    (told,) = [row for row in pack.databases if row["name"] == broken.name]
    assert told["error"] or told["integrity_check"] != "ok"
    assert damage != "unreadable" or [row for row in pack.problems if "/mem" in str(row["part"])]
    assert len(pack.marks) == 3


def test_a_database_that_another_process_has_locked_is_copied(journal: Journal, tmp_path: Path) -> None:
    """An exclusive lock of somebody else keeps nobody from copying, and is named."""
    path = make_database(journal.work_folder / "store.db")
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN EXCLUSIVE');"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert select.select([holder.stdout], [], [], 30)[0]
        assert holder.stdout.readline() == b"locked\n"
        pack = write(journal.folder, tmp_path / "pack")
        holder.stdin.close()
    assert rows(pack, "SELECT row_count FROM table_counts") == [(2,)]
    if Path("/proc/locks").exists():
        assert f"WRITE {holder.pid}" in str(rows(pack, "SELECT locks FROM database_files WHERE suffix = ''"))


def test_a_lock_of_this_process_survives_the_copy(journal: Journal, tmp_path: Path) -> None:
    """Closing any descriptor drops a process's POSIX locks,
    so evidence taken in a transaction must not close one.
    """
    path = make_database(journal.work_folder / "store.db")
    other = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None);\n"
        "try: c.execute('BEGIN IMMEDIATE'); print('free')\nexcept sqlite3.OperationalError as e: print(e)"
    )

    def seen_by_another() -> str:
        command = [sys.executable, "-c", other, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert seen_by_another() == "database is locked"
        write(journal.folder, tmp_path / "pack")
        assert seen_by_another() == "database is locked"
    write(journal.folder, tmp_path / "pack-2")
    assert seen_by_another() == "free"
    assert not [name for name in os.listdir("/dev/fd") if _leads_to(name, path)]


def _leads_to(descriptor: str, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(int(descriptor)), path.stat())
    except OSError:
        return False


def test_a_database_over_the_limit_is_described_not_copied(journal: Journal, tmp_path: Path) -> None:
    """A huge file costs the pack nothing but a line that says so; its header is still read."""
    path = make_database(journal.work_folder / "store.db")
    os.truncate(path, 300 * 1024 * 1024)
    pack = write(journal.folder, tmp_path / "pack")
    assert not (pack / "database/store.db").exists()
    assert rows(pack, "SELECT copied, page_size_bytes, error FROM databases") == [
        (0, 4096, "not copied, so not opened")
    ]
    assert rows(pack, "SELECT kind, part FROM problems") == [("cut", "store.db")]


def test_two_databases_of_one_name_are_kept_apart(journal: Journal, tmp_path: Path) -> None:
    """Names in the pack are unique and harmless, whatever the files were called;
    the paths are kept.
    """
    for folder in ("a", "b"):
        (journal.work_folder / folder).mkdir()
        make_database(journal.work_folder / folder / "x y;$.db")
    named = make_database(tmp_path / "outside.db")
    journal.add_database(named)
    journal.add_database(tmp_path / "missing.db")
    strange = os.fsdecode(os.fsencode(journal.work_folder) + b"/\xff\xfe.db")
    make_database(journal.work_folder / "plain").rename(strange)
    pack = write(journal.folder, tmp_path / "pack")
    names = {str(name) for (name,) in rows(pack, "SELECT name FROM databases")}
    assert {"outside.db", "x_y__.db", "x_y__.db.2"} < names
    assert len(names) == 4
    assert all(name.isascii() and "/" not in name for name in names)
    assert ("the test named this database, but there is no such file",) in rows(pack, "SELECT text FROM problems")
    assert verify(pack) == []


def test_pipes_and_links_under_work_are_passed_by(journal: Journal, tmp_path: Path) -> None:
    """A pipe would block a reader, a link may lead anywhere: neither is a database of the run."""
    os.mkfifo(journal.work_folder / "pipe.db")
    make_database(tmp_path / "elsewhere.db")
    (journal.work_folder / "link.db").symlink_to(tmp_path / "elsewhere.db")
    (journal.work_folder / "loop").symlink_to(journal.work_folder)
    pack = write(journal.folder, tmp_path / "pack")
    assert rows(pack, "SELECT name FROM databases") == []


def test_a_torn_journal_gives_a_pack_and_says_what_is_torn(journal: Journal, tmp_path: Path) -> None:
    """Half a line in each of the journal's files becomes a problem; what was whole is there;
    the run is undecided.
    """
    full_journal(journal)
    for name in ("marks.jsonl", "receipts.jsonl", "agents.jsonl", "databases.jsonl"):
        with (journal.folder / name).open("ab") as stream:
            stream.write(b'\n{"kind": "ack", "opera\xff')
    (journal.folder / "record.json").write_bytes(b'{"scenario": {')
    pack = open_pack(write(journal.folder, tmp_path / "pack", outcome="the controller was killed"))
    assert (pack.verdict, len(pack.marks), len(pack.receipts)) == (Verdict.INCONCLUSIVE, 3, 1)
    parts = " ".join(str(row["part"]) for row in pack.problems)
    assert all(name in parts for name in ("receipts.jsonl", "agents.jsonl", "databases.jsonl", "record.json"))
    assert rows(pack.path, 'SELECT "order" FROM torn_lines') == [(3,)]
    assert pack.failure.startswith("the controller was killed")


def test_output_marks_and_lines_are_bounded_and_each_cut_is_named(journal: Journal, tmp_path: Path) -> None:
    """The newest marks and lines are kept, a long value is cut, and the pack names every cut."""
    full_journal(journal)
    add_marks(
        journal, *(Mark(kind=MarkKind.NOTE, operation="n", key=n, value="v" * 500, agent="a", pid=1) for n in range(20))
    )
    (journal.output_folder / "writer.log").write_text("".join(f"line {number}\n" for number in range(5000)))
    limits = msgspec.structs.replace(
        DEFAULT,
        marks_max=10,
        value_length_max=100,
        log_bytes_max=4000,
        log_lines_max=50,
        rows_bytes_max=3,
        failure_length_max=4,
    )
    path = write(journal.folder, tmp_path / "pack", limits=limits)
    pack = open_pack(path)
    assert [mark.order for mark in pack.marks] == list(range(13, 23))
    assert all(len(str(mark.value)) == 100 for mark in pack.marks)
    log = (path / "agents/writer.log").read_text()
    assert len(log) < 4500
    assert log.rstrip().endswith("line 4999")
    assert "line 0\n" in log
    assert "[cut:" in log
    assert rows(path, "SELECT count(*) FROM log_lines") == [(50,)]
    assert pack.failure == "lost"
    assert {"marks.jsonl", "agents/writer.log", "log_lines of writer", "store.db", "failure.txt"} <= {
        str(row["part"]) for row in pack.problems if row["kind"] == "cut"
    }


@pytest.fixture
def secret() -> Iterator[str]:
    """A value that an agent was given in its environment."""
    value = "s3cr3t-of-this-test"
    SECRETS.add(value)
    yield value
    SECRETS._values.discard(value)


def test_no_text_of_a_pack_holds_a_secret_but_the_copies_do(journal: Journal, tmp_path: Path, secret: str) -> None:
    """Logs, marks, failure, commands and rows are redacted;
    the byte-exact copy is not, and the manifest says so.
    """
    full_journal(journal)
    journal.write_header(msgspec.structs.replace(header(tmp_path), command=f"pytest --token={secret}"))
    journal.write_failure(f"could not log in with {secret}")
    journal.add_agent(AgentStarted(name="writer", pid=12, command=f"run --with {secret}", kwargs={"key": secret}))
    journal.add_receipt(Receipt(kind="kill", agent="writer", when="now", fired=True, evidence=f"saw {secret}"))
    (journal.output_folder / "writer.log").write_text(f"using {secret}\npostgres://u:{secret}@h/d\n")
    add_marks(journal, Mark(kind=MarkKind.NOTE, operation="login", value={"with": [secret]}, agent="writer", pid=12))
    make_database(journal.work_folder / "secret.db", "INSERT INTO t VALUES ('s3cr3t-of-this-test')")
    pack = write(journal.folder, tmp_path / "pack", queries={"q": "SELECT x, 's3cr3t-of-this-test' FROM t"})
    holding = {
        str(path.relative_to(pack))
        for path in pack.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    }
    assert holding == {"database/secret.db/secret.db"}
    assert MASK in (pack / "failure.txt").read_text()
    assert "NOT redacted" in json.loads((pack / "manifest.json").read_text())["notice"]


def test_a_run_without_record_is_inconclusive(journal: Journal) -> None:
    """What the guardian saves says why the run ended,
    and goes into the session's evidence folder.
    """
    path = salvage(journal.folder, "the controller was killed")
    assert path is not None
    assert path == Path(journal.header().session_folder) / "evidence" / "run-1"
    assert (open_pack(path).verdict, open_pack(path).failure) == (Verdict.INCONCLUSIVE, "the controller was killed")
    assert salvage(journal.folder, "found by a later session") == path


def test_salvage_needs_no_pytest(journal: Journal) -> None:
    """The guardian is a small process: what it imports for the last save holds no pytest."""
    script = (
        "import sys; from pathlib import Path; from pytest_chaos.evidence.pack import salvage\n"
        "print(salvage(Path(sys.argv[1]), 'killed'))\n"
        "assert not {'pytest', '_pytest', 'click', 'rich'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script, str(journal.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert (done.returncode, done.stderr) == (0, "")
    assert verify(Path(done.stdout.strip())) == []


def test_a_folder_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    """No header, no pack: salvage says so with None, write with a sentence;
    nothing is left behind.
    """
    (tmp_path / "empty").mkdir()
    assert salvage(tmp_path / "empty", "killed") is None
    with pytest.raises(EvidenceError, match="must be the journal of a run"):
        write(tmp_path / "empty", tmp_path / "out/pack")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_pack_is_never_written_over(journal: Journal, tmp_path: Path) -> None:
    """An existing destination is refused, whatever it is."""
    (tmp_path / "pack").mkdir()
    with pytest.raises(EvidenceError, match="exists already"):
        write(journal.folder, tmp_path / "pack")


def test_what_a_killed_builder_left_is_removed(journal: Journal, tmp_path: Path) -> None:
    """Half a pack of a dead process goes when the pack is made again;
    that of a living one stays.
    """
    script = "import pathlib, sys; from pytest_chaos.runtime import owner; owner.make(pathlib.Path(sys.argv[1]))"
    dead, living = tmp_path / ".pack.dead0000.building", tmp_path / ".pack.1.building"
    subprocess.run([sys.executable, "-c", script, str(dead)], check=True)
    owner.make(living)  # pid 1 of a container, say: its number means nothing
    assert dead.is_dir()
    write(journal.folder, tmp_path / "pack")
    assert list(tmp_path.glob(".*")) == [living]
    owner.release(living)
    write(journal.folder, tmp_path / "other")
    shutil.rmtree(tmp_path / "pack")
    write(journal.folder, tmp_path / "pack")
    assert list(tmp_path.glob(".*")) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB, really mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "chaos-test", str(folder)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_without_room_for_the_copies_the_rest_of_the_pack_is_made(
    journal: Journal, tmp_path: Path, small_disk: Path
) -> None:
    """A database larger than the disk is left out and named; run, marks and failure are saved."""
    full_journal(journal)
    make_database(journal.work_folder / "large.db", "INSERT INTO t SELECT randomblob(3000000)")
    path = write(journal.folder, small_disk / "pack")
    assert verify(path) == []
    assert len(open_pack(path).marks) == 3
    assert any(row["part"] == "large.db" for row in open_pack(path).problems)
    assert tmp_path.exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(journal: Journal, small_disk: Path) -> None:
    """When not even the text fits, the error says what to do, no half pack stays,
    and the journal is untouched.
    """
    full_journal(journal)
    (small_disk / "filler").touch()
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (small_disk / "filler").write_bytes(b"x" * 2**21)
    with pytest.raises(EvidenceError, match=r"could not be written .* --chaos-results=DIR"):
        write(journal.folder, small_disk / "evidence/pack")
    assert [path for path in small_disk.rglob("*") if path.is_file()] == [small_disk / "filler"]
    assert journal.history().marks


def test_a_limit_on_file_sizes_is_a_full_disk_too(journal: Journal, tmp_path: Path) -> None:
    """RLIMIT_FSIZE, which needs no root: nothing can be written,
    so there is a sentence and no pack.
    """
    full_journal(journal)
    script = (
        "import resource, sys; from pathlib import Path; from pytest_chaos.errors import EvidenceError\n"
        "from pytest_chaos.evidence import write\nresource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try: write(Path(sys.argv[1]), Path(sys.argv[2]))\nexcept EvidenceError as error: print(error)"
    )
    command = [sys.executable, "-c", script, str(journal.folder), str(tmp_path / "pack")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert "could not be written" in done.stdout, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal"]


def test_a_folder_that_cannot_be_written_is_one_sentence(journal: Journal, tmp_path: Path) -> None:
    """A destination below a file is refused with the way out, not with a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(EvidenceError, match=r"could not be written \(.*--chaos-results"):
        write(journal.folder, tmp_path / "file/pack")


def test_one_call_makes_a_pack_of_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function of the first chaos matrix works without the plugin,
    and by default where that one put its files.
    """
    monkeypatch.chdir(tmp_path)
    database = make_database(tmp_path / "app.db")
    path = dump_failure_evidence("test_x[a/b]", database, "it is gone", task_id='it\'s "näme"\n2')
    assert path.parent == tmp_path / "store/artifacts/chaos-failures"
    assert verify(path) == []
    pack = open_pack(path)
    assert (pack.verdict, pack.failure, pack.node_id) == (Verdict.VIOLATED, "it is gone", "test_x[a/b]")
    ((notes,),) = rows(path, "SELECT notes FROM run")
    assert json.loads(str(notes)) == {"task_id": 'it\'s "näme"\n2'}
    assert rows(path, "SELECT row_count FROM table_counts") == [(2,)]
    second = dump_failure_evidence("test_x[a/b]", tmp_path / "none.db", "it is gone", directory=tmp_path / "elsewhere")
    assert second.parent == tmp_path / "elsewhere"
    assert "no such file" in str(open_pack(second).problems)
