"""A variant as Python: faults as the calls that make them, and a test to paste."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_chaos.model import plan as plans, values
from pytest_chaos.model.plan import describe
from pytest_chaos.narrow.shrink import faults_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_chaos.model.values import Fault, When
    from pytest_chaos.narrow.variant import RunVariant

_TIMES: Final[Mapping[type, str]] = {
    values.Now: "now", values.AfterMark: "after_mark", values.AtPoint: "at_point", values.AtStep: "at_step",
    values.AtMoment: "at_moment", values.AtDelivery: "at_delivery",
}  # fmt: skip
_POSITIONAL: Final = {"operation", "point", "step", "delay_s", "number"}
_WIDTH: Final = 100
_TOXIC: Final = "-delivery"
_RUN: Final = "chaos"
"""The fixture that is pinned: a test may have it by way of a fixture of its own alone."""


def time_code(when: When) -> str:
    """Return the call that makes a time.

    >>> time_code(values.AtPoint(point="app.saved", occurrence=2))
    'at_point("app.saved", occurrence=2)'
    >>> time_code(values.AtMoment(delay_s=0.5))
    'at_moment(0.5)'
    """
    arguments: list[str] = []
    named: list[str] = []
    for field in msgspec.structs.fields(when):
        value = getattr(when, field.name)
        if field.name in _POSITIONAL:
            arguments.append(_written(value))
        elif isinstance(value, values.AfterMark):
            named.append(f"{field.name}={time_code(value)}")
        elif field.name == "kind":
            named += [f"kind={_written(str(value))}"] * (value != "ack")
        elif value != field.default:
            named.append(f"{field.name}={_written(value)}")
    return f"{_TIMES[type(when)]}({', '.join([*arguments, *named])})"


def fault_code(fault: Fault) -> tuple[str, set[str]]:
    """Return the call that makes a fault, and the public names that it needs.

    Where no call makes exactly this fault (a toxic, a kind of yours), it is built as a value.

    >>> fault_code(values.Fault(kind="kill", agent="worker", when=values.AtStep(step="write")))[0]
    'kill("worker", at_step("write"))'
    """
    time = time_code(fault.when)
    names = {name for name in (*_TIMES.values(),) if f"{name}(" in time} - {"now"}
    parameters = [f"{name}={_written(value)}" for name, value in fault.parameters.items()]
    agent = _written(fault.agent)
    builder, given = fault.kind.replace("-", "_"), [agent, *[time] * (time != "now()")]
    if fault.kind.endswith(_TOXIC):
        builder, given = "deliver", [agent, _written(fault.kind.removesuffix(_TOXIC)), time]
    code = f"{builder}({', '.join([*given, *parameters])})"
    if builder.isidentifier() and _makes(code, fault):
        return code, {builder, *names}
    when = f"when={time}"
    if time == "now()":
        when = ""
    fields = [f"kind={_written(fault.kind)}", f"agent={_written(fault.agent)}", *[when] * bool(when)]
    fields += [f"parameters={_written(fault.parameters)}"] if fault.parameters else []
    return f"Fault({', '.join(fields)})", {"Fault", *names}


def _makes(code: str, fault: Fault) -> bool:
    """Whether a call makes exactly this fault."""
    public = importlib.import_module("pytest_chaos")
    try:
        name = code.partition("(")[0]
        known: dict[str, Any] = {"__builtins__": {}, name: getattr(public, name), "now": plans.now}
        known |= {each: getattr(public, each) for each in _TIMES.values() if each != "now"}
        made: object = eval(code, known)  # noqa: S307 - it is made of reprs, here
    except Exception:  # noqa: BLE001 - a builder of that name with other parameters
        return False
    return made == fault


def pasted(
    function: Callable[..., object],
    variant: RunVariant,
    *,
    node_id: str,
    seed: str,
    iteration: int,
    parameters: Mapping[str, object],
) -> str:
    """Return a test to paste below another one: that test, pinned to a variant.

    ``parameters`` are those of this run of a parametrized test. One whose value Python cannot write
    down stays a parameter: then only the run with this id is made, and others are skipped.
    """
    is_method = "." in function.__qualname__
    signature = list(inspect.signature(function).parameters)
    names = [name for name in signature if not (is_method and name == signature[0])]
    written = {name: _written(value) for name, value in parameters.items() if name in names and _is_literal(value)}
    left = [name for name in names if name not in written]
    decorators = _decorators(function) if any(name in parameters for name in left) else []
    lines, public = [], set()
    for fault in faults_of(variant):
        code, needed = fault_code(fault)
        lines.append(code)
        public |= needed
    given = [f"seed={_written(seed)}", f"test={_written(node_id)}"]
    given += [f"iteration={iteration}"] * bool(iteration)
    given += [f"sizes={_written(variant.sizes)}"] * bool(variant.sizes)
    given += [f"drawn={_written(variant.drawn)}"] * bool(variant.drawn)
    pinned = [f"    {code}," for code in [*lines, *given]]
    short = f"chaos.pin({', '.join([*lines, *given])})"
    pin = [short] if len(short) <= _WIDTH else ["chaos.pin(", *pinned, ")"]
    of_class = f"{signature[0]}." if is_method and signature else ""
    arguments = [f"{name}={written.get(name, name)}" for name in names]
    fixtures = dict.fromkeys([*left, _RUN, *["request"] * bool(decorators)])
    asked = [*([signature[0]] if is_method else []), *fixtures]
    what = "; ".join(describe(fault) for fault in faults_of(variant)) or "without any fault"
    body = [f'"""Shrunk by chaos shrink: {_escaped(what)}."""']
    body += [f"from pytest_chaos import {', '.join(sorted(public))}", ""] * bool(public)
    if decorators:
        wanted = node_id.partition("[")[2].removesuffix("]")
        body += [f"if request.node.callspec.id != {_written(wanted)}:", '    pytest.skip("another parameter")']
    body += [*pin, f"{of_class}{function.__name__}({', '.join(arguments)})"]
    head = [*decorators, f"def {function.__name__}_shrunk({', '.join(asked)}):"]
    code = "\n".join([*head, *(f"    {line}" if line else "" for line in body)])
    return textwrap.indent(code, "    ") if is_method else code


def where_to_paste(function: Callable[..., object], file: str) -> str:
    """Return in words where the test is to be pasted."""
    *classes, name = function.__qualname__.split(".")
    within = f", in class {'.'.join(classes)}" if classes else ""
    return f"{file}, below {name}{within}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _written(value: object) -> str:
    """Return a value as code, with double quotes as ruff and black write them."""
    if isinstance(value, str):
        return f'"{value}"' if repr(value) == f"'{value}'" and '"' not in value else repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_written(key)}: {_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    return repr(value)


def _is_literal(value: object) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _decorators(function: Callable[..., object]) -> Sequence[str]:
    """Return the lines of a function's ``parametrize`` decorators, as they stand in its file."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(source)
    except (OSError, SyntaxError):
        return []
    (first, *_) = tree.body
    found: list[str] = []
    for each in getattr(first, "decorator_list", []):
        text = ast.get_source_segment(source, each) or ""
        if "parametrize" in text:
            found += f"@{text}".split("\n")
    return found
