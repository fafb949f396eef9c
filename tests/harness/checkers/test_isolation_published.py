"""The expected results of elle-cli for lists and registers, in a notation of our own.

``0:ax1,ry`` is a transaction of process 0 that is known to be committed (``!``: it failed, ``?``:
unknown). It appended 1 to x, and read y, which was empty; ``rx1_2`` read [1, 2], ``wx1`` wrote 1.
Each transaction ended before the next began. The facts are those of github.com/ligurio/elle-cli,
test/elle_cli (2026): whether Elle accepts a history, the anomalies that it names, and the levels
that it excludes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import pytest
from pytest_chaos.checkers.isolation import list_append, rw_register
from pytest_chaos.checkers.isolation.levels import LEVELS
from pytest_chaos.checkers.isolation.rw_register import RwRegister
from pytest_chaos.checkers.isolation.versions import FUNCTIONS, Isolation
from pytest_chaos.model.calls import Call, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

_STRICT = {"strict-serializable"}
_SESSION = _STRICT | {"strong-session-serializable"}
REALTIME: Final = _STRICT | {"strong-snapshot-isolation"}
PROCESS: Final = _SESSION | {"strong-session-snapshot-isolation", "strong-snapshot-isolation"}
SKEW: Final = _SESSION | {"repeatable-read", "serializable"}
SKEW_IN_TIME: Final = SKEW | {"strong-snapshot-isolation"}
INTERNAL: Final = PROCESS | {"snapshot-isolation", "serializable"}
SNAPSHOT: Final = INTERNAL | {"repeatable-read"}
COMMITTED: Final = SNAPSHOT | {"read-committed"}
ALL: Final = frozenset(LEVELS)
NONE: Final[frozenset[str]] = frozenset()

PAPER = (
    "1:ap1,ap3,ap4,aq2,aq3,aq4,aq5,as1,as2 1:aq8,rp1_3_4 1:as4,rq2_3_4_5_8,rs1_2_4,rp1_3_4 1:at10,rp1_3_4,rq2_3_4_5,as3"
)
LISTS: dict[str, tuple[str, str, frozenset[str] | set[str]]] = {
    "single-append-read": ("0:ax1 0:rx1", "", NONE),
    "multiple-appends": ("0:ax1,ax2 0:rx1_2", "", NONE),
    "different-keys": ("0:ax1 1:ay2 0:rx1,ry2", "", NONE),
    "multiple-processes": ("0:ax1 1:ax2 2:rx1_2", "", NONE),
    "info-read": ("0:ax1 0?rx", "", NONE),
    "g0-cycle": ("0:ax1,ay1 1:ax2,ay2 2:rx1_2,ry2_1", "G0", ALL),
    "g1a-aborted-read": ("0!ax1 1:rx1", "G1a", COMMITTED),
    "g1b-intermediate-read": ("0:ax1 1:ax2 2:rx1", "G-single-realtime", REALTIME),
    "g1c-circular-information-flow": ("0:ax1,ry1 1:ax2,ay1 2:rx1_2", "G1c", COMMITTED),
    "g-single-item": ("0:ax1,ay1 1:ax2,ry 2:rx1_2", "G-single", SNAPSHOT),
    "g2-item": ("0:ax1,ry 1:ay1,rx", "G2-item", SKEW_IN_TIME),
    "incompatible-order": ("0:ax1 0:ax3 1:rx1_3 0:ax2 1:rx1_2_3", "incompatible-order", COMMITTED),
    "lost-update": ("0:ax0 1:rx0,ax1 2:rx0,ax2", "G2-item lost-update", SNAPSHOT),
    "dirty-update": ("0!ax1 1:ax2 2:rx1_2", "G1a dirty-update", COMMITTED),
    "future-read": ("0:rx1,ax1", "future-read", COMMITTED),
    "duplicate-elements": ("0:ax1 1:rx1_1", "duplicate-elements", ALL),
    "internal": ("0:ax1,ax2 1:rx1,rx1_2", "G-single G1b internal", COMMITTED),
    "partial-read-single-txn": ("0:ax1,ax2 1:rx1,rx1_2", "G-single G1b internal", COMMITTED),
    "partial-read-diff-processes": ("0:ax1,ax2 2:rx1 3:rx1_2", "G-single G1b", COMMITTED),
    "append-too-many-partial-read": ("0:ax1,ax2,ax3 2:rx1_2", "G1b", COMMITTED),
    "append-too-many-partial-read-ext": ("0:ax1,ax2,ax3 2:rx1_2 3:rx1_2_3", "G-single G1b", COMMITTED),
    "partial-read-twice": ("0:ax1 1:ax2 2:rx1,rx1_2", "G-single internal", SNAPSHOT),
    "internal-unknown-prefix": ("0:ax1 1:ax2,rx1", "internal", INTERNAL),
    "dirty-update-info-fail": (
        "0:ax1 0?ax2 0?ax3 0:ax4 0!ax5 0?ax6 0!ax7 0!ax8 0:ax9 0?ax10 0:ax11 1:rx1_2_3_4_5_6_7_8_9_10_11",
        "G1a dirty-update",
        COMMITTED,
    ),
    "paper-example, and the three of other levels": (PAPER, "G-single", SNAPSHOT),
}
KEYS: Final = (
    "0:wx1 1:wy2 2:wz3 0:rx1 1:ry2 2:rz3 0:wy1 1:wz2 2:wx4 0:ry1 1:rz2 2:rx4 "
    "0:wz1 1:wx3 2:wy4 0:rz1 1:rx3 2:ry4 0:wx2 1:wy3 2:wz4 0:rx2 1:ry3 2:rz4"
)
REGISTERS: dict[str, tuple[str, str, frozenset[str] | set[str], dict[str, bool]]] = {
    "single-write-read": ("0:wx2 0:rx2", "", NONE, {}),
    "different-keys": ("0:wx1 1:wy2 0:rx1,ry2", "", NONE, {}),
    "overwrite-read": ("0:wx1 0:wx2 0:rx2", "", NONE, {}),
    "transaction-order-valid": ("0:wx1 0:wx2 1:rx2", "", NONE, {}),
    "repeat-read": ("0:wx1 1:rx1,rx1", "", NONE, {}),
    "read-nil": ("0:rx", "", NONE, {}),
    "internal": ("0:wx2,rx3", "internal", INTERNAL, {}),
    "g1a-aborted-read": ("0!wx2 1:rx2", "G1a", COMMITTED, {}),
    "g1b-intermediate-read": ("0:wx1,wx2 1:rx1", "G1b", COMMITTED, {}),
    "lost-update": ("0:wx0 1:rx0,wx1 2:rx0,wx2", "lost-update", SNAPSHOT, {}),
    "g-single-item": ("0:wx1 1:rx1,wy1 2:ry1,rx", "G-single", SNAPSHOT, {}),
    "g2-item, and the three of other levels": ("0:rx,wy1 1:ry,wx1", "G2-item", SKEW_IN_TIME, {}),
    "keys-sequential-valid": (KEYS, "", NONE, {"sequential_keys": True}),
    "keys-sequential-anomaly": ("0:rx1 0:wx1", "G1c-realtime", PROCESS, {"sequential_keys": True}),
    "process-anomaly": ("0:rx1 0:wx1", "G1c-process", PROCESS, {}),
    "keys-linearizable-valid": ("0:wx1 1:rx1", "", NONE, {"linearizable_keys": True}),
    "keys-linearizable-anomaly": ("0:wx1 1:rx2 0:rx1", "cyclic-versions", ALL, {"linearizable_keys": True}),
    "keys-wfr-valid": ("0:rx,wx1 1:rx1,wx2 2:rx5", "", NONE, {"wfr_keys": True}),
    "partial-info": ("0:wx1 1?rx1 2?rx1 3?rx2", "", NONE, {"linearizable_keys": True}),
}
OUTCOMES: Final = {":": Outcome.OK, "!": Outcome.FAIL, "?": Outcome.UNKNOWN}


def calls(text: str) -> list[Call]:
    """Return the transactions of a text in the notation above."""
    found = []
    is_lists = "a" in text
    for nth, word in enumerate(text.split()):
        process, outcome, steps = word[0], OUTCOMES[word[1]], []
        for function, key, values in re.findall(r"([arw])([a-z])([\d_]*)", word[2:]):
            numbers = [int(each) for each in values.split("_") if each]
            value: Any = numbers if function == "r" and is_lists else numbers[0] if numbers else None
            steps.append(["append" if function == "a" else function, key, value])
        end = None if outcome is Outcome.UNKNOWN else 2 * nth + 1
        found.append(Call("txn", None, steps, steps, int(process), 2 * nth, end, outcome))
    return found


def check(made: Callable[[str], Isolation], text: str, names: str, excluded: frozenset[str] | set[str]) -> None:
    """Expect Elle's anomalies among ours, and its levels.

    Where the process shows a cycle, Elle stops at real time.

    An own write that is not seen, or a list that changes within a transaction, is no
    repeatable read here: each of Adya's levels presumes that a transaction sees its own writes.
    """
    found = set(made("strict-serializable").anomalies(calls(text)))
    assert not {name for name in names.split() if not {name, name.replace("-realtime", "-process")} & found}, found
    refused = {level for level in LEVELS if any(each.kind == "safety" for each in made(level).judge(calls(text)))}
    assert refused == set(excluded) | ({"repeatable-read"} if "internal" in found else set())


@pytest.mark.parametrize("name", LISTS)
def test_lists_as_elle_cli_expects(name: str) -> None:
    """Each history of lists shows Elle's anomalies, and excludes the same levels."""
    check(list_append, *LISTS[name])


@pytest.mark.parametrize("name", REGISTERS)
def test_registers_as_elle_cli_expects(name: str) -> None:
    """Each history of registers shows Elle's anomalies, and excludes the same levels."""
    text, names, excluded, options = REGISTERS[name]
    check(lambda level: Isolation(RwRegister, level, "rw-register", FUNCTIONS, **options), text, names, excluded)


@pytest.mark.parametrize(
    ("made", "text"),
    [(list_append, "0:ax1 0:ax2"), (list_append, ""), (rw_register, "0:wx1 1:wy2"), (rw_register, "")],
)
def test_what_read_nothing_is_undecided(made: Callable[[], Isolation], text: str) -> None:
    """Writes alone, or no transaction at all, prove nothing. Elle says unknown without an edge."""
    (finding,) = made().judge(calls(text))
    assert finding.kind == "harness"
