"""The operators: each on a small source, with the exact result; ids, probes and names."""

from __future__ import annotations

import ast

import pytest
from pytest_chaos.mutate import sql
from pytest_chaos.mutate.mutants import compiled_mutant, compiled_with_probes, derived_names, mutants_of, users_of
from pytest_chaos.mutate.operators import NAMES, edits

CASES = [
    ("sql-drop-conjunct", "Q = 'DELETE FROM t WHERE a = ? AND b = 1'", [
        "Q = 'DELETE FROM t WHERE (? IS NULL OR 1 = 1) AND b = 1'", "Q = 'DELETE FROM t WHERE a = ?'"]),
    ("sql-drop-conjunct", "Q = f'SELECT {c} FROM t WHERE a = {x} AND b = 1'", [
        "Q = f'SELECT {c} FROM t WHERE b = 1'", "Q = f'SELECT {c} FROM t WHERE a = {x}'"]),
    ("sql-weaken", "Q = 'SELECT a FROM t WHERE token = ? AND expires > ?'", [
        "Q = 'SELECT a FROM t WHERE token >= ? AND expires > ?'",
        "Q = 'SELECT a FROM t WHERE token = ? AND expires >= ?'"]),
    ("sql-bound", "Q = 'SELECT a FROM t WHERE expires <= ?'", ["Q = 'SELECT a FROM t WHERE expires < ?'"]),
    ("sql-order", "Q = 'SELECT a FROM t ORDER BY p DESC, a'", ["Q = 'SELECT a FROM t ORDER BY p ASC, a'"]),
    ("sql-drop-count", "Q = 'UPDATE t SET n = n + 1, b = ? WHERE a = ?'", [
        "Q = 'UPDATE t SET n = n, b = ? WHERE a = ?'"]),
    ("ignore-rowcount", "def f(c):\n    if c.rowcount != 1:\n        raise E\n    return c.rowcount == 1", [
        "def f(c):\n    if False:\n        raise E\n    return c.rowcount == 1",
        "def f(c):\n    if c.rowcount != 1:\n        raise E\n    return True"]),
    ("split-transaction", "with s.transaction() as t:\n    a(t)\n    b(t)", [
        "with s.transaction() as t:\n    a(t)\nwith s.transaction() as t:\n    b(t)"]),
    ("commit-early", "def f(c, m):\n    send(m)\n    c.commit()", ["def f(c, m):\n    c.commit()\n    send(m)"]),
    ("swap", "def f(a, b):\n    a.write(1)\n    b.write(2)", ["def f(a, b):\n    b.write(2)\n    a.write(1)"]),
    ("swap", "def f(a):\n    x = a.read()\n    use(x)", []),
    ("swap", "class A:\n    def __init__(self, a):\n        self.a = open(a)\n        self.b = 1", []),
    ("swap", "class A:\n    def __init__(self, a):\n        self.a = open(a)\n        self.b = lock(a)", [
        "class A:\n\n    def __init__(self, a):\n        self.b = lock(a)\n        self.a = open(a)"]),
    ("swap", "class A:\n    def __init__(self, a):\n        self.a = 1\n        self.b = go(self)", [
        "class A:\n\n    def __init__(self, a):\n        self.b = go(self)\n        self.a = 1"]),
    ("drop-sync", "def f(file):\n    os.fsync(file)\n    file.read()", ["def f(file):\n    pass\n    file.read()"]),
    ("drop-lock", "def f(self):\n    with self._lock:\n        go()", ["def f(self):\n    go()"]),
    ("drop-raise", "def f(x):\n    if x:\n        raise E(x)", ["def f(x):\n    if x:\n        pass"]),
    ("return-early", "def f(x):\n    a(x)\n    b(x)", ["def f(x):\n    a(x)\n    return"]),
    ("catch-and-go-on", "try:\n    a()\nexcept E as e:\n    raise F from e", [
        "try:\n    a()\nexcept E as e:\n    pass"]),
    ("drop-condition", "def f(a, b):\n    return a and b", [
        "def f(a, b):\n    return b", "def f(a, b):\n    return a"]),
    ("drop-guard", "def f(x):\n    if x:\n        return\n    a(x)", ["def f(x):\n    pass\n    a(x)"]),
    ("bound", "def f(x):\n    return x < 3", ["def f(x):\n    return x <= 3"]),
    ("unit", "TTL_S = 30\nx = y * 1000", ["TTL_S = 30 * 60\nx = y * 1000", "TTL_S = 30\nx = y"]),
    ("key-field", "def cache_key(a, b):\n    return join((a, b))", [
        "def cache_key(a, b):\n    return join((b,))", "def cache_key(a, b):\n    return join((a,))"]),
    ("no-backoff", "def f(n):\n    while True:\n        time.sleep(1)", ["def f(n):\n    while True:\n        pass"]),
    ("no-backoff", "def backoff(n):\n    return base * 2 ** n", ["def backoff(n):\n    return base * 1"]),
    ("drop-update", "def f(self):\n    self.n += 1\n    self.dead = 0", [
        "def f(self):\n    pass\n    self.dead = 0", "def f(self):\n    self.n += 1\n    pass"]),
]  # fmt: skip


