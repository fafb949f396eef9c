"""The code that reads moved clocks, on both machines, byte by byte.

capstone disassembles each line of the listings. The code of this machine is run in
``test_clocks.py``; unicorn runs that of the other one in ``.ci/nightly`` where it is installed.
"""

from __future__ import annotations

import importlib
import struct

import capstone
import pytest
from pytest_chaos.clocks.cell import MOTIONS_AT, PAGE_BYTES, Motion
from pytest_chaos.clocks.stubs import CODE_AT, MACHINES, MAGIC, SIGNATURE_AT, TRAP_AT, code_in, jump, patch_of
from pytest_chaos.errors import ClockNotMoved

DISASSEMBLERS = {
    "x86_64": capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64),
    "aarch64": capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM),
}
CONSTANTS = {"x86_64": "unicorn.x86_const", "aarch64": "unicorn.arm64_const"}
VDSO_AT = 0x7FFF_F7FC_1000
CODE = VDSO_AT - 0x9000
PROLOGUES = {
    "x86_64": {
        "Linux 6.18": "55 4889e5 4156 53 4883e4f0",
        "endbr64": "f30f1efa 83ff0f 0f87b0000000",
        "relative": "4c8d15e1ffffff 4889e5 55",
    },
    "aarch64": {"Linux 6.6": "7f3e0071 68050054 e30300aa"},
}


def lines(machine: str) -> list[tuple[bytes, str]]:
    """Return bytes and instruction of each line of a listing."""
    rows = [line.split(None, 1) for line in MACHINES[machine].listing.splitlines() if line and line[0] != " "]
    return [(bytes.fromhex(code), text.strip()) for code, text in rows]


def disassembled(machine: str, code: bytes, at: int) -> list[str]:
    """Return the instructions of some code."""
    return [f"{each.mnemonic} {each.op_str}".strip() for each in DISASSEMBLERS[machine].disasm(code, at)]


@pytest.mark.parametrize("machine", MACHINES)
def test_each_line_is_the_instruction_it_says(machine: str) -> None:
    """The bytes of each line are one instruction, which reads as it is written."""
    at = CODE_AT
    for code, text in lines(machine):
        assert disassembled(machine, code, at) == [text]
        at += len(code)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_functions_begin_where_jumps_lead(machine: str) -> None:
    """Each target is the first line of its function, and the page is the cell's neighbour."""
    starts: dict[str, int] = {}
    at, name = CODE_AT, ""
    for line in MACHINES[machine].listing.splitlines():
        if line.startswith("    #"):
            name = line.strip(" #")
        elif line:
            starts.setdefault(name, at)
            at += len(bytes.fromhex(line.split()[0]))
    assert starts == {name.split("_", 3)[-1]: target for name, target in MACHINES[machine].entries.items()}
    assert at < PAGE_BYTES
    loads = [text for _, text in lines(machine) if text.startswith(("lea r10", "adr x12"))]
    motions = PAGE_BYTES + MOTIONS_AT
    assert loads == [f"lea r10, [rip + {motions - 0x78:#x}]" if machine == "x86_64" else f"adr x12, #{motions:#x}"]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_read_by_the_system_call_is_marked_as_ours(machine: str) -> None:
    """Its sixth argument is the word that our filters let pass."""
    text = disassembled(machine, MACHINES[machine].read_by_call, 0)
    low, high = f"{MAGIC & 0xFFFF:#x}", f"{MAGIC >> 16:#x}"
    assert text in (
        [f"mov r9d, {MAGIC:#x}", "mov eax, 0xe4", "syscall", "ret"],
        [f"mov w5, #{low}", f"movk w5, #{high}, lsl #16", "mov x8, #0x71", "svc #0", "ret"],
    )


@pytest.mark.parametrize(
    ("machine", "kernel"), [(machine, kernel) for machine in PROLOGUES for kernel in PROLOGUES[machine]]
)
def test_the_function_as_it_was_is_kept(machine: str, kernel: str) -> None:
    """The instructions under the jump are copied, and go on behind them."""
    nop = b"\x90" if machine == "x86_64" else b"\x1f\x20\x03\xd5"
    image = bytes.fromhex(PROLOGUES[machine][kernel]) + nop * 64
    names = list(MACHINES[machine].entries)
    patch = patch_of(MACHINES[machine], image, dict.fromkeys(names, 0), VDSO_AT, CODE)
    assert not patch.by_call
    assert patch.code[SIGNATURE_AT : SIGNATURE_AT + 8] == b"chaosclk"
    page = disassembled(machine, patch.code[:TRAP_AT], CODE)
    kept = page[: next(i for i, text in enumerate(page, 1) if text.split()[0] in {"jmp", "b"})]
    original = disassembled(machine, image, VDSO_AT)
    behind = int(kept[-1].split("0x")[1], 16)
    taken = next(i for i, each in enumerate(DISASSEMBLERS[machine].disasm(image, VDSO_AT)) if each.address == behind)
    assert kept[-1].split()[0] in {"jmp", "b"}
    assert len(kept) == taken + 1
    for copied, was in zip(kept, original, strict=False):
        if "rip" not in copied and copied.split()[0] not in {"jmp", "b"}:
            assert copied == was


