"""The code that reads a moved clock, for each machine, and the jumps to it in a vDSO.

A clock read never enters the kernel: it runs in the vDSO, a page of code in each process. There the
first instruction of each function that reads the wall clock is replaced by a jump to the code here.
It calls the function as it was, and moves the answer by the cell (``cell``) in the page behind it.
Of the function as it was, only the instructions under the jump are needed: they are copied. If one
of them cannot be moved, the system call is made in place of the function, which costs more.

    0x00   the function as it was: the copied instructions, and a jump behind the replaced ones
    0x20   a trap, to which a helper call returns
    0x28   the signature, by which a patched process is known
    0x40   the code of the listing

Only REALTIME, REALTIME_COARSE and TAI are moved. The code keeps to the calling conventions of C,
so Go calls it as well. Each line of a listing has the bytes and the instruction; capstone compares
them in ``tests/harness/clocks/test_stubs.py``. Pure.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.clocks.cell import PAGE_BYTES
from pytest_chaos.errors import ClockNotMoved

if TYPE_CHECKING:
    from collections.abc import Mapping

MAGIC: Final = 0x6B636C63
"""In the sixth argument of a call of ours, which no filter of ours stops."""
SIGNATURE: Final = b"chaosclk"
TRAP_AT: Final = 0x20
SIGNATURE_AT: Final = 0x28
CODE_AT: Final = 0x40

X86_64: Final = """
    # clock_gettime
85ff                 test edi, edi
740a                 je 0x4e
83ff05               cmp edi, 5
7405                 je 0x4e
83ff0b               cmp edi, 0xb
75b2                 jne 0
53                   push rbx
57                   push rdi
55                   push rbp
4889f3               mov rbx, rsi
89fd                 mov ebp, edi
83ff0b               cmp edi, 0xb
7502                 jne 0x5d
31ff                 xor edi, edi
e89effffff           call 0
85c0                 test eax, eax
7559                 jne 0xbf
48693300ca9a3b       imul rsi, qword ptr [rbx], 0x3b9aca00
48037308             add rsi, qword ptr [rbx + 8]
4c8d15c80f0000       lea r10, [rip + 0xfc8]
4d8b42c0             mov r8, qword ptr [r10 - 0x40]
4589c1               mov r9d, r8d
4183e13f             and r9d, 0x3f
41c1e105             shl r9d, 5
4d01d1               add r9, r10
4889f0               mov rax, rsi
492b01               sub rax, qword ptr [r9]
49f76910             imul qword ptr [r9 + 0x10]
480facd020           shrd rax, rdx, 0x20
49034108             add rax, qword ptr [r9 + 8]
83fd0b               cmp ebp, 0xb
7504                 jne 0xa6
49034118             add rax, qword ptr [r9 + 0x18]
4d3b42c0             cmp r8, qword ptr [r10 - 0x40]
75cc                 jne 0x78
31d2                 xor edx, edx
b900ca9a3b           mov ecx, 0x3b9aca00
48f7f1               div rcx
488903               mov qword ptr [rbx], rax
48895308             mov qword ptr [rbx + 8], rdx
31c0                 xor eax, eax
5d                   pop rbp
5f                   pop rdi
5b                   pop rbx
c3                   ret
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
    # gettimeofday
53                   push rbx
55                   push rbp
4883ec18             sub rsp, 0x18
4889fb               mov rbx, rdi
4889f5               mov rbp, rsi
4885ff               test rdi, rdi
7426                 je 0x107
31ff                 xor edi, edi
4889e6               mov rsi, rsp
e855ffffff           call 0x40
85c0                 test eax, eax
7531                 jne 0x120
4869442408d34d6210   imul rax, qword ptr [rsp + 8], 0x10624dd3
48c1e826             shr rax, 0x26
488b0c24             mov rcx, qword ptr [rsp]
48890b               mov qword ptr [rbx], rcx
48894308             mov qword ptr [rbx + 8], rax
31c0                 xor eax, eax
4885ed               test rbp, rbp
7412                 je 0x120
31ff                 xor edi, edi
4889ee               mov rsi, rbp
41b9636c636b         mov r9d, 0x6b636c63
b860000000           mov eax, 0x60
0f05                 syscall
4883c418             add rsp, 0x18
5d                   pop rbp
5b                   pop rbx
c3                   ret
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
cc                   int3
    # time
