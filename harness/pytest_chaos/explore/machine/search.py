"""Hypothesis draws workloads, each is explored, and the smallest that fails is kept.

The workload that failed last is in Hypothesis's example database, and is tried first the next time.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.errors import Flaky, FlakyFailure, HypothesisException, InvalidArgument, InvalidDefinition
from hypothesis.stateful import run_state_machine_as_test

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.judge import Pool, StateTask
from pytest_chaos.explore.machine.subject import MachineSubject
from pytest_chaos.explore.machine.workload import Workload, model_of, recording
from pytest_chaos.explore.record import record
from pytest_chaos.explore.report import ExplorationError, Family
from pytest_chaos.explore.session import Progress
from pytest_chaos.explore.simulate.crash import crash_states
from pytest_chaos.explore.simulate.folder import read_folder
from pytest_chaos.explore.simulate.power import power_states
from pytest_chaos.explore.target import raised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hypothesis.stateful import RuleBasedStateMachine

    from pytest_chaos.explore.machine.workload import MachineOperation
    from pytest_chaos.explore.options import Options
    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.model.values import Finding
    from pytest_chaos.trace.source import StepSource

_NO_STEPS: Final = "harness:no-steps"


class Found(NamedTuple):
    """What a search has come to.

    ``workload`` is the smallest that fails; without one, one with most rules and steps. ``tried``
    counts workloads with those of the shrinking, ``states`` what was judged of all. ``plain`` is
    what went wrong without any fault.
    """

    workload: Workload | None
    fails: bool
    tried: int
    states: int
    operations: int
    plain: str = ""
    is_over: bool = False


class _FaultFound(AssertionError):  # noqa: N818 - says what happened
    """A crash or a power loss within the workload leaves what breaks the machine."""


class _OverError(KeyboardInterrupt):
    """The budget is over. Hypothesis lets no exception but this one end it at once."""


class Search:
    """The search for the smallest workload of a machine that does not survive."""

    def __init__(
        self,
        cls: type[RuleBasedStateMachine],
        source: StepSource,
        options: Options,
        folder: Path,
        *,
        examples: Path | None,
        listen: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._cls = cls
        self._source = source
        self._options = options
        self._folder = folder
        self._examples = examples
        self._workloads = options.workloads
        self._operations = options.operations
        self._listen = listen
        self._tried = self._states = self._count = 0
        self._smallest: Workload | None = None
        self._largest: tuple[tuple[int, int], Workload | None] = ((0, 0), None)
        self._failed: Sequence[MachineOperation] = ()
        """The operations of the last workload that failed without any fault."""
        self._known: dict[tuple[Any, ...], str] = {}
        budget_s = options.budget_s
        self._deadline_s = float("inf") if budget_s is None else time.monotonic() + budget_s / 2

    def search(self) -> Found:
        """Draw and explore workloads. Raises UsageError for a machine that is none.

        What goes wrong without any fault is in ``plain``: then nothing else was looked for.
        """
        factory = self._factory()
        try:
            plain, is_over = self._run(factory), False
        except _OverError:
            plain, is_over = "", True
        fails = self._smallest is not None
        workload = self._smallest if fails else self._largest[1]
        return Found(workload, fails, self._tried, self._states, self._count, plain, is_over)

    def _run(self, factory: Callable[[], RuleBasedStateMachine]) -> str:
        """Let Hypothesis draw, explore and shrink; return what went wrong without any fault."""
        try:
            run_state_machine_as_test(factory, settings=self._settings())  # type: ignore[arg-type] # a factory will do
        except _FaultFound:
            return ""
        except (InvalidDefinition, InvalidArgument) as error:
            msg = f"{self._cls.__name__} must be a state machine that Hypothesis can run; got: {error}. Mend its rules"
            raise UsageError(msg) from error
        except (Flaky, FlakyFailure) as error:
            text = (
                f"a workload did not fail again, or was another one when it was drawn again ({_first_line(error)}): "
                "let the machine depend on nothing but its arguments and its directory"
            )
            raise ExplorationError(text, signature="harness:workload-flaky") from error
        except (UsageError, ExplorationError, HypothesisException):
            raise
        except Exception as error:  # noqa: BLE001 - a rule or an invariant raised, without any fault
            done = "; ".join(each.text for each in self._failed) or "no operation"
            return f"without any fault, after {done}: {raised(error)}"
        return ""

    def _factory(self) -> Callable[[], RuleBasedStateMachine]:
        """Return what makes the user's machine, in a fresh folder, with its operations kept."""
        kept, search = recording(self._cls), self

        class Explored(kept):  # type: ignore[misc, valid-type] # a machine with the user's rules
            def __init__(self) -> None:
                self.chaos_operations: list[Any] = []
                self.chaos_results: list[Any] = []
                self.chaos_models: list[bytes | None] = []
                self.chaos_error = sys.exc_info()[1]  # that of a handler in which Hypothesis draws this one again
                super().__init__()
                self.chaos_models.append(model_of(self))

            def teardown(self) -> None:
                failed = sys.exc_info()[1] is not self.chaos_error
                super().teardown()
                search._ended(tuple(self.chaos_operations), tuple(self.chaos_models), failed=failed)

        def factory() -> RuleBasedStateMachine:
            for old in self._folder.glob("drawn-*"):
                shutil.rmtree(old, ignore_errors=True)
            fresh = Path(tempfile.mkdtemp(dir=self._folder, prefix="drawn-"))
            machine: RuleBasedStateMachine = type(self._cls.__name__, (Explored,), {"directory": fresh})()
            return machine

        seed = int.from_bytes(blake2b(self._options.seed.encode(), digest_size=8).digest(), "little")
        factory._hypothesis_internal_use_seed = seed  # type: ignore[attr-defined] # noqa: SLF001 - as @seed does
        return factory

    def _ended(
        self, operations: tuple[MachineOperation, ...], models: tuple[bytes | None, ...], *, failed: bool
    ) -> None:
        """Take over an execution of the machine that has ended."""
        if failed:
            self._failed = operations
        elif operations:
            self._explore(Workload(operations, models))

    def _settings(self) -> settings:
        database = DirectoryBasedExampleDatabase(self._examples) if self._examples is not None else None
        return settings(
            max_examples=self._workloads,
            stateful_step_count=self._operations,
            deadline=None,
            database=database,
            phases=(Phase.reuse, Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
            verbosity=Verbosity.quiet,
        )

    def _explore(self, workload: Workload) -> None:
        """Explore one workload. Raises _FaultFound if it does not survive."""
        if time.monotonic() > self._deadline_s:
            raise _OverError
        key = tuple((each.rule, each.arguments) for each in workload.operations)
        if key not in self._known:
            folder = Path(tempfile.mkdtemp(dir=self._folder, prefix="explored-"))
            try:
                self._known[key] = self._found_in(workload, folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            self._tried += 1
            self._count += len(workload.operations)
            self._listen(
                Progress(
                    family="workloads", states=self._states, done=min(self._tried, self._workloads),
                    total=self._workloads, findings=int(self._smallest is not None),
                )
            )  # fmt: skip
        if said := self._known[key]:
            if self._smallest is None or len(workload.operations) <= len(self._smallest.operations):
                self._smallest = workload
            raise _FaultFound(said)

    def _found_in(self, workload: Workload, folder: Path) -> str:
        """Return what is found in a workload, or nothing."""
        options = self._options
        subject = MachineSubject(self._cls, workload)
        subject.limit(options)
        try:
            recorded, _ = record(subject, self._source, folder, seed=options.seed, timeout_s=options.run_timeout_s)
        except ExplorationError as error:
            if error.signature == _NO_STEPS:
                return ""
            raise
        with contextlib.closing(recorded), Pool(recorded.known, folder, timeout_s=options.check_timeout_s) as pool:
            size = (len({each.rule for each in workload.operations}), recorded.steps)
            if size > self._largest[0]:
                self._largest = (size, workload)
            for _, judgement in pool.answers(self._tasks(recorded), lambda task: task):
                self._states += 1
                if said := _safety(judgement.findings):
                    return said
        return ""

    def _tasks(self, recorded: Recorded) -> Iterator[StateTask]:
        yield StateTask(read_folder(recorded.clean, recorded.store), len(recorded.marks))
        seen: set[bytes] = set()
        options, place = self._options, (recorded.recording, recorded.store)
        for state in crash_states(*place, recorded.seed):
            if state.stored is None and state.digest not in seen:
                seen.add(state.digest)
                yield StateTask(state.items, state.marks, family=Family.CRASH)
        for model in options.models if Family.POWER in options.families else ():
            for state, _ in power_states(*place, model, seed=options.seed, samples=options.samples):
                if state.digest not in seen:
                    seen.add(state.digest)
                    yield StateTask(state.items, state.marks, family=Family.POWER)


def _safety(findings: tuple[Finding, ...]) -> str:
    for finding in findings:
        if finding.kind == "harness":
            raise ExplorationError(finding.text, signature=finding.signature)
        return finding.text
    return ""


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def notes_of(found: Found) -> tuple[str, ...]:
    """Return what was tried, and the operations of the workload that is explored whole."""
    tried = (
        f"{found.tried:,} different workloads of {found.operations:,} operations in all were drawn, and "
        f"{found.states:,} states judged"
    )
    what = "the smallest that fails" if found.fails else "none failed; explored whole: one with most rules and steps"
    return (f"{tried}; {what}: {found.workload}",)
