"""Check which features work on this machine, and name a substitute for each that does not.

No check writes a file or leaves a process. A check reads what the kernel and the installed packages
report. Only the seccomp filter and a moved clock are tried, in a child each: a container may refuse
what its kernel lists. Other machines are ``unknown``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sqlite3
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

PYTHON_MIN: Final = (3, 11)

_SECCOMP_CALL: Final = {"x86_64": 317, "aarch64": 277}
"""The number of seccomp(2); on other machines the kernel's list of actions is read."""
_SECCOMP_GET_ACTION_AVAIL: Final = 2
_SECCOMP_RET_USER_NOTIF: Final = 0x7FC00000
_ACTIONS: Final = Path("/proc/sys/kernel/seccomp/actions_avail")
_PTRACE_SCOPE: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
_PR_GET_CHILD_SUBREAPER: Final = 37
_CLOCK_TRIED_S: Final = -86_400
_MEMORY_FILES: Final = Path("/dev/shm")  # noqa: S108 - it is looked at, nothing is put there
_BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PACKAGES: Final = ("pytest", "pytest-xdist", "pytest-timeout", "psutil", "hypothesis", "msgspec")

Status = Literal["works", "limited", "missing", "unknown"]


@dataclass(frozen=True, slots=True)
class Check:
    """One feature: status, what was ``found``, its ``purpose``, and a substitute."""

    name: str
    status: Status
    found: str
    purpose: str
    otherwise: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class KnownBug:
    """A bug of SQLite, in all versions from ``first`` up to ``fixed``, which is excluded.

    ``backports`` are older versions with the fix, which later versions of their branch have, too.
    """

    name: str
    first: tuple[int, int, int]
    fixed: tuple[int, int, int]
    text: str
    backports: tuple[tuple[int, int, int], ...] = ()

    def affects(self, version: tuple[int, int, int]) -> bool:
        """Whether this version of SQLite has the bug."""
        backported = any(version[:2] == backport[:2] and version >= backport for backport in self.backports)
        return self.first <= version < self.fixed and not backported


SQLITE_BUGS: Final = (
    KnownBug(
        name="WAL-reset",
        first=(3, 7, 0),
        fixed=(3, 51, 3),
        backports=((3, 44, 6), (3, 50, 7)),
        text=(
            "with a write-ahead log and several connections that write or checkpoint at the same moment, committed "
            "pages may be lost: very rare, but do not blame a target for it without having repeated it "
            "(sqlite.org/wal.html)"
        ),
    ),
    KnownBug(
        name="savepoints in memory",
        first=(3, 35, 0),
        fixed=(3, 37, 2),
        text=(
            "nested savepoints that are rolled back may corrupt the file when statement journals are kept in memory "
            "(temp_store or journal_mode MEMORY)"
        ),
    ),
    KnownBug(
        name="withdrawn release",
        first=(3, 52, 0),
        fixed=(3, 52, 1),
        text="its authors took 3.52.0 back for incompatible changes: use 3.51.3, or 3.53 and later",
    ),
)
"""Bugs that can make a correct program lose data."""


def examine() -> tuple[Check, ...]:
    """Run all checks. A check that fails itself is ``unknown``, with the error."""
    checks: tuple[Callable[[], Check], ...] = (
        _python,
        _kernel,
        _seccomp,
        _child_memory,
        _clock,
        _network,
        _witness,
        _pidfd,
        _subreaper,
        _memory_files,
        _sqlite,
        _chromium,
    )
    return (*(_guarded(check) for check in checks), *(_package(name) for name in _PACKAGES))


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a broken machine must not break its diagnosis
        return Check(check.__name__.strip("_").replace("_", " "), "unknown", f"{type(error).__name__}: {error}", "")


def _python() -> Check:
    enough = sys.version_info[:2] >= PYTHON_MIN
    found = f"{platform.python_implementation()} {platform.python_version()}"
    return Check(
        "Python", "works" if enough else "missing", found, "everything", "use Python 3.11 or newer", required=True
    )


def _kernel() -> Check:
    linux = sys.platform == "linux"
    found = f"{platform.system()} {platform.release()} on {platform.machine()}"
    otherwise = "scenarios, checkers and reports; no exploration of crash points, and a weaker guardian"
    return Check("kernel", "works" if linux else "limited", found, "real processes and their faults", otherwise)


