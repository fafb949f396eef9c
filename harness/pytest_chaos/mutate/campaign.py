"""The campaign: each mutant against the tests that reach it, until one of them notices."""

from __future__ import annotations

import marshal
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec

from pytest_chaos.errors import SpawnError
from pytest_chaos.model.seed import stream
from pytest_chaos.model.verdict import AGENT_FAILED
from pytest_chaos.mutate.mutants import Mutant, compiled_mutant, used_at_import_elsewhere
from pytest_chaos.mutate.order import Kills, ordered, within
from pytest_chaos.mutate.results import MutantResult, Outcome
from pytest_chaos.mutate.runner import Event, PreloadedPytest, PytestCommand, RunEnd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pytest_chaos.mutate.clean import CleanRun, CleanTest
    from pytest_chaos.mutate.equivalents import Equivalent
    from pytest_chaos.mutate.package import SourceModule

TESTS_S_MAX: Final = 20.0
"""Seconds of tests, by their clean time, that are run against one mutant."""
PATIENCE_S: Final = 20.0
"""Seconds that a test may take with a mutant, beyond five times what it took without."""
_TEST_TIMES: Final = 5.0
_COLLECT_S_MAX: Final = 60.0
_END_S_MAX: Final = 30.0
_CRASHES: Final = frozenset({AGENT_FAILED, f"harness:{SpawnError.__name__}"})
"""What is found of an agent that failed by itself, or whose module cannot be imported any more."""
_CRASHES_MAX: Final = 3
"""After so many tests whose agents failed, no finding is waited for."""


class Seen(NamedTuple):
    """What a test told of a mutant: a verdict, and the finding behind it."""

    test: str
    scenario: str
    verdict: str
    signature: str
    text: str


class Campaign:
    """All mutants that are wanted, and the clean run. ``run_all`` may be called once."""

    def __init__(
        self,
        package: str,
        modules: Sequence[SourceModule],
        clean: CleanRun,
        command: PytestCommand,
        *,
        seed: str,
        equivalent: Mapping[str, Equivalent],
        patience_s: float = PATIENCE_S,
        tests_s: float | None = TESTS_S_MAX,
        before: Iterable[MutantResult] = (),
    ) -> None:
        self._package = package
        self._modules = {module.name: module for module in modules}
        self._clean = clean
        self._command = command
        self._seed = seed
        self._equivalent = equivalent
        self._patience_s = patience_s
        self._tests_s = tests_s
        self._kills = Kills()
        for result in before:
            self._kills.add(result)
        self._shares_of: dict[str, dict[str, float]] = {}
        self._stop = threading.Event()

    def run_all(
        self,
        wanted: Iterable[Mutant],
        on_result: Callable[[MutantResult], None],
        *,
        jobs: int = 1,
        budget_s: float | None = None,
    ) -> bool:
        """Run these mutants; return whether all were run. A budget ends it before the next one.

        What has survived a part of its tests is run once more in the end, when it is known which
        tests notice mutants like it.
        """
        deadline = time.monotonic() + budget_s if budget_s is not None else None
        waiting = deque(wanted)
        once_more: deque[Mutant] = deque()
        lock = threading.Lock()
        complete = True

        def work() -> None:
            nonlocal complete
            with self.runners() as pytest:
                while not self._stop.is_set():
                    with lock:
                        is_first = bool(waiting)
                        mutant = waiting.popleft() if waiting else once_more.popleft() if once_more else None
                    if mutant is None:
                        return
                    if deadline is not None and time.monotonic() > deadline:
                        complete = complete and not is_first
                        return
                    result = self.run_one(pytest, mutant)
                    with lock:
                        self._kills.add(result)
                        on_result(result)
                        if is_first and result.outcome == "survived" and result.tests < result.reaching:
                            once_more.append(mutant)

        with ThreadPoolExecutor(jobs) as pool:
            tasks = [pool.submit(work) for _ in range(jobs)]
            try:
                for task in tasks:
                    task.result()
            finally:
                self._stop.set()
        return complete

    def _shares(self, module: str) -> dict[str, float]:
        if module not in self._shares_of:
            self._shares_of[module] = self._clean.shares(module)
        return self._shares_of[module]

    def runners(self) -> Runners:
        """Return the processes that run the tests of one mutant after another."""
        given = (self._command, self._package)
        return Runners(
            PreloadedPytest(*given, seed=self._seed, collected=self._clean.given),
            PreloadedPytest(*given, self._clean.preload, seed=self._seed),
        )

    def run_one(self, runners: Runners, mutant: Mutant) -> MutantResult:
        """Run one mutant against its tests, the likeliest first, until one of them notices it."""
        begun = time.monotonic()
        if mutant.id in self._equivalent:
            return result_of(mutant, "equivalent", reason=self._equivalent[mutant.id].reason)
        modules = list(self._modules.values())
        reaching = self._clean.reaching(mutant, modules)
        if not reaching:
            return result_of(mutant, "not reached")
        chosen = within(ordered(mutant, reaching, self._kills, self._shares(mutant.module)), self._tests_s)
        watch = MutantWatch(chosen, self._patience_s)
        with tempfile.TemporaryDirectory(prefix="chaos-mutant-") as name:
            folder = Path(name)
            module = self._modules[mutant.module]
            try:
                code = compiled_mutant(module.source, str(module.path), mutant)
            except SyntaxError as error:
                return result_of(mutant, "error", text=f"the mutant is no program: {error}")
            (folder / f"{mutant.module}.code").write_bytes(marshal.dumps(code))
            end = runners.run(self._clean, mutant, modules, folder, chosen, watch)
        result = watch.judged(mutant, end)
        took = round(time.monotonic() - begun, 3)
        return msgspec.structs.replace(result, tests=watch.begun, reaching=len(reaching), duration_s=took)


