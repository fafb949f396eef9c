"""Isolation: whether transactions ran as their level promises, from what clients saw alone.

    versions      what a history of transactions shows; a checker of one level
    list_append   the order of versions from lists that only grow
    rw_register   the order of versions from registers, as far as it is known
    graph         who must come before whom, and cycles by class
    levels        which level forbids which anomaly

The method is Elle's (Kingsbury and Alvaro, VLDB 2020): a finding is a proof, sentence by sentence,
that no order of the transactions explains what was seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_chaos.checkers.isolation.list_append import ListAppend
from pytest_chaos.checkers.isolation.rw_register import RwRegister
from pytest_chaos.checkers.isolation.versions import FUNCTIONS, Isolation

if TYPE_CHECKING:
    from collections.abc import Collection


def list_append(level: str = "strict-serializable", functions: Collection[str] = FUNCTIONS) -> Isolation:
    """Return the checker of transactions that append to lists and read them.

    Intents and acks of the operations ``functions`` carry the transactions: ``["append", key,
    value]``, whose values are unique within a key, and ``["r", key, list]``, where an intent has
    ``None`` for the list.

    >>> from pytest_chaos.model.calls import Call
    >>> one = [["r", "x", []], ["append", "y", 1]]
    >>> two = [["r", "y", []], ["append", "x", 1]]
    >>> calls = [Call("txn", None, one, one, 0, 0, 2), Call("txn", None, two, two, 1, 1, 3)]
    >>> (finding,) = list_append("serializable").judge(calls)
    >>> print(finding.text)
    G2-item is forbidden under serializable; what was seen allows snapshot-isolation
      T0 = [["r", "x", []], ["append", "y", 1]] by 0
      T1 = [["r", "y", []], ["append", "x", 1]] by 1
      T0 before T1, because T0 did not see T1's append of 1 to 'x';
      but T1 before T0, because T1 did not see T0's append of 1 to 'y': a contradiction
    >>> list_append("snapshot-isolation").judge(calls)
    ()
    """
    return Isolation(ListAppend, level, "list-append", functions)


def rw_register(
    level: str = "strict-serializable",
    functions: Collection[str] = FUNCTIONS,
    *,
    wfr_keys: bool = False,
    sequential_keys: bool = False,
    linearizable_keys: bool = False,
) -> Isolation:
    """Return the checker of transactions that write registers and read them.

    Transactions are lists of ``["w", key, value]``, whose values are unique within a key, and
    ``["r", key, value]``. Lists show more (:func:`list_append`): use them where you can. The
    options are facts about the target that order its versions; see ``isolation.rw_register``.

    >>> from pytest_chaos.model.calls import Call
    >>> written = Call("txn", None, [["w", "x", 1]], [["w", "x", 1]], 0, 0, 1)
    >>> stale = Call("txn", None, [["r", "x", None]], [["r", "x", None]], 1, 2, 3)
    >>> (finding,) = rw_register().judge([written, stale])
    >>> finding.signature
    'isolation:G-single-realtime'
    """
    options = {
        "wfr_keys": wfr_keys, "sequential_keys": sequential_keys, "linearizable_keys": linearizable_keys,
    }  # fmt: skip
    return Isolation(RwRegister, level, "rw-register", functions, **options)
