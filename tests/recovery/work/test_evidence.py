"""Evidence: each kind verifies for the right reason only,
and a verdict is there exactly when its checkpoint is.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from durable_agents import (
    CHECKPOINT_CRASH_POINTS,
    ArtifactExists,
    Artifacts,
    CheckpointManager,
    CommandExit,
    DbRow,
    Evidence,
    EvidencePolicy,
    FileSha256,
    ManualClock,
    OwnEvidence,
    Reason,
    SqliteStore,
    TaskManager,
    Verdict,
    Verification,
)
from durable_agents.errors import InvalidEvidence, InvalidSetting, QueryRefused, SnapshotTooLarge, UnknownTask
from durable_agents.store.rows import StoredEvidence
from durable_agents.work.evidence import Verifier, decoded_verdicts, encoded_verdicts, exit_status
from hypothesis import given, strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROOT: Final = Path(__file__).parents[3]
_TIMEOUT_S: Final = 60
_PYTHON: Final = sys.executable
_ITEM: Final = ArtifactExists("a")


class _Untold:
    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.fixture(name="artifacts")
def _artifacts(tmp_path: Path) -> Artifacts:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return Artifacts(folder)


@pytest.fixture(name="manager")
def _manager(tmp_path: Path, artifacts: Artifacts) -> Iterator[CheckpointManager]:
    own: dict[str, Any] = {
        "is even": lambda number: number % 2 == 0,
        "truthy": lambda _: "yes",
        "raises": lambda _: 1 / 0,
        "raises what is not UTF-8": lambda _: os.stat("\udcff"),  # noqa: PTH116 - a path that only the system can hold
        "answers what cannot be told": lambda _: _Untold(),
    }
    with CheckpointManager(
        db_path=tmp_path / "store.db",
        artifacts=artifacts,
        verifiers=own,
        clock=ManualClock(),
    ) as manager:
        TaskManager(manager.store).create("t")
        yield manager


def _reason(manager: CheckpointManager, item: Evidence) -> Reason:
    """Save a checkpoint with one item of evidence and return the verdict on it."""
    verification = manager.save("t", None, evidence=[item]).verification
    assert verification is not None
    assert verification.is_verified == (verification.verdicts[0].reason is Reason.VERIFIED)
    return verification.verdicts[0].reason


def test_a_file_verifies_by_existence_and_by_hash(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """The evidence of a write verifies; another hash, another path and a deleted file do not."""
    written = artifacts.write("a", b"content")
    other = FileSha256("a", "0" * 64)
    assert [_reason(manager, item) for item in (written, _ITEM, other)] == [
        Reason.VERIFIED,
        Reason.VERIFIED,
        Reason.OTHER_CONTENT,
    ]
    (artifacts.folder / "a").unlink()
    assert [_reason(manager, item) for item in (written, _ITEM)] == [Reason.MISSING] * 2


@pytest.mark.parametrize(
    ("script", "expected", "reason"),
    [
        ("exit 0", 0, Reason.VERIFIED),
        ("exit 1", 0, Reason.OTHER_EXIT),
        ("exit 3", 3, Reason.VERIFIED),
        ("exit 137", 0, Reason.OTHER_EXIT),
        ("kill -9 $$", 0, Reason.OTHER_EXIT),
        ("kill -9 $$", 137, Reason.VERIFIED),
        ("exit 0", 137, Reason.OTHER_EXIT),
        ("kill -15 $$", 137, Reason.OTHER_EXIT),
    ],
)
def test_a_command_verifies_by_the_status_that_was_expected(
    manager: CheckpointManager, script: str, expected: int, reason: Reason
) -> None:
    """An end by signal 9 is 137 and no success, unless exactly that was expected (D9)."""
    assert _reason(manager, CommandExit(("sh", "-c", script), expected)) is reason


@pytest.mark.parametrize("program", ["/no/such/program", "/", "/etc/passwd"])
def test_a_command_that_cannot_run_does_not_verify(manager: CheckpointManager, program: str) -> None:
    """A program that is missing, a folder, or not executable has no exit status at all."""
    assert _reason(manager, CommandExit((program,), 127)) is Reason.CANNOT_RUN


def test_a_command_runs_in_the_folder_of_the_artifacts(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """A relative path in a command means the same as one in other evidence."""
    artifacts.write("a", b"1")
    assert _reason(manager, CommandExit(("test", "-f", "a"))) is Reason.VERIFIED


_FAMILY: Final = """
trap '' TERM
(trap '' TERM HUP; echo $$ > "$0.child"; echo ready > "$0"; while :; do read x < "$0.fifo"; done) &
while [ "$1" = stay ]; do read x < "$0.fifo"; done
while [ ! -e "$0" ]; do :; done
"""


@pytest.mark.parametrize("ending", ["stay", "leave"])
def test_a_command_ends_with_its_whole_process_group(tmp_path: Path, ending: str) -> None:
    """A command that ignores signals is killed at its bound;
    a child that it left behind is killed in any case.
    """
    flag = tmp_path / "flag"
    os.mkfifo(f"{flag}.fifo")
    started = time.monotonic()
    status = exit_status(("sh", "-c", _FAMILY, str(flag), ending), timeout_s=8 if ending == "stay" else _TIMEOUT_S)
    assert status == (None if ending == "stay" else 0)
    assert time.monotonic() - started < _TIMEOUT_S / 2
    assert flag.exists()
    assert _processes_with(str(flag)) == []


def _processes_with(text: str) -> list[str]:
    """Return the living processes with the text in their command line,
    once the kernel has buried the dead.
    """
    deadline = time.monotonic() + _TIMEOUT_S
    found: list[str] = []
    while time.monotonic() < deadline:
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and process.name != str(os.getpid()):
                try:
                    command = (process / "cmdline").read_bytes()
                except OSError:
                    continue
                if text.encode() in command:
                    found.append(process.name)
        if not found:
            return []
    return found


def test_a_command_that_takes_too_long_is_told_apart(manager: CheckpointManager) -> None:
    """Its verdict is the bound, and not a status that the kill made."""
    assert _reason(manager, CommandExit(("sleep", "60"), 137, timeout_s=0.05)) is Reason.TIMED_OUT


def test_a_row_verifies_by_its_values(manager: CheckpointManager) -> None:
    """A row with all the values verifies, NULL among them; with one other value it does not."""
    assert _reason(manager, DbRow("tasks", {"task_id": "t", "tracker_key": None})) is Reason.VERIFIED
    assert _reason(manager, DbRow("tasks", {"task_id": "t", "tracker_key": "T-1"})) is Reason.NO_ROW
    assert _reason(manager, DbRow("checkpoints", {"task_id": "t", "sequence_number": 2})) is Reason.VERIFIED
    assert _reason(manager, DbRow("checkpoints", {"sequence_number": 99})) is Reason.NO_ROW


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("nothing", {"x": 1}),
        ("tasks", {"colour": "colour"}),
        ('tasks"; DROP TABLE tasks; --', {"task_id": "t"}),
        ("tasks", {'task_id" IS "task_id" OR "': "t"}),
        ("tasks", {"created_at": 2**70}),
    ],
)
def test_a_question_that_makes_no_sense_does_not_verify(
    manager: CheckpointManager, table: str, values: dict[str, Any]
) -> None:
    """A table or column that is not there is refused,
    also where SQLite would take its name for a text.
    """
    assert _reason(manager, DbRow(table, values)) is Reason.QUERY_REFUSED
    assert manager.store.task("t") is not None


def test_a_question_without_an_end_is_interrupted(manager: CheckpointManager) -> None:
    """A query that would run for ever is refused after its bound."""
    endless = "CREATE VIEW endless AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
    assert isinstance(manager.store, SqliteStore)
    with closing(sqlite3.connect(manager.store.path)) as connection:
        connection.execute(endless)
    with pytest.raises(QueryRefused, match="must end within"):
        manager.store.has_row("endless", {"x": -1}, timeout_s=0.05)


def test_a_question_cannot_write(manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that asks is opened for reading only."""
    assert isinstance(manager.store, SqliteStore)
    opened: list[str] = []
    real_connect = sqlite3.connect

    def connect(path: str, **options: Any) -> sqlite3.Connection:
        opened.append(path)
        connection: sqlite3.Connection = real_connect(path, **options)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM tasks")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect)
    assert manager.store.has_row("tasks", {"task_id": "t"}, timeout_s=60)
    assert [path.endswith("?mode=ro") for path in opened] == [True]


