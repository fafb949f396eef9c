"""The table of trapped system calls: numbers, place in the filter and decoder, declared together.

A decoder is a method, declared with its call::

    @system_call("fsync", x86_64=74, aarch64=82)
    def fsync(self, call: Notification) -> Decoded: ...

Nothing else is needed: the filter and the dispatch are made from this table. A machine that lacks a
call leaves its number out (aarch64 has ``openat`` and no ``open``). Numbers never change;
``tests/harness/trace/calls/test_table.py`` compares them with the kernel's headers.

The filter is a classic BPF program over ``struct seccomp_data``: number, machine, instruction
pointer, six arguments. It allows each call that the table does not name, so reading costs nothing.
Sources: seccomp(2), ``linux/filter.h``. Pure.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.trace.kernel import AUDIT_ARCH, MACHINE
from pytest_chaos.trace.memory import AT_FDCWD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_chaos.trace.calls.base import Decoded
    from pytest_chaos.trace.kernel import Notification

    Decode = Callable[[Any, Notification], Decoded]

NUMBER_MAX: Final = 469
"""The highest call of Linux 6.17. Higher ones are trapped and denied: they may write unseen."""

ALLOW: Final = 0x7FFF0000
NOTIFY: Final = 0x7FC00000
_LOAD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER: Final = 0x25
_JUMP_SET: Final = 0x45
_RETURN: Final = 0x06
_NUMBER_AT: Final = 0
_MACHINE_AT: Final = 4
_ARGUMENT_AT: Final = 16

_Instruction = tuple[int, int, int, int]
"""Code, instructions to skip if true, if false, operand."""


ALWAYS: Final[Sequence[_Instruction]] = ((_RETURN, 0, 0, NOTIFY),)
"""Traps a call with any arguments."""


class SystemCall(NamedTuple):
    """A row of the table. ``when`` are the instructions that decide about the call."""

    name: str
    numbers: dict[str, int]
    when: Sequence[_Instruction]
    is_close: bool
    decode: Decode
    touches: Sequence[_Instruction] | None = None
    """The instructions in a filter that also sees touches of files; None for the same ones."""


TABLE: Final[list[SystemCall]] = []
NAMES: Final[dict[int, str]] = {}
"""The calls of this machine, by number."""

_Method = TypeVar("_Method", bound="Decode")


def system_call(
    name: str,
    *,
    x86_64: int | None = None,
    aarch64: int | None = None,
    when: Sequence[_Instruction] = ALWAYS,
    is_close: bool = False,
    touches: Sequence[_Instruction] | None = None,
    takes: int = 6,
    at: Sequence[int] = (),
) -> Callable[[_Method], _Method]:
    """Have a method decode a system call, by its number on each machine.

    ``when`` (``any_bit``, ``one_of``) traps it only with certain arguments. ``is_close`` is for
    calls that a filter may leave out, see ``filter_code``. ``touches`` are the instructions in its
    place where touches of files are noted, too; a call with no other ``when`` is then trapped only
    there. The decoder sees the first ``takes``
    arguments and zeros; ``at`` are the places where it sees AT_FDCWD inserted, so that it can serve
    ``mkdir`` as well as ``mkdirat``.
    """
    given = {"x86_64": x86_64, "aarch64": aarch64}
    numbers = {machine: number for machine, number in given.items() if number is not None}

    def register(decode: _Method) -> _Method:
        adapted = _adapted(decode, takes, at) if at or takes < 6 else decode
        TABLE.append(SystemCall(name, numbers, when, is_close, adapted, touches))
        if MACHINE in numbers:
            NAMES[numbers[MACHINE]] = name
        return decode

    return register


def _adapted(decode: Decode, takes: int, at: Sequence[int]) -> Decode:
    def adapted(decoder: Any, call: Notification) -> Decoded:
        # Registers beyond a call's own arguments hold whatever the program left there, so they
        # must not be taken for the flags of the longer call.
        words = [*call.arguments[:takes], *[0] * (6 - takes)]
        for place in at:
            words.insert(place, AT_FDCWD)
        return decode(decoder, msgspec.structs.replace(call, arguments=words))

    return adapted


def any_bit(argument: int, bits: int) -> list[_Instruction]:
    """Trap a call when an argument (from 0) has any of these bits."""
    return [_load(argument), (_JUMP_SET, 0, 1, bits), (_RETURN, 0, 0, NOTIFY), (_RETURN, 0, 0, ALLOW)]


def no_bit(argument: int, bits: int) -> list[_Instruction]:
    """Trap a call when an argument (from 0) has none of these bits."""
    return [_load(argument), (_JUMP_SET, 0, 1, bits), (_RETURN, 0, 0, ALLOW), (_RETURN, 0, 0, NOTIFY)]


def one_of(argument: int, *values: int) -> list[_Instruction]:
    """Trap a call when an argument (from 0) is one of these values."""
    tests = [instruction for value in values for instruction in ((_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, NOTIFY))]
    return [_load(argument), *tests, (_RETURN, 0, 0, ALLOW)]


def _load(argument: int) -> _Instruction:
    # The low half of a 64-bit argument (little endian): flags and commands are 32-bit numbers.
    return (_LOAD, 0, 0, _ARGUMENT_AT + 8 * argument)


NEVER: Final[Sequence[_Instruction]] = ((_RETURN, 0, 0, ALLOW),)
"""Let a call pass: that of a row which only a filter for touches traps."""


def filter_code(
    machine: str = MACHINE,
    *,
    closes: bool = True,
    touches: bool = False,
    more: Sequence[Trap] = (),
    passes: int = 0,
) -> bytes:
    """Return the filter for the calls of the table, see ``code_of``.

    With ``closes`` it traps the calls by which a descriptor comes to lead elsewhere; then a decoder
    need not ask with each write where its descriptor leads. With ``touches`` it traps the opens,
    locks, reads and exits that are no durable steps, too (``trace.step.Touch``). ``more`` are traps
    in place of the table's for the same calls; ``passes`` as in ``code_of``. Raises
    StepsUnavailable for a machine whose calls are not known.
    """
    calls = [
        call._replace(when=call.touches) if touches and call.touches is not None else call
        for call in TABLE
        if (closes or not call.is_close) and (touches or call.when is not NEVER)
    ]
    others = {trap.numbers.get(machine) for trap in more}
    traps = [Trap(call.numbers, call.when) for call in calls if call.numbers.get(machine) not in others]
    return code_of([*traps, *more], machine, passes=passes)


class Trap(NamedTuple):
    """A call that a filter traps: its number on each machine, and the instructions that decide."""

    numbers: dict[str, int]
    when: Sequence[_Instruction] = ALWAYS


def code_of(traps: Sequence[Trap], machine: str = MACHINE, *, passes: int = 0) -> bytes:
    """Return the filter that traps these calls, as the kernel takes it: eight bytes an instruction.

    A call with ``passes``, if it is not 0, in its sixth argument is let pass: it is one of ours.
    Raises StepsUnavailable for a machine whose calls are not known.
    """
    if machine not in AUDIT_ARCH:
        msg = f"the machine must be {' or '.join(AUDIT_ARCH)} to trace system calls; got {machine}. Use named points"
        raise StepsUnavailable(msg)
    calls = [trap for trap in traps if machine in trap.numbers]
    ours = [_load(5), (_JUMP_EQUAL, 0, 1, passes), (_RETURN, 0, 0, ALLOW)] if passes else []
    code: list[_Instruction] = [
        *ours,
        # A call of another machine (a 32-bit program) has other numbers: always trapped, and
        # denied.
        (_LOAD, 0, 0, _MACHINE_AT),
        (_JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, NOTIFY),
        # So is the x32 interface of x86_64, which sets bit 30 of the number.
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_GREATER, 0, 1, NUMBER_MAX),
        (_RETURN, 0, 0, NOTIFY),
    ]
    for call in sorted(calls, key=lambda call: (len(call.when) == 1, call.numbers[machine])):
        # ``when`` always returns; otherwise the number stays in the accumulator for the next test.
        code += [(_JUMP_EQUAL, 0, len(call.when), call.numbers[machine]), *call.when]
    code.append((_RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)
