"""The doctor tells the truth about a machine, and leaves it as it was."""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

import pytest
from pytest_chaos.cli import doctor


def test_every_check_answers_and_none_fails_by_itself() -> None:
    """On this machine each check has a name, a status and something found."""
    checks = doctor.examine()
    assert len({check.name for check in checks}) == len(checks) >= 12
    assert all(check.found for check in checks)
    assert {check.status for check in checks} <= {"works", "limited", "missing", "unknown"}


def test_what_is_missing_has_a_way_around() -> None:
    """Whoever lacks something is told what there is without it."""
    assert all(check.otherwise for check in doctor.examine() if check.status in {"missing", "limited"})


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ((3, 51, 3), []),
        ((3, 51, 2), ["WAL-reset"]),
        ((3, 50, 7), []),
        ((3, 50, 6), ["WAL-reset"]),
        ((3, 44, 6), []),
        ((3, 45, 0), ["WAL-reset"]),
        ((3, 37, 1), ["WAL-reset", "savepoints in memory"]),
        ((3, 52, 0), ["withdrawn release"]),
        ((3, 53, 1), []),
        ((3, 6, 23), []),
    ],
)
def test_sqlite_bugs_go_by_version_and_backport(version: tuple[int, int, int], names: list[str]) -> None:
    """A bug ends with the version that fixed it, and with the backports of that fix."""
    assert [bug.name for bug in doctor.sqlite_bugs(version)] == names


def test_the_sqlite_of_this_python_is_named() -> None:
    """The version that counts is the one this interpreter is linked to."""
    (check,) = [check for check in doctor.examine() if check.name == "SQLite"]
    assert check.found.startswith(sqlite3.sqlite_version)


@pytest.mark.parametrize(
    ("listed", "available"), [("kill_process errno user_notif allow", True), ("kill_process errno allow", False)]
)
def test_seccomp_believes_the_kernels_own_list(tmp_path: Path, listed: str, available: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Where the kernel lists its actions, the list decides, on any architecture."""
    actions = tmp_path / "actions_avail"
    actions.write_text(listed)
    assert doctor._user_notification("riscv64", actions)[0] is available


def test_an_unknown_architecture_is_unknown_and_not_missing(tmp_path: Path) -> None:
    """Without a list and without a known call number nothing is claimed."""
    assert doctor._user_notification("s390x", tmp_path / "none")[0] is None


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_both_ways_to_ask_the_kernel_agree(tmp_path: Path) -> None:
    """The system call and the kernel's list give one answer on this machine."""
    listed = Path("/proc/sys/kernel/seccomp/actions_avail")
    if not listed.exists():
        pytest.skip("this kernel lists no actions")
    called, _ = doctor._user_notification(os.uname().machine, tmp_path / "none")
    assert called in {doctor._user_notification("any", listed)[0], None}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_examination_leaves_no_trace() -> None:
    """No filter is installed, no descriptor stays open, no new privilege is given up."""

    def state() -> tuple[list[str], int]:
        status = Path("/proc/self/status").read_text().splitlines()
        return [line for line in status if line.startswith(("Seccomp", "NoNewPrivs"))], len(os.listdir("/proc/self/fd"))

    doctor.examine()
    before = state()
    doctor.examine()
    assert state() == before
