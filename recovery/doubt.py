"""What to do in doubt: a tool was begun, and nobody knows whether it had its effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from recovery.errors import InDoubt, InvalidSetting, ProbeFailed


class RunAgain(msgspec.Struct, frozen=True):
    """Run the tool again: it may run twice."""


class Raise(msgspec.Struct, frozen=True):
    """Raise InDoubt, again and again, until a person has called ``resolve`` or ``forget``."""


class Happened(msgspec.Struct, frozen=True):
    """A probe's answer: the tool had its effect, and this is its output."""

    output: Any


class Probe(msgspec.Struct, frozen=True):
    """Ask ``check``: it returns Happened, or None when nothing happened, and then the tool is run.

    An exception, or another answer, is ProbeFailed, and the call is still in doubt.
    """

    check: Callable[[], Happened | None]


RUN_AGAIN: Final = RunAgain()
RAISE: Final = Raise()

DoubtPolicy: TypeAlias = RunAgain | Raise | Probe
_POLICIES: Final = (RunAgain, Raise, Probe)


def check_policy(policy: object) -> None:
    """Raise InvalidSetting unless this is a policy: that there is one must not be forgotten."""
    if not isinstance(policy, _POLICIES):
        message = f"Expected in_doubt to be RUN_AGAIN, RAISE or a Probe but got {policy!r:.200}; say what happens then."
        raise InvalidSetting(message)


def decision(policy: DoubtPolicy, key: str) -> Happened | None:
    """Return what is known to have happened; None to run the tool. Raises InDoubt or ProbeFailed."""
    if isinstance(policy, RunAgain):
        return None
    if isinstance(policy, Raise):
        message = (
            f"Expected to know what came of the call with the key {key!r} but it began and its end was not recorded; "
            "find out whether it happened, then call resolve() or forget()."
        )
        raise InDoubt(message)
    try:
        answer: object = policy.check()
    except Exception as error:
        message = f"Expected the probe of {key!r} to answer but it raised {error!r:.200}; mend it and call again."
        raise ProbeFailed(message) from error
    if answer is None or isinstance(answer, Happened):
        return answer
    message = f"Expected the probe of {key!r} to return Happened or None but got {answer!r:.200}; mend it."
    raise ProbeFailed(message)
