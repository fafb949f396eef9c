"""The filter: a small program for the kernel that says which calls the supervisor hears of. Pure.

It is classic BPF over ``struct seccomp_data`` (number, machine, instruction pointer, six arguments). Everything that it
does not name passes at full speed; so the many calls that only read cost nothing, and an ``open`` is trapped only with
flags that make, empty or specially open a file.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from harness.steps.syscalls import AUDIT_ARCH, CLOSES, NUMBER_MAX, NUMBERS

if TYPE_CHECKING:
    from collections.abc import Sequence

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

TMPFILE_BIT: Final = 0o20000000
"""What tells O_TMPFILE from O_DIRECTORY, which it contains."""
OPEN_FLAGS: Final = os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_SYNC | os.O_DSYNC | TMPFILE_BIT
PROT_WRITE: Final = 2
MAP_SHARED: Final = 1
SET_FLAGS_COMMAND: Final = 4
"""F_SETFL of fcntl, which may make a file append."""
CLONE: Final = 0x40049409
"""FICLONE, an ioctl: share all blocks of another file, whose descriptor is the argument."""
CLONE_RANGE: Final = 0x4020940D
"""FICLONERANGE: share some of them; the argument is the address of four numbers of eight bytes each."""
CLONE_COMMANDS: Final = (CLONE, CLONE_RANGE)

_Instruction = tuple[int, int, int, int]


def program(machine: str, *, closes: bool = True) -> bytes:
    """Return the filter for a machine, as the kernel takes it: eight bytes an instruction.

    With ``closes`` it traps what closes files, too: who hears of that need not ask with each write where it goes.
    """
    numbers = {name: number for name, number in NUMBERS[machine].items() if closes or name not in CLOSES}
    instructions: list[_Instruction] = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, NOTIFY),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_GREATER, 0, 1, NUMBER_MAX),
        (_RETURN, 0, 0, NOTIFY),
    ]
    for name, argument in (("open", 1), ("openat", 2), ("open_by_handle_at", 2)):
        if name in numbers:
            instructions += _if_number(numbers.pop(name), _if_set(argument, OPEN_FLAGS))
    instructions += _if_number(numbers.pop("mmap"), _if_set(3, MAP_SHARED))
    instructions += _if_number(numbers.pop("mprotect"), _if_set(2, PROT_WRITE))
    instructions += _if_number(numbers.pop("fcntl"), _if_equal(1, (SET_FLAGS_COMMAND,)))
    instructions += _if_number(numbers.pop("ioctl"), _if_equal(1, CLONE_COMMANDS))
    for number in numbers.values():
        instructions += _if_number(number, [(_RETURN, 0, 0, NOTIFY)])
    instructions.append((_RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


def _if_number(number: int, then: Sequence[_Instruction]) -> list[_Instruction]:
    """Do this for one call; ``then`` always returns. The number is in the accumulator, and stays there."""
    return [(_JUMP_EQUAL, 0, len(then), number), *then]


def _if_set(argument: int, bits: int) -> list[_Instruction]:
    """Notify where the argument has one of the bits, else allow."""
    return [*_load(argument), (_JUMP_SET, 0, 1, bits), (_RETURN, 0, 0, NOTIFY), (_RETURN, 0, 0, ALLOW)]


def _if_equal(argument: int, values: Sequence[int]) -> list[_Instruction]:
    """Notify where the argument is one of the values, else allow."""
    tests = [instruction for value in values for instruction in ((_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, NOTIFY))]
    return [*_load(argument), *tests, (_RETURN, 0, 0, ALLOW)]


def _load(argument: int) -> list[_Instruction]:
    """Load the low half of an argument: flags and descriptors fit into it."""
    return [(_LOAD, 0, 0, _ARGUMENT_AT + 8 * argument)]