def test_an_own_verifier_says_true_or_nothing(manager: CheckpointManager) -> None:
    """True verifies; False, something that is merely true, and an error do not."""
    assert [_reason(manager, OwnEvidence("is even", number)) for number in (2, 3)] == [Reason.VERIFIED, Reason.DENIED]
    assert _reason(manager, OwnEvidence("truthy")) is Reason.DENIED
    assert _reason(manager, OwnEvidence("raises")) is Reason.VERIFIER_RAISED
    assert _reason(manager, OwnEvidence("raises what is not UTF-8")) is Reason.VERIFIER_RAISED
    assert _reason(manager, OwnEvidence("answers what cannot be told")) is Reason.DENIED


_WRONG: Final[list[Callable[[], object]]] = [
    lambda: ArtifactExists("../x"),
    lambda: ArtifactExists(7),  # type: ignore[arg-type]  # the wrong type is the point
    lambda: FileSha256("a", "0" * 63),
    lambda: FileSha256("a", "A" * 64),
    lambda: CommandExit(()),
    lambda: CommandExit("ls"),  # type: ignore[arg-type]  # the wrong type is the point
    lambda: CommandExit(("a\0b",)),
    lambda: CommandExit(("ls",), -9),
    lambda: CommandExit(("ls",), 256),
    *(
        lambda bound=bound: CommandExit(("ls",), 0, bound)
        for bound in (0, -1, float("inf"), float("nan"), 1e9, 10**400, "1")
    ),
    lambda: DbRow("tasks", {}),
    lambda: DbRow("", {"a": 1}),
    lambda: DbRow("tasks", {"a": b"1"}),  # type: ignore[dict-item]  # the wrong type is the point
    lambda: OwnEvidence(""),
    *(lambda number=number: EvidencePolicy.allow_partial(min_verified=number) for number in (0, -1, 1.5, True)),
]