53                   push rbx
4883ec10             sub rsp, 0x10
4889fb               mov rbx, rdi
bf05000000           mov edi, 5
4889e6               mov rsi, rsp
e8fbfeffff           call 0x40
85c0                 test eax, eax
750e                 jne 0x157
488b0424             mov rax, qword ptr [rsp]
4885db               test rbx, rbx
740c                 je 0x15e
488903               mov qword ptr [rbx], rax
eb07                 jmp 0x15e
48c7c0ffffffff       mov rax, 0xffffffffffffffff
4883c410             add rsp, 0x10
5b                   pop rbx
c3                   ret
"""

AARCH64: Final = """
    # clock_gettime
a0000034             cbz w0, #0x54
1f140071             cmp w0, #5
60000054             b.eq #0x54
1f2c0071             cmp w0, #0xb
81fdff54             b.ne #0
fd7bbea9             stp x29, x30, [sp, #-0x20]!
fd030091             mov x29, sp
f35301a9             stp x19, x20, [sp, #0x10]
f30301aa             mov x19, x1
f403002a             mov w20, w0
1f2c0071             cmp w0, #0xb
e003801a             csel w0, wzr, w0, eq
e4ffff97             bl #0
80030035             cbnz w0, #0xe4
692a40a9             ldp x9, x10, [x19]
0b409952             mov w11, #0xca00
4b73a772             movk w11, #0x3b9a, lsl #16
29290b9b             madd x9, x9, x11, x10
cc7d0010             adr x12, #0x1040
8d0101d1             sub x13, x12, #0x40
aefddfc8             ldar x14, [x13]
cf154092             and x15, x14, #0x3f
8f150f8b             add x15, x12, x15, lsl #5
f04540a9             ldp x16, x17, [x15]
e82941a9             ldp x8, x10, [x15, #0x10]
300110cb             sub x16, x9, x16
077e089b             mul x7, x16, x8
067e489b             smulh x6, x16, x8
c780c793             extr x7, x6, x7, #0x20
e700118b             add x7, x7, x17
9f2e0071             cmp w20, #0xb
4a019f9a             csel x10, x10, xzr, eq
e7000a8b             add x7, x7, x10
bf3903d5             dmb ishld
a60140f9             ldr x6, [x13]
df000eeb             cmp x6, x14
01feff54             b.ne #0x90
e608cb9a             udiv x6, x7, x11
c79c0b9b             msub x7, x6, x11, x7
661e00a9             stp x6, x7, [x19]
00008052             mov w0, #0
f35341a9             ldp x19, x20, [sp, #0x10]
fd7bc2a8             ldp x29, x30, [sp], #0x20
c0035fd6             ret
1f2003d5             nop
1f2003d5             nop
1f2003d5             nop
    # gettimeofday
fd7bbda9             stp x29, x30, [sp, #-0x30]!
fd030091             mov x29, sp
f35301a9             stp x19, x20, [sp, #0x10]
f30300aa             mov x19, x0
f40301aa             mov x20, x1
200100b4             cbz x0, #0x134
00008052             mov w0, #0
e1830091             add x1, sp, #0x20
c9ffff97             bl #0x40
a0010035             cbnz w0, #0x154
e92b42a9             ldp x9, x10, [sp, #0x20]
0b7d8052             mov w11, #0x3e8
4a09cb9a             udiv x10, x10, x11
692a00a9             stp x9, x10, [x19]
00008052             mov w0, #0
f40000b4             cbz x20, #0x154
000080d2             mov x0, #0
e10314aa             mov x1, x20
658c8d52             mov w5, #0x6c63
656cad72             movk w5, #0x6b63, lsl #16
281580d2             mov x8, #0xa9
010000d4             svc #0
f35341a9             ldp x19, x20, [sp, #0x10]
fd7bc3a8             ldp x29, x30, [sp], #0x30
c0035fd6             ret
"""


class Machine(NamedTuple):
    """What differs between machines. ``entries`` are functions of the vDSO, and our code for each.

    ``reach_bytes`` is how far a jump in a vDSO reaches. ``call`` is the instruction that enters the
    kernel.
    """

    listing: str
    entries: Mapping[str, int]
    reach_bytes: int
    call: bytes
    trap: bytes
    read_by_call: bytes
    """A clock read by the system call, for a function that cannot be called as it was."""


MACHINES: Final[Mapping[str, Machine]] = {
    "x86_64": Machine(
        X86_64,
        {"__vdso_clock_gettime": 0x40, "__vdso_gettimeofday": 0xD0, "__vdso_time": 0x130},
        reach_bytes=1 << 31,
        call=bytes.fromhex("0f05"),
        trap=bytes.fromhex("cc"),
        # mov r9d, MAGIC; mov eax, 228; syscall; ret
        read_by_call=bytes.fromhex("41b9636c636b b8e4000000 0f05 c3"),
    ),
    "aarch64": Machine(
        AARCH64,
        {"__kernel_clock_gettime": 0x40, "__kernel_gettimeofday": 0xFC},
        reach_bytes=1 << 27,
        call=bytes.fromhex("010000d4"),
        trap=bytes.fromhex("000020d4"),
        # mov w5, #0x6c63; movk w5, #0x6b63, lsl #16; mov x8, #113; svc #0; ret
        read_by_call=bytes.fromhex("658c8d52 656cad72 280e80d2 010000d4 c0035fd6"),
    ),
}


class Patch(NamedTuple):
    """What is written: the page of code, and in the vDSO for each address the bytes there.

    ``by_call`` says that clocks are read by the system call.
    """

    code: bytes
    jumps: Mapping[int, bytes]
    by_call: bool


def patch_of(machine: Machine, image: bytes, symbols: Mapping[str, int], vdso_at: int, code_at: int) -> Patch:
    """Return the patch of a vDSO at ``vdso_at``, with the page of code at ``code_at``.

    Raises ClockNotMoved if the vDSO reads no clock, or the page is out of reach.
    """
    entries = {symbols[name]: target for name, target in machine.entries.items() if name in symbols}
    first = symbols.get(next(iter(machine.entries)))
    if first is None:
        msg = (
            "the vDSO of a process must have a function that reads the clock; got none. Its clock cannot be moved here"
        )
        raise ClockNotMoved(msg)
    relocate = _relocated_x86_64 if machine is MACHINES["x86_64"] else _relocated_aarch64
    original = relocate(image[first : first + 64], vdso_at + first, code_at)
    page = bytearray(PAGE_BYTES)
    as_it_was = original or machine.read_by_call
    page[: len(as_it_was)] = as_it_was
    page[TRAP_AT : TRAP_AT + len(machine.trap)] = machine.trap
    page[SIGNATURE_AT:CODE_AT] = SIGNATURE.ljust(CODE_AT - SIGNATURE_AT, b"\0")
    code = code_in(machine.listing)
    page[CODE_AT : CODE_AT + len(code)] = code
    jumps = {vdso_at + at: jump(machine, vdso_at + at, code_at + target) for at, target in entries.items()}
    return Patch(bytes(page), jumps, original is None)


def code_in(listing: str) -> bytes:
    """Return the bytes of a listing."""
    lines = (line for line in listing.splitlines() if line and not line.startswith(" "))
    return bytes.fromhex("".join(line.split()[0] for line in lines))


def jump(machine: Machine, at: int, target: int) -> bytes:
    """Return a jump from an address to another. Raises ClockNotMoved if that is out of reach."""
    distance = target - at
    if not -machine.reach_bytes < distance < machine.reach_bytes - 16:
        msg = f"the page of code must be near the vDSO; got a distance of {distance:,} bytes. Its clock cannot be moved"
        raise ClockNotMoved(msg)
    if machine is MACHINES["x86_64"]:
        return b"\xe9" + struct.pack("<i", distance - 5)
    return struct.pack("<I", 0x14000000 | (distance >> 2 & 0x3FFFFFF))


def jump_target(machine: Machine, at: int, code: bytes) -> int | None:
    """Return where a jump of ours at an address leads, or None for another instruction.

    >>> x86 = MACHINES["x86_64"]
    >>> hex(jump_target(x86, 0x1000, jump(x86, 0x1000, 0x2040)))
    '0x2040'
    """
    if machine is MACHINES["x86_64"]:
        return at + 5 + struct.unpack_from("<i", code, 1)[0] if code[:1] == b"\xe9" else None
    word = int.from_bytes(code[:4], "little")
    if word >> 26 != 0b000101:
        return None
    words = word & 0x3FFFFFF
    return at + 4 * (words - (1 << 26) if words >> 25 else words)


_JUMP_BYTES: Final = 5
_ORIGINAL_BYTES: Final = TRAP_AT


def _relocated_x86_64(code: bytes, at: int, to: int) -> bytes | None:
    """Return the first instructions as they must be elsewhere, and a jump behind them."""
    moved = b""
    taken = 0
    while taken < _JUMP_BYTES:
        length, displacement_at = _length_x86_64(code[taken:])
        if length == 0:
            return None
        instruction = bytearray(code[taken : taken + length])
        if displacement_at:  # relative to the next instruction
            (displacement,) = struct.unpack_from("<i", instruction, displacement_at)
            displacement += (at + taken) - (to + len(moved))
            if not -(1 << 31) <= displacement < 1 << 31:
                return None
            struct.pack_into("<i", instruction, displacement_at, displacement)
        moved += instruction
        taken += length
    distance = at + taken - (to + len(moved) + 5)
    moved += b"\xe9" + struct.pack("<i", distance)
    return moved if len(moved) <= _ORIGINAL_BYTES else None


_REGISTER_FORMS: Final = frozenset({0x31, 0x33, 0x85, 0x89, 0x8B, 0x63})
"""xor, test, mov, movsxd between registers."""


def _length_x86_64(code: bytes) -> tuple[int, int]:
    """Return the length of an instruction that compilers begin functions with; 0 for any other.

    The second is where its displacement is, if it is relative to the instruction pointer.
    """
    if code[:4] == bytes.fromhex("f30f1efa"):  # endbr64
        return 4, 0
    prefix = 1 if 0x40 <= code[0] <= 0x4F else 0
    opcode, form = code[prefix], code[prefix + 1]
    is_register = form >> 6 == 3
    is_relative = form & 0xC7 == 5
    length, displacement_at = 0, 0
    if 0x50 <= opcode <= 0x57:  # push
        length = prefix + 1
    elif 0xB8 <= opcode <= 0xBF and prefix == 0:  # mov to 32 bits
        length = 5
    elif opcode in _REGISTER_FORMS and is_register:
        length = prefix + 2
    elif opcode == 0x83 and is_register:  # add, and, sub, cmp with 8 bits
        length = prefix + 3
    elif opcode == 0x81 and is_register:  # with 32 bits
        length = prefix + 6
    elif opcode in {0x8D, 0x8B} and is_relative:  # lea, mov
        length, displacement_at = prefix + 6, prefix + 2
    elif opcode == 0x83 and is_relative:  # cmp with 8 bits
        length, displacement_at = prefix + 7, prefix + 2
    elif opcode == 0x81 and is_relative:  # cmp with 32 bits
        length, displacement_at = prefix + 10, prefix + 2
    return length, displacement_at


def _relocated_aarch64(code: bytes, at: int, to: int) -> bytes | None:
    """Return the first instruction and a jump behind it; None if it is relative to its place."""
    word = int.from_bytes(code[:4], "little")
    is_address = word & 0x1F000000 == 0x10000000  # adr, adrp
    is_load = word & 0x3B000000 == 0x18000000  # ldr of a literal
    is_compare_branch = word & 0x7C000000 == 0x34000000  # cbz, cbnz, tbz, tbnz
    if is_address or is_load or is_compare_branch or _is_branch_aarch64(word):
        return None
    return code[:4] + jump(MACHINES["aarch64"], to + 4, at + 4)


def _is_branch_aarch64(word: int) -> bool:
    """Whether an instruction is b, bl or b.cond, whose target is relative to its place."""
    return word & 0x7C000000 == 0x14000000 or word & 0xFF000010 == 0x54000000
