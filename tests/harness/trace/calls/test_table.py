"""The table: numbers are the kernel's own; the filter traps what it should, on both machines."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from pytest_chaos.trace.calls import decoder  # noqa: F401 - declares the calls
from pytest_chaos.trace.calls.copies import CLONE, CLONE_RANGE
from pytest_chaos.trace.calls.metadata import F_SETFL, F_SETLK, F_SETLKW, MAP_SHARED, PROT_WRITE
from pytest_chaos.trace.calls.paths import OPEN_FLAGS
from pytest_chaos.trace.calls.table import ALLOW, NOTIFY, NUMBER_MAX, TABLE, filter_code
from pytest_chaos.trace.kernel import AUDIT_ARCH

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
MACHINES = tuple(AUDIT_ARCH)
NUMBERS = {
    machine: {call.name: call.numbers[machine] for call in TABLE if machine in call.numbers} for machine in MACHINES
}
CLOSES = {call.name for call in TABLE if call.is_close}
CONDITIONAL = {"open", "openat", "open_by_handle_at", "mmap", "mprotect", "pkey_mprotect", "ioctl", "fcntl"} | {
    "exit_group",
    "read",
}
ALWAYS = {
    machine: {number for name, number in numbers.items() if name not in CONDITIONAL}
    for machine, numbers in NUMBERS.items()
}
VERDICTS = {
    ("x86_64", True): "d4b5b51baeef1d44",
    ("x86_64", False): "1f41c457b7baff71",
    ("aarch64", True): "11be76b2df018ed1",
    ("aarch64", False): "9825298371a05e24",
}
"""Digests of the verdicts about all calls with many arguments: only an added call changes them."""


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    """Each call that this machine's headers know has this number; they may not know newer ones."""
    if not HEADERS[machine].exists():
        pytest.skip(f"there are no kernel headers for {machine} here")
    text = HEADERS[machine].read_text()
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    ours = {name: number for name, number in NUMBERS[machine].items() if name in known}
    assert ours == {name: known[name] for name in ours}
    assert len(NUMBERS[machine]) - len(ours) <= 2
    assert max(number for number in known.values() if number < 1000) <= NUMBER_MAX


def run(program: bytes, machine: int, number: int, arguments: tuple[int, ...] = (0,) * 6) -> int:
    """Run a filter as the kernel does, on one call, and return its verdict."""
    data = struct.pack("<iIQ6Q", number, machine, 0, *arguments)
    instructions = [struct.unpack_from("HBBI", program, place) for place in range(0, len(program), 8)]
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, operand = instructions[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x25:
                at += if_true if accumulator > operand else if_false
            case 0x45:
                at += if_true if accumulator & operand else if_false
            case 0x06:
                return int(operand)
            case _:
                pytest.fail(f"the filter has an instruction {code:#x} that nobody meant")


@pytest.mark.parametrize("machine", MACHINES)
@given(number=st.integers(0, NUMBER_MAX + 100), argument=st.integers(0, 2**32 - 1))
def test_the_filter_traps_what_may_change_files_and_nothing_else(machine: str, number: int, argument: int) -> None:
    """Listed calls always, opens and mappings by their flags, higher numbers always, no others."""
    numbers = NUMBERS[machine]
    named = {value: name for name, value in numbers.items()}.get(number, "")
    verdict = run(filter_code(machine), AUDIT_ARCH[machine], number, (argument,) * 6)
    expected = number in ALWAYS[machine] or number > NUMBER_MAX
    if named in {"open", "openat", "open_by_handle_at"}:
        expected = bool(argument & OPEN_FLAGS)
    elif named == "mmap":
        expected = bool(argument & MAP_SHARED)
    elif named in {"mprotect", "pkey_mprotect"}:
        expected = bool(argument & PROT_WRITE)
    elif named == "ioctl":
        expected = argument in {CLONE, CLONE_RANGE}
    elif named == "fcntl":
        expected = argument == F_SETFL
    assert verdict == (NOTIFY if expected else ALLOW)


@pytest.mark.parametrize("machine", MACHINES)
def test_closes_may_be_left_out(machine: str) -> None:
    """Then they pass, and everything else is trapped as before."""
    without, whole = filter_code(machine, closes=False), filter_code(machine)
    for name, number in NUMBERS[machine].items():
        both = [run(program, AUDIT_ARCH[machine], number, (2**32 - 1,) * 6) for program in (without, whole)]
        assert both[0] == (ALLOW if name in CLOSES else both[1])


@pytest.mark.parametrize("machine", MACHINES)
def test_a_filter_for_touches_also_traps_opens_locks_reads_and_exits(machine: str) -> None:
    """And everything else that the plain filter traps, and nothing more."""
    plain, wide = filter_code(machine), filter_code(machine, touches=True)
    more = {
        (name, argument)
        for name, number in NUMBERS[machine].items()
        for argument in (0, F_SETFL, F_SETLK, F_SETLKW, 2**32 - 1)
        if run(plain, AUDIT_ARCH[machine], number, (argument,) * 6)
        != run(wide, AUDIT_ARCH[machine], number, (argument,) * 6)
    }
    opens = {(name, 0) for name in ("open", "openat") if name in NUMBERS[machine]}
    opens |= {
        (name, argument) for name, _ in opens for argument in (F_SETFL, F_SETLK, F_SETLKW) if not argument & OPEN_FLAGS
    }
    locks = {("fcntl", F_SETLK), ("fcntl", F_SETLKW)}
    always = {
        (name, argument) for name in ("exit_group", "read") for argument in (0, F_SETFL, F_SETLK, F_SETLKW, 2**32 - 1)
    }
    assert more == opens | locks | always


@pytest.mark.parametrize(("machine", "closes"), VERDICTS)
def test_the_filter_decides_as_it_always_did(machine: str, *, closes: bool) -> None:
    """The verdict about every call, with many arguments; adding a call changes its digest."""
    code = filter_code(machine, closes=closes)
    arguments = [0, *(1 << bit for bit in range(32)), CLONE, CLONE_RANGE, 3, 5, 2**32 - 1, 1 << 32]
    verdicts = [
        run(code, AUDIT_ARCH[machine], number, (argument,) * 6) for number in range(-1, 600) for argument in arguments
    ]
    assert hashlib.sha256(repr(verdicts).encode()).hexdigest()[:16] == VERDICTS[machine, closes]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_call_of_another_machine_is_trapped(machine: str) -> None:
    """A 32-bit call on a 64-bit kernel has other numbers: it is looked at whatever it is."""
    assert run(filter_code(machine), 0x40000003, 3) == NOTIFY
    assert run(filter_code(machine), AUDIT_ARCH[machine], 0x40000001) == NOTIFY


@pytest.mark.parametrize("machine", MACHINES)
def test_reading_is_free(machine: str) -> None:
    """A file that is opened for reading, or for writing what is there, costs nothing."""
    openat = NUMBERS[machine]["openat"]
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC):
        assert run(filter_code(machine), AUDIT_ARCH[machine], openat, (0, 0, flags, 0, 0, 0)) == ALLOW
    assert run(filter_code(machine), AUDIT_ARCH[machine], openat, (0, 0, os.O_CREAT, 0, 0, 0)) == NOTIFY