def test_a_relative_address_is_mended() -> None:
    """An address relative to the instruction leads to the same place from elsewhere."""
    image = bytes.fromhex(PROLOGUES["x86_64"]["relative"]).ljust(96, b"\x90")
    patch = patch_of(MACHINES["x86_64"], image, {"__vdso_clock_gettime": 0}, VDSO_AT, CODE)
    (displacement,) = struct.unpack_from("<i", patch.code, 3)
    assert CODE + 7 + displacement == VDSO_AT + 7 - 31


@pytest.mark.parametrize(
    ("machine", "first"),
    [("x86_64", "e800000000"), ("aarch64", "00000090"), ("aarch64", "40000054"), ("aarch64", "60000034")],
)
def test_what_cannot_be_copied_is_read_by_the_system_call(machine: str, first: str) -> None:
    """A call, or an address that only holds in its place, is never executed elsewhere."""
    image = bytes.fromhex(first).ljust(96, b"\x90")
    name = next(iter(MACHINES[machine].entries))
    patch = patch_of(MACHINES[machine], image, {name: 0}, VDSO_AT, CODE)
    assert patch.by_call
    assert patch.code.startswith(MACHINES[machine].read_by_call)


def test_a_vdso_without_a_clock_is_refused() -> None:
    """And a page out of reach: in one sentence each."""
    with pytest.raises(
        ClockNotMoved, match=r"^the vDSO of a process must have a function that reads the clock; got none"
    ):
        patch_of(MACHINES["x86_64"], bytes(96), {}, VDSO_AT, CODE)
    with pytest.raises(ClockNotMoved, match=r"^the page of code must be near the vDSO; got a distance of "):
        jump(MACHINES["aarch64"], 0, 1 << 28)


CLOCKS = [
    (
        Motion(base_ns=1_700_000_000 * 10**9, shown_ns=1_600_000_000 * 10**9, rate=3 << 31, tai_ns=37 * 10**9),
        1_700_000_123 * 10**9 + 456,
    )
]


@pytest.mark.nightly
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("clock", [0, 1, 5, 11])
def test_the_code_shows_what_the_arithmetic_says(machine: str, clock: int) -> None:
    """Both machines' code, emulated, moves an answer as ``Motion.at`` does."""
    pytest.importorskip("unicorn")
    ((motion, real_ns),) = CLOCKS
    shown_ns = emulated(machine, motion, real_ns, clock)
    expected = motion.at(real_ns) + motion.tai_ns * (clock == 11) if clock in {0, 5, 11} else real_ns
    assert shown_ns == expected


def emulated(machine: str, motion: Motion, real_ns: int, clock: int) -> int:
    """Run the code for one clock read; the function as it was stores ``real_ns``."""
    unicorn, names = (importlib.import_module(name) for name in ("unicorn", CONSTANTS[machine]))
    is_x86 = machine == "x86_64"
    base, stack, answer = 0x100000, 0x300000, 0x2FF000
    end = base + 0xF00
    page = bytearray(PAGE_BYTES)
    code = code_in(MACHINES[machine].listing)
    page[CODE_AT : CODE_AT + len(code)] = code
    page[:8] = bytes.fromhex("31c0c39090909090" if is_x86 else "00008052c0035fd6")  # return 0
    cell = bytearray(PAGE_BYTES)
    struct.pack_into("<Q", cell, 0, 5)
    struct.pack_into("<4q", cell, MOTIONS_AT + 5 * 32, motion.base_ns, motion.shown_ns, motion.rate, motion.tai_ns)
    if is_x86:
        engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        first, second, sp = names.UC_X86_REG_RDI, names.UC_X86_REG_RSI, names.UC_X86_REG_RSP
        stack -= 8
    else:
        engine = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        first, second, sp = names.UC_ARM64_REG_X0, names.UC_ARM64_REG_X1, names.UC_ARM64_REG_SP
        engine.reg_write(names.UC_ARM64_REG_X30, end)
    engine.mem_map(base, 2 * PAGE_BYTES)
    engine.mem_map(0x200000, 0x200000)
    engine.mem_write(base, bytes(page))
    engine.mem_write(base + PAGE_BYTES, bytes(cell))
    engine.mem_write(answer, struct.pack("<qq", *divmod(real_ns, 10**9)))
    engine.mem_write(stack, struct.pack("<Q", end))
    for register, value in ((first, clock), (second, answer), (sp, stack)):
        engine.reg_write(register, value)
    engine.emu_start(base + CODE_AT, end, count=1000)
    seconds, rest = struct.unpack("<qq", engine.mem_read(answer, 16))
    return int(seconds * 10**9 + rest)