def _seccomp() -> Check:
    from pytest_chaos.trace.source import why_not_seccomp  # takes 20 ms, for one of many checks

    available, found = _user_notification(platform.machine(), _ACTIONS)
    if available and (refused := why_not_seccomp()):
        available, found = False, refused
    status: Status = "unknown" if available is None else "works" if available else "missing"
    otherwise = "named crash points (audit events) and kills at marks and moments; no step engine, no power loss"
    return Check("seccomp notification", status, found, "stopping a program at each of its durable steps", otherwise)


def _user_notification(machine: str, actions: Path) -> tuple[bool | None, str]:
    """Ask the kernel whether a filter may hand system calls to a supervisor."""
    if actions.exists():
        available = "user_notif" in actions.read_text().split()
        return available, "the kernel lists user_notif" if available else "the kernel does not list user_notif"
    number = _SECCOMP_CALL.get(machine) if sys.platform == "linux" else None
    if number is None:
        return None, f"how to ask is not known on {machine}"
    library = ctypes.CDLL(None, use_errno=True)
    action = ctypes.c_uint32(_SECCOMP_RET_USER_NOTIF)
    answer = library.syscall(number, _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action))
    if answer == 0:
        return True, "the kernel says that the action is available"
    return False, f"the kernel refuses the action: {os.strerror(ctypes.get_errno())}"


def _child_memory() -> Check:
    scope = int(_PTRACE_SCOPE.read_text()) if _PTRACE_SCOPE.exists() else 0
    found = f"ptrace scope {scope}" if _PTRACE_SCOPE.exists() else "not restricted by Yama"
    status: Status = "works" if scope <= 1 else "limited" if scope == 2 else "missing"
    otherwise = "steps are counted, their contents are not; scope 2 needs CAP_SYS_PTRACE"
    return Check("memory of children", status, found, "reading what a program was about to write", otherwise)


def _clock() -> Check:
    from pytest_chaos.clocks.trial import moved_by_s  # 10 ms, for one of many checks
    from pytest_chaos.clocks.uptime import why_not
    from pytest_chaos.errors import ClockNotMoved

    purpose = "moving the wall clock of a program (clock_jump and its like)"
    otherwise = "a clock that is passed to the code under test; a planned fault of the clock is INCONCLUSIVE"
    try:
        moved_s, by_call = moved_by_s(_CLOCK_TRIED_S)
    except (ClockNotMoved, OSError) as error:
        return Check("clock", "missing", str(error), purpose, otherwise)
    scope = int(_PTRACE_SCOPE.read_text()) if _PTRACE_SCOPE.exists() else 0
    no_uptime = why_not()
    found = f"the clock of a child was moved by {moved_s:+,.0f} s" + (
        ", and is read by system calls" if by_call else ""
    )
    if scope:
        found += f"; ptrace scope {scope} may keep programs that an agent starts from being moved"
    if no_uptime:
        found += f"; monotonic clocks cannot start elsewhere (clock_uptime): {no_uptime}"
    return Check("clock", "limited" if scope or by_call or no_uptime else "works", found, purpose, otherwise)


def _network() -> Check:
    from pytest_chaos.errors import StepsUnavailable
    from pytest_chaos.network.trial import answered  # 10 ms, for one of many checks

    purpose = "parting programs from each other (partition and its like)"
    otherwise = "chaos.link, which needs no privilege; a planned partition is INCONCLUSIVE"
    try:
        name = answered()
    except (StepsUnavailable, OSError) as error:
        return Check("network", "missing", str(error), purpose, otherwise)
    found = f"a child's connect was answered with {name}"
    return Check("network", "works" if name == "EHOSTUNREACH" else "missing", found, purpose, otherwise)


def _witness() -> Check:
    from pytest_chaos.resources.trial import failed_call  # 100 ms, for one of many checks

    purpose = "seeing that a program met a limit on files, file size, processes or address space"
    otherwise = "limits of memory and starved processors; any other planned limit is INCONCLUSIVE"
    try:
        found = f"a child's {failed_call()}"
    except OSError as error:
        return Check("felt limits", "missing", error.strerror or str(error), purpose, otherwise)
    scope = int(_PTRACE_SCOPE.read_text()) if _PTRACE_SCOPE.exists() else 0
    if scope:
        found += f"; ptrace scope {scope} keeps programs that are no children of the witness from being seen"
    return Check("felt limits", "limited" if scope else "works", found, purpose, otherwise)


