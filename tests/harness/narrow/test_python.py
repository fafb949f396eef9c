"""A variant as Python: each fault is the call that makes it, and the test can be pasted."""

from __future__ import annotations

import ast

import pytest
import pytest_chaos
from pytest_chaos import (
    Fault,
    after_mark,
    at_delivery,
    at_moment,
    at_point,
    at_step,
    deliver,
    hold_lock,
    kill,
    pause,
    restart,
    resume,
    terminate,
)
from pytest_chaos.model.values import Plan
from pytest_chaos.narrow.python import fault_code, pasted
from pytest_chaos.narrow.variant import RunVariant

FAULTS = [
    kill("w"),
    kill("w", at_point("app.saved", occurrence=3, path="*.json", agent="other"), tree=True),
    kill("w", after_mark("put", kind="intent", count=2)),
    pause("w", at_moment(0.25, after=after_mark("put", agent="x")), duration_s=1.5),
    pause("w", at_step("rename", path='a"b')),
    resume("w", at_moment(1.0)),
    terminate("it's", at_step("write")),
    restart("w", at_moment(0.1)),
    hold_lock("w", at_step("sync"), database="x.db", duration_s=2.0),
    deliver("proxy", "lose", at_delivery(3, count=None, path="/hooks"), status=None),
    Fault(kind="mine", agent="w", parameters={"n": 1, "texts": ["a", "b"]}),
    Fault(kind="after_mark", agent="w"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{at}-{each.kind}" for at, each in enumerate(FAULTS)])
def test_a_fault_is_the_call_that_makes_it(fault: Fault) -> None:
    """What is written makes the same fault again, with the names that are said to be needed."""
    code, names = fault_code(fault)
    known = {name: getattr(pytest_chaos, name) for name in names}
    assert eval(code, {"__builtins__": {}, **known}) == fault  # noqa: S307 - that is what is tested


def test_faults_look_as_a_person_writes_them() -> None:
    """The builder is called, with what differs from its defaults."""
    assert fault_code(FAULTS[2])[0] == 'kill("w", after_mark("put", kind="intent", count=2))'
    assert fault_code(FAULTS[9])[0].startswith('deliver("proxy", "lose", at_delivery(3, count=None, path="/hooks")')


def example(chaos: object, fresh_db: object, jobs: int, way: object) -> None:
    """Stand for a test."""
    del chaos, fresh_db, jobs, way


def test_a_test_keeps_its_fixtures_and_gets_its_parameters() -> None:
    """Literal parameters stand in the call; what Python cannot write down stays an argument."""
    variant = RunVariant(plan=Plan(seed="s", scenario="x", faults=(FAULTS[0],)), sizes={"jobs": 2}, drawn={"v": [1]})
    code = pasted(
        example, variant, node_id="test_a.py::example[5-x]", seed="s", iteration=3,
        parameters={"jobs": 5, "way": object()},
    )  # fmt: skip
    (function,) = ast.parse(code).body
    assert isinstance(function, ast.FunctionDef)
    assert [argument.arg for argument in function.args.args] == ["chaos", "fresh_db", "way"]
    assert "example(chaos=chaos, fresh_db=fresh_db, jobs=5, way=way)" in code
    assert 'sizes={"jobs": 2},' in code
    assert 'drawn={"v": [1]},' in code
    assert "iteration=3," in code


class TestOfAClass:
    """Stands for a class of tests."""

    def method(self, chaos: object) -> None:
        """Stand for a method."""


def test_a_method_is_pasted_into_its_class() -> None:
    """It calls its neighbour."""
    code = pasted(TestOfAClass.method, RunVariant(), node_id="t.py::C::method", seed="s", iteration=0, parameters={})
    assert code.startswith("    def method_shrunk(self, chaos):")
    assert "self.method(chaos=chaos)" in code
    assert "without any fault" in code


def _of_a_fixture(pipeline: object) -> None:
    """Have the run by way of a fixture alone."""


def test_the_run_is_asked_for_where_only_a_fixture_has_it() -> None:
    """What is pinned is an argument of the pasted test, and not of the one that it calls."""
    code = pasted(_of_a_fixture, RunVariant(), node_id="t.py::t", seed="s", iteration=0, parameters={})
    assert code.startswith("def _of_a_fixture_shrunk(pipeline, chaos):")
    assert "_of_a_fixture(pipeline=pipeline)" in code
