"""The operations of one execution of a state machine, and its model after each of them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pickle
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hypothesis.stateful import (
    INITIALIZE_RULE_MARKER,
    INVARIANT_MARKER,
    RULE_MARKER,
    MultipleResults,
    RuleBasedStateMachine,
)

from pytest_chaos.errors import UsageError
from pytest_chaos.trace.step import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_ARGUMENTS_CHARACTERS: Final = 120
_HARMLESS: Final = (int, float, bool, str, bytes, type(None))


class ResultReference(NamedTuple):
    """A reference to the result of an earlier operation, by its place."""

    place: int


class MachineOperation(NamedTuple):
    """An operation: the name of its rule, its pickled arguments, and both in words."""

    rule: str
    arguments: bytes
    text: str


class Workload(NamedTuple):
    """Operations, and the pickled model before the first and after each; None without a model."""

    operations: tuple[MachineOperation, ...]
    models: tuple[bytes | None, ...]

    def __str__(self) -> str:
        """Return the operations in words."""
        return "; ".join(operation.text for operation in self.operations)


def is_machine(target: object) -> bool:
    """Whether a target is a state machine of Hypothesis."""
    return inspect.isclass(target) and issubclass(target, RuleBasedStateMachine)


def model_of(machine: RuleBasedStateMachine) -> bytes | None:
    """Return the model of a machine, pickled. Raises UsageError if it cannot be."""
    if not hasattr(machine, "model"):
        return None
    try:
        return pickle.dumps(machine.model)
    except Exception as error:
        name = type(machine).__name__
        msg = (
            f"the model of {name} must be plain data that can be pickled; got {type(error).__name__}: {error}. "
            "Keep connections and files in other attributes"
        )
        raise UsageError(msg) from error


def recording(cls: type[RuleBasedStateMachine]) -> type[RuleBasedStateMachine]:
    """Return a machine that keeps what it does in ``chaos_operations`` and ``chaos_models``."""
    namespace: dict[str, Any] = {}
    for name, member in inspect.getmembers(cls):
        for marker in (RULE_MARKER, INITIALIZE_RULE_MARKER):
            if (rule := getattr(member, marker, None)) is not None:
                kept = functools.wraps(member)(_plain(member))
                setattr(kept, marker, dataclasses.replace(rule, function=_kept(name, rule.function)))
                namespace[name] = kept
    return type(cls.__name__, (cls,), namespace)


def _plain(member: Callable[..., Any]) -> Callable[..., Any]:
    def call(*positional: Any, **named: Any) -> Any:
        return member(*positional, **named)

    return call


def _kept(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(machine: Any, **arguments: Any) -> Any:
        given = {key: _referred(value, machine.chaos_results) for key, value in arguments.items()}
        text = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        if len(text) > _ARGUMENTS_CHARACTERS:
            text = f"{text[: _ARGUMENTS_CHARACTERS - 1]}…"
        try:
            pickled = pickle.dumps(given)
        except Exception as error:
            msg = (
                f"the arguments of the rule {name} must be plain data that can be pickled; got "
                f"{type(error).__name__}: {error}. Let its strategies give numbers, texts, lists, or results of rules"
            )
            raise UsageError(msg) from error
        machine.chaos_operations.append(MachineOperation(name, pickled, readable(f"{name}({text})")))
        result = function(machine, **arguments)
        machine.chaos_results.append(result)
        machine.chaos_models.append(model_of(machine))
        return result

    return call


def _referred(value: Any, results: list[Any]) -> Any:
    """Return a value; a reference in place of an object that an earlier operation returned."""
    if isinstance(value, _HARMLESS):
        return value
    for place, result in enumerate(results):
        each = result.values if isinstance(result, MultipleResults) else (result,)
        if any(value is one for one in each) and not isinstance(result, MultipleResults):
            return ResultReference(place)
    return value


def arguments_of(operation: MachineOperation, results: list[Any]) -> dict[str, Any]:
    """Return the arguments of an operation, with the results of earlier ones."""
    given = pickle.loads(operation.arguments)  # noqa: S301 - this program pickled it
    return {key: results[value.place] if isinstance(value, ResultReference) else value for key, value in given.items()}


def invariants_of(machine: RuleBasedStateMachine) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Yield the name and the function of each invariant whose preconditions hold."""
    for name, member in inspect.getmembers(type(machine)):
        invariant = getattr(member, INVARIANT_MARKER, None)
        if invariant is not None and all(condition(machine) for condition in invariant.preconditions):
            yield name, invariant.function


def made_in(cls: type[RuleBasedStateMachine], directory: Path) -> RuleBasedStateMachine:
    """Make a machine in a folder, which it finds as ``self.directory``."""
    machine: RuleBasedStateMachine = type(cls.__name__, (cls,), {"directory": directory})()
    return machine