class Runners(NamedTuple):
    """Two processes: ``warm`` has collected the tests, ``cold`` starts a pytest for each mutant.

    The second one is started when there is a mutant that the first one cannot run. Use them as a
    context manager.
    """

    warm: PreloadedPytest
    cold: PreloadedPytest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.warm.__exit__(*error)
        self.cold.__exit__(*error)

    def run(
        self,
        clean: CleanRun,
        mutant: Mutant,
        modules: Sequence[SourceModule],
        folder: Path,
        tests: Sequence[CleanTest],
        watch: MutantWatch,
    ) -> RunEnd:
        """Run these tests against the mutant in this folder."""
        names = {test.name: [place.place for place in test.places] for test in tests}
        is_of_class = bool(mutant.constants) and bool(mutant.function)  # its default is in places that are not known
        if not is_of_class and not used_at_import_elsewhere(mutant, modules):
            end = self.warm.run(folder, (), watch.bound_s, watch.take, only=names, constants=bool(mutant.constants))
            if end.why != "unfit":
                return end
        arguments = [*clean.arguments, *dict.fromkeys(test.path for test in tests)]
        return self.cold.run(folder, arguments, watch.bound_s, watch.take, only=names)


class MutantWatch:
    """What is known of one mutant while its tests run."""

    def __init__(self, reaching: Sequence[CleanTest], patience_s: float) -> None:
        self.begun = 0
        self._patience_s = patience_s
        self._tests = {test.name: test for test in reaching}
        self._left = set(self._tests)
        self._running = ""
        self._caught: Seen | None = None
        self._undecided: Seen | None = None
        self._crashes: dict[str, Seen] = {}

    def bound_s(self, event: Event) -> float:
        """Return how long the next event may take."""
        if event["event"] == "started" and (test := self._tests.get(event["test"])) is not None:
            longest_s = max([test.duration_s, *(place.duration_s for place in test.places)])
            return self._patience_s + _TEST_TIMES * longest_s
        return _END_S_MAX if event["event"] in {"report", "finished"} else _COLLECT_S_MAX

    def take(self, event: Event) -> bool:
        """Take note of an event; return whether there is more to see."""
        if event["event"] == "started":
            self.begun += event["test"] in self._left  # and not once more for each place of its sweep
            self._running = event["test"]
        elif event["event"] == "finished":
            self._running = ""
            self._left.discard(event["test"])  # more places of its sweep may follow: the run ends by itself
        elif event["event"] == "report":
            self._note(event)
        return self._caught is None and len(self._crashes) < _CRASHES_MAX

    def _note(self, event: Event) -> None:
        test = self._tests.get(event["test"])
        if test is None or (event["outcome"] != "failed" and event.get("verdict") in {None, "HELD"}):
            return
        findings = event.get("findings") or []
        verdict = event.get("verdict") or ("INCONCLUSIVE" if test.is_scenario else "VIOLATED")
        bad = [each for each in findings if (each[1] != "harness") == (verdict == "VIOLATED")] or findings
        signature, text = (bad[0][0], bad[0][2]) if bad else ("assertion", event.get("text", ""))
        seen = Seen(event["test"], event.get("scenario", ""), verdict, signature, text)
        if verdict == "VIOLATED":
            self._caught = self._caught or seen
        elif signature in _CRASHES:
            self._crashes[seen.test] = seen
        else:
            self._undecided = self._undecided or seen

    def judged(self, mutant: Mutant, end: RunEnd) -> MutantResult:
        """Return the result, once the tests have ended."""
        if self._caught is not None:
            return result_of(mutant, "caught", self._caught)
        if end.why == "time":
            where = Seen(
                self._running, "", "", "time", f"no answer in time{f' from {self._running}' if self._running else ''}"
            )
            return result_of(mutant, "caught by time", where)
        if self._crashes:
            return result_of(mutant, "caught by crash", next(iter(self._crashes.values())))
        if self._undecided is not None:
            return result_of(mutant, "inconclusive", self._undecided)
        if end.why == "lost":
            return result_of(mutant, "error", text="it killed the process that the tests run in, or its parent")
        if end.why == "size":
            return result_of(mutant, "error", text="it wrote more than the tests may write")
        if self._left:
            lines = [
                line for line in end.output.splitlines() if line.startswith(("E ", "ERROR"))
            ] or end.output.splitlines()
            said = lines[-1].strip() if lines else "nothing"
            return result_of(
                mutant, "error", text=f"pytest ended with {end.status} before its tests did; it said: {said}"[:500]
            )
        return result_of(mutant, "survived")