@pytest.mark.parametrize("number", range(len(_WRONG)))
def test_what_cannot_be_meant_is_refused_when_it_is_made(number: int) -> None:
    """Every wrong value is an error at once, with a sentence that says what was expected."""
    with pytest.raises(InvalidEvidence, match=" must "):
        _WRONG[number]()


def test_what_cannot_be_examined_here_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    """Without a folder, a verifier, or a known kind there is an error and no checkpoint."""
    with CheckpointManager(db_path=tmp_path / "store.db") as manager:
        TaskManager(manager.store).create("t")
        wrong: list[tuple[Any, str]] = [
            ([_ITEM], "must have a folder"),
            ([OwnEvidence("unheard of")], "must be that of a verifier"),
            (["a"], "must hold Evidence; got 'a'"),
            ([CommandExit(("true",))] * 1001, "must have at most 1000"),
        ]
        for evidence, text in wrong:
            with pytest.raises(InvalidEvidence, match=text):
                manager.save("t", None, evidence=evidence)
        assert manager.list("t") == []
        with pytest.raises(UnknownTask):
            manager.save("nobody", None, evidence=[CommandExit(("true",))])


def test_an_argument_that_json_changes_is_refused(manager: CheckpointManager) -> None:
    """What is examined at recovery is what was examined when it was saved."""
    for argument in ((1, 2), {1: 2}, float("nan"), object()):
        with pytest.raises(InvalidEvidence, match=r"Evidence must .*JSON"):
            manager.save("t", None, evidence=[OwnEvidence("truthy", argument)])
    assert manager.list("t") == []


@pytest.mark.parametrize(
    "item",
    [
        _ITEM,
        FileSha256("ключ/🙂", "a" * 64),
        CommandExit(("sh", "-c", "exit 1"), 1, 2.5),
        DbRow("tasks", {"a": None, "b": 1, "c": "x", "d": 1.5}),
        OwnEvidence("name", {"deep": [1, None, {"x": "ß"}]}),
    ],
)
def test_evidence_comes_back_as_it_was_stored(item: Evidence) -> None:
    """JSON names the kind and holds every field."""
    verdicts = (Verdict(item, Reason.DENIED, "detail"), Verdict(item, Reason.VERIFIED))
    assert decoded_verdicts(encoded_verdicts(verdicts)) == verdicts


def _unknown(kind: str, path: str) -> bytes:
    return f'[{{"evidence":{{"kind":"{kind}","path":"{path}"}},"reason":"verified","detail":""}}]'.encode()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[{}]", _unknown("telepathy", "a"), _unknown("artifact_exists", "/a")]
)
def test_stored_evidence_that_is_not_understood_does_not_verify(manager: CheckpointManager, content: bytes) -> None:
    """A damaged row, or one of a newer version, is a verdict and no crash."""
    with pytest.raises(InvalidEvidence, match=" must "):
        decoded_verdicts(content)
    found = Verifier(manager.store).examine_again(StoredEvidence("t", 1, required=1, verified=True, verdicts=content))
    assert not found.is_verified
    assert found.verdicts[0].reason is Reason.NO_VERIFIER