def mutated(operator: str, source: str) -> list[str]:
    """Return the sources of all mutants of an operator."""
    found = []
    for number in range(len(list(edits(ast.parse(source))))):
        tree = ast.parse(source)
        edit = list(edits(tree))[number]
        if edit.operator == operator:
            edit.apply()
            found.append(ast.unparse(ast.fix_missing_locations(tree)))
    return found


@pytest.mark.parametrize(("operator", "source", "expected"), CASES)
def test_an_operator_changes_this_and_nothing_else(operator: str, source: str, expected: list[str]) -> None:
    """Each operator makes exactly these programs of a small one."""
    assert mutated(operator, source) == expected


def test_every_operator_has_a_case() -> None:
    """No operator is without a case above, and no case without an operator."""
    assert {operator for operator, _, _ in CASES} == set(NAMES)


def test_an_id_outlives_changes_elsewhere() -> None:
    """Lines that are added above, and comments, change no id; another operand does."""
    source = "def f(x):\n    if x < 3:\n        raise E\n"
    ids = [each.id for each in mutants_of("m", source)]
    assert [each.id for each in mutants_of("m", "import os\n\n# more\n" + source)] == ids
    assert not {each.id for each in mutants_of("m", source.replace("3", "4"))} & {
        each.id for each in mutants_of("m", source) if each.operator == "bound"
    }


def test_two_mutants_of_one_text_have_two_ids() -> None:
    """The same guard twice in a function gives two mutants."""
    source = "def f(x):\n    if x:\n        raise E\n    go()\n    if x:\n        raise E\n"
    found = [each for each in mutants_of("m", source) if each.operator == "drop-raise"]
    assert len({each.id for each in found}) == 2


def test_the_compiled_mutant_does_what_its_diff_says() -> None:
    """Every mutant of a module can be compiled, and the one with another bound behaves so."""
    source = "def f(x):\n    return x < 3\n"
    (mutant,) = mutants_of("m", source)
    scope: dict[str, object] = {}
    exec(compiled_mutant(source, "m.py", mutant), scope)  # noqa: S102 - it is compiled above
    assert scope["f"](3) is True  # type: ignore[operator]
    assert mutant.diff.splitlines()[1:] == ["-return x < 3", "+return x <= 3"]


def test_probes_show_the_statements_that_were_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement with mutants leaves a mark when it is executed, and the others do not."""
    source = (
        "from __future__ import annotations\ndef f(x):\n    if x < 3:\n        raise ValueError\n    return x > 5\n"
    )
    code, count, functions = compiled_with_probes(source, "m.py", 1)
    reach = bytearray(count + 1)
    monkeypatch.setattr("sys._chaos_reach", reach, raising=False)
    scope: dict[str, object] = {}
    exec(code, scope)  # noqa: S102 - it is compiled above
    assert bytes(reach) == bytes(count + 1)
    scope["f"](7)  # type: ignore[operator]
    assert [number for number, mark in enumerate(reach) if mark] == [1, 3, functions["f"]]


def test_a_constant_is_reached_through_its_users() -> None:
    """A statement's text is used by functions, also through a constant that is made of it."""
    source = "A = 'WHERE x = ?'\nB = A + ' LIMIT 1'\ndef f(c):\n    c.execute(B)\ndef g(self):\n    return 1\n"
    assert derived_names(source, frozenset({"A"})) == {"A", "B"}
    assert users_of(source, frozenset({"A", "B"})) == {"f"}


@pytest.mark.parametrize(
    ("text", "is_part"),
    [
        ("SELECT a FROM t", True),
        ("WHERE a = ? AND b > 1", True),
        ("SELECT the right one", True),
        ("nothing WHERE it matters", False),
        ("a value must be >= 1 AND <= 3. Give another", False),
        ("", False),
    ],
)
def test_sql_is_known_by_its_keywords(text: str, *, is_part: bool) -> None:
    """Sentences with a keyword are left alone, unless they begin as SQL does."""
    assert sql.is_part_of_sql(text) is is_part


def test_a_where_ends_with_its_parenthesis_and_a_between_is_one_conjunct() -> None:
    """Subqueries keep their own conditions, and BETWEEN's AND joins nothing."""
    text = "DELETE FROM t WHERE a IN (SELECT b FROM u WHERE c = 1 AND d = 2) AND e BETWEEN 1 AND 3 LIMIT 5"
    found = [each.text for each in sql.changes(text) if each.operator == "sql-drop-conjunct"]
    assert found == [
        "DELETE FROM t WHERE e BETWEEN 1 AND 3 LIMIT 5",
        "DELETE FROM t WHERE a IN (SELECT b FROM u WHERE c = 1 AND d = 2) LIMIT 5",
        "DELETE FROM t WHERE a IN (SELECT b FROM u WHERE d = 2 ) AND e BETWEEN 1 AND 3 LIMIT 5",
        "DELETE FROM t WHERE a IN (SELECT b FROM u WHERE c = 1 ) AND e BETWEEN 1 AND 3 LIMIT 5",
    ]