def result_of(
    mutant: Mutant, outcome: Outcome, seen: Seen | None = None, *, text: str = "", reason: str = ""
) -> MutantResult:
    """Return the result of a mutant; ``seen`` is what noticed it."""
    return MutantResult(
        id=mutant.id,
        operator=mutant.operator,
        module=mutant.module,
        function=mutant.function,
        line=mutant.line,
        diff=mutant.diff,
        outcome=outcome,
        scenario=seen.scenario if seen else "",
        test=seen.test if seen else "",
        signature=seen.signature if seen else "",
        text=seen.text if seen else text,
        reason=reason,
    )


def shuffled(mutants: Sequence[Mutant], seed: str) -> list[Mutant]:
    """Return the mutants in an order drawn by the seed: a part of a campaign is a fair sample."""
    drawn = stream(seed, "mutants")
    keys = {each.id: drawn.random() for each in sorted(mutants, key=lambda each: each.id)}
    return sorted(mutants, key=lambda each: keys[each.id])


def share(mutants: Sequence[Mutant], number: int, of: int) -> list[Mutant]:
    """Return the part of the mutants that a shard runs, 1 to ``of``; the parts are disjoint."""
    return [each for index, each in enumerate(sorted(mutants, key=lambda each: each.id)) if index % of == number - 1]
