"""Which source of steps is there on this machine: seccomp if it works, audit events for what they can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_chaos.errors import StepsUnavailable, UsageError

if TYPE_CHECKING:
    from pytest_chaos.trace.source import StepSource

SOURCES: Final = ("seccomp", "audit")


def source_for(name: str | None = None) -> StepSource:
    """Return the source of this name, or the best there is: seccomp, and audit events where it does not work.

    Raises UsageError for an unknown name, StepsUnavailable for one that does not work on this
    machine.
    """
    from pytest_chaos.trace.audit import AuditSource  # each of them looks at the machine when it is imported
    from pytest_chaos.trace.seccomp import SeccompSource

    if name == "audit":
        return AuditSource()
    if name not in {None, "seccomp"}:
        msg = f"there is no source of steps called {name!r}; there are {', '.join(SOURCES)}"
        raise UsageError(msg)
    try:
        source = SeccompSource()
        source.try_out()
    except StepsUnavailable:
        if name is not None:
            raise
        return AuditSource()
    return source


def why_not_seccomp() -> str:
    """Return why no system calls can be seen on this machine, and nothing where they can."""
    try:
        source_for("seccomp")
    except StepsUnavailable as error:
        return str(error)
    return ""