def _pidfd() -> Check:
    if not hasattr(os, "pidfd_open"):
        return Check(
            "pidfd", "missing", "not in this Python", "signals that cannot hit a reused pid", "pid and start time"
        )
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        found = error.strerror or str(error)
        return Check(
            "pidfd", "missing", found, "signals that cannot hit a reused pid", "pid and start time are compared"
        )
    return Check("pidfd", "works", "pidfd_open succeeds", "signals that cannot hit a reused pid")


def _subreaper() -> Check:
    purpose, otherwise = "ending daemons that an agent leaves behind", "process groups; a daemon may outlive its run"
    if sys.platform != "linux":
        return Check("subreaper", "missing", "not on this system", purpose, otherwise)
    flag = ctypes.c_int(-1)
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0) == 0:
        return Check("subreaper", "works", "prctl answers", purpose, otherwise)
    return Check("subreaper", "missing", os.strerror(ctypes.get_errno()), purpose, otherwise)


def _memory_files() -> Check:
    purpose, otherwise = "fast work folders: SIGKILL tests need no disk", "the disk, about 13 times slower"
    kind = _file_system(_MEMORY_FILES)
    if kind is None:
        return Check("memory files", "missing", "it is not there", purpose, otherwise)
    free_bytes = shutil.disk_usage(_MEMORY_FILES).free
    found = f"{kind}, {free_bytes // 2**20} MiB free"
    good = kind == "tmpfs" and free_bytes >= 256 * 2**20 and os.access(_MEMORY_FILES, os.W_OK)
    return Check("memory files", "works" if good else "limited", found, purpose, otherwise)


def _file_system(path: Path) -> str | None:
    """Return the kind of file system mounted at this path, ``unknown`` without a mount table."""
    if not path.is_dir():
        return None
    mounts = Path("/proc/mounts")
    lines = mounts.read_text(errors="replace").splitlines() if mounts.exists() else []
    kinds = [line.split()[2] for line in lines if line.split()[1] == str(path)]
    return kinds[-1] if kinds else "unknown"


def _sqlite() -> Check:
    bugs = sqlite_bugs(sqlite3.sqlite_version_info)
    found = "; ".join([sqlite3.sqlite_version, *(f"{bug.name}: {bug.text}" for bug in bugs)])
    otherwise = "a newer SQLite under this Python" if bugs else ""
    return Check("SQLite", "limited" if bugs else "works", found, "stores, and evidence packs", otherwise)


def sqlite_bugs(version: tuple[int, int, int]) -> tuple[KnownBug, ...]:
    """Return the known bugs of a version of SQLite that can cost data."""
    return tuple(bug for bug in SQLITE_BUGS if bug.affects(version))


def _chromium() -> Check:
    purpose = "looking at the report in a browser test"
    for name in _BROWSERS:
        if (path := shutil.which(name)) is not None:
            return Check("Chromium", "works", path, purpose)
    folder = os.environ.get("PLAYWRIGHT_BROWSERS_PATH", "")
    root = Path(folder) if folder not in {"", "0"} else Path.home() / ".cache" / "ms-playwright"
    installed = sorted(root.glob("chromium*")) if root.is_dir() else []
    if installed:
        return Check("Chromium", "works", str(installed[-1]), purpose)
    otherwise = "reports are written all the same; `playwright install chromium` gets a browser"
    return Check("Chromium", "missing", "none found", purpose, otherwise)


def _package(name: str) -> Check:
    purposes = {
        "pytest-xdist": "-n: several workers",
        "pytest-timeout": "a bound on each test",
    }
    purpose = purposes.get(name, "the plugin")
    try:
        return Check(name, "works", metadata.version(name), purpose, required=name == "pytest")
    except metadata.PackageNotFoundError:
        return Check(name, "missing", "not installed", purpose, f"pip install {name}", required=name not in purposes)
