"""A workload as a target: its operations again, and its invariants on what a crash leaves."""

from __future__ import annotations

import contextlib
import pickle
import sys
from typing import TYPE_CHECKING, Any

from pytest_chaos.explore.machine.workload import Workload, arguments_of, invariants_of, made_in
from pytest_chaos.explore.target import CheckError, Subject, no_restart, print_to_descriptors, raised
from pytest_chaos.model.values import Finding
from pytest_chaos.runtime.marks import Marks
from pytest_chaos.trace.step import KNOWN_FILES, readable

if TYPE_CHECKING:
    from collections.abc import Sequence, Set as AbstractSet
    from pathlib import Path

    from hypothesis.stateful import RuleBasedStateMachine

    from pytest_chaos.model.values import Mark

OPERATION = "operation"


class MachineTarget(Subject):
    """A state machine whose workload is not drawn yet."""

    is_machine = True

    def __init__(self, cls: type[RuleBasedStateMachine], *, place: str = "") -> None:
        self.name = cls.__name__
        self.place = place or f"{cls.__module__}:{cls.__qualname__}"
        self.files = KNOWN_FILES
        self.cls = cls

    def sources(self) -> list[bytes]:
        """Return nothing: it is never recorded."""
        return []


class MachineSubject(Subject):
    """One workload of a state machine. ``place`` tells machines of one name apart."""

    def __init__(self, cls: type[RuleBasedStateMachine], workload: Workload, *, place: str = "") -> None:
        self.name = cls.__name__
        self.place = place or f"{cls.__module__}:{cls.__qualname__}"
        self.files = KNOWN_FILES
        self._cls = cls
        self._workload = workload

    def sources(self) -> list[bytes]:
        """Return the operations: another workload has another progress."""
        return [str(self._workload).encode()]

    def setup(self, directory: Path) -> None:
        """Do nothing: the machine's constructor and its first rules fill the folder."""

    def _run(self, directory: Path, marks: Path) -> None:
        sys.dont_write_bytecode = True  # or a module that is imported late would be written beside its source
        print_to_descriptors()
        writer = Marks(marks, "target")
        machine = made_in(self._cls, directory)
        results: list[Any] = []
        for number, operation in enumerate(self._workload.operations, 1):
            writer.intent(OPERATION, number)
            results.append(getattr(machine, operation.rule)(**arguments_of(operation, results)))
            writer.ack(OPERATION, number)
        machine.teardown()

    def examine(self, directory: Path, marks: Sequence[Mark], keys: AbstractSet[str] = frozenset()) -> list[Finding]:
        """Make the machine again on a state, and look whether its invariants hold.

        Raises CheckError if an invariant raises anything but AssertionError.
        """
        del keys
        done = sum(mark.kind == "ack" for mark in marks)
        begun = sum(mark.kind == "intent" for mark in marks)
        found: list[Finding] = []
        for count in range(done, max(done, begun) + 1):
            broken = self._broken(directory, count)
            if not broken:
                return []
            found = found or broken
        return [self._told(finding, done, begun) for finding in found]

    def _told(self, finding: Finding, done: int, begun: int) -> Finding:
        total = len(self._workload.operations)
        under_way = f", and {self._workload.operations[begun - 1].text} under way" if begun > done else ""
        text = f"{finding.text}; {done} of {total} operations were done{under_way}"
        return Finding(signature=finding.signature, text=text, kind=finding.kind)

    def _broken(self, directory: Path, count: int) -> list[Finding]:
        """Return what is wrong if so many operations are taken for done."""
        try:
            machine = made_in(self._cls, directory)
        except Exception as error:  # noqa: BLE001 - whatever the program raises, it does not start
            return [no_restart(f"{self.name}() raised {raised(error)}", type(error).__name__)]
        try:
            if (model := self._workload.models[count]) is not None:
                machine.model = pickle.loads(model)  # type: ignore[attr-defined]  # noqa: S301 - our own
            return [found for name, function in invariants_of(machine) for found in _failed(name, function, machine)]
        finally:
            with contextlib.suppress(Exception):  # it closes what it has opened; it may have nothing to close
                machine.teardown()


def _failed(name: str, function: Any, machine: RuleBasedStateMachine) -> list[Finding]:
    try:
        function(machine)
    except AssertionError as error:
        said = " ".join(readable(str(error)).split())
        text = (
            f"the invariant {name} does not hold{f': {said}' if said else raised(error).removeprefix('AssertionError')}"
        )
        return [Finding(signature=f"invariant:{name}", text=text)]
    except Exception as error:
        msg = f"the invariant {name} raised {raised(error)}"
        raise CheckError(msg) from error
    return []