@given(st.lists(st.sampled_from(list(Reason)), max_size=6), st.one_of(st.none(), st.integers(1, 8)))
def test_a_policy_counts_and_never_verifies_nothing(reasons: list[Reason], min_verified: int | None) -> None:
    """Verified means: as many as required, at least one, and all of them unless told otherwise."""
    policy = EvidencePolicy.require_all() if min_verified is None else EvidencePolicy(min_verified)
    verification = Verification(policy.required(len(reasons)), tuple(Verdict(_ITEM, reason) for reason in reasons))
    good = reasons.count(Reason.VERIFIED)
    expected = bool(reasons) and good == len(reasons) if min_verified is None else good >= min_verified
    assert verification.is_verified == expected
    assert good or not verification.is_verified


@given(st.lists(st.sampled_from(list(Reason)), max_size=6), st.integers(-3, 0))
def test_no_number_of_required_items_makes_failures_verify(reasons: list[Reason], required: int) -> None:
    """Not even a stored zero lets a checkpoint pass of which nothing holds (D9)."""
    verification = Verification(required, tuple(Verdict(_ITEM, reason) for reason in reasons))
    assert verification.is_verified == (Reason.VERIFIED in reasons)


def test_an_empty_pack_does_not_verify(manager: CheckpointManager) -> None:
    """Whatever the policy, no evidence is not verified evidence,
    when saved and when recovered (D9).
    """
    for policy in (None, EvidencePolicy.require_all(), EvidencePolicy.allow_partial()):
        assert not manager.save("t", None, evidence=[], policy=policy).is_verified
    recovery = manager.latest_verified("t")
    assert recovery.checkpoint is None
    assert [skipped.sequence_number for skipped in recovery.skipped] == [3, 2, 1]


def test_a_partial_policy_is_kept_for_recovery(manager: CheckpointManager, artifacts: Artifacts) -> None:
    """One of two is enough at recovery, too, if it was when it was saved;
    with none left it is not.
    """
    artifacts.write("a", b"1")
    evidence = [_ITEM, ArtifactExists("b")]
    assert not manager.save("t", "all", evidence=evidence).is_verified
    saved = manager.save("t", "partial", evidence=evidence, policy=EvidencePolicy.allow_partial(min_verified=1))
    assert saved.is_verified
    assert manager.latest_verified("t").checkpoint == saved
    (artifacts.folder / "a").unlink()
    assert manager.latest_verified("t").checkpoint is None


def test_a_snapshot_of_a_hundred_megabytes_is_refused(manager: CheckpointManager) -> None:
    """The default bound is 64 MiB; the error says what to do, and there is no checkpoint."""
    with pytest.raises(SnapshotTooLarge, match="Keep large content in files and refer to them"):
        manager.save("t", "x" * 100_000_000)
    assert manager.list("t") == []


_KILLED: Final = """
import importlib, os, signal, sys
from durable_agents import Artifacts, TaskManager
folder, point, module, name = sys.argv[1:]
artifacts = Artifacts(folder)
manager = getattr(importlib.import_module(module), name)(db_path=os.path.join(folder, "store.db"), artifacts=artifacts)
TaskManager(manager.store).create("t")
manager.save("t", 1, evidence=[artifacts.write("1", b"1")])
second = artifacts.write("2", b"2")
def hook(event, arguments):
    if event == point:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
manager.save("t", 2, evidence=[second])
"""


def killed_while_saving(manager: type[CheckpointManager], folder: Path, point: str) -> list[tuple[int, bool]]:
    """Kill a process at the point of its second save;
    return its checkpoints and whether they verified.
    """
    command = [_PYTHON, "-c", _KILLED, str(folder), point, manager.__module__, manager.__name__]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(_ROOT)}, timeout=_TIMEOUT_S, check=False)
    assert ended.returncode == -signal.SIGKILL
    with CheckpointManager(db_path=folder / "store.db") as sound:
        return [(row.sequence_number, row.verified) for row in reversed(sound.store.evidence("t"))]


@pytest.mark.parametrize("point", CHECKPOINT_CRASH_POINTS)
def test_a_checkpoint_and_its_verdict_are_there_together(tmp_path: Path, point: str) -> None:
    """A kill at any point of a save leaves a checkpoint with its verdict, or neither (D11)."""
    is_committed = CHECKPOINT_CRASH_POINTS.index(point) >= CHECKPOINT_CRASH_POINTS.index(
        "recovery.checkpoint.after_commit"
    )
    expected = [(1, True), (2, True)][: 1 + is_committed]
    assert killed_while_saving(CheckpointManager, tmp_path, point) == expected


def test_retention_needs_something_to_keep(manager: CheckpointManager) -> None:
    """Less than one, and what is no number, is refused."""
    for keep in (0, -1, True, 1.5):
        with pytest.raises(InvalidSetting, match="keep must be 1 or more"):
            manager.prune("t", keep=keep)  # type: ignore[arg-type]  # a float is one of the wrong values
