"""The clean run: the tests without a mutant, once, and which statement each of them reaches."""

from __future__ import annotations

import importlib.metadata
import marshal
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.mutate.mutants import compiled_with_probes, derived_names, users_of
from pytest_chaos.mutate.runner import Event, PreloadedPytest, PytestCommand, RunEnd

if TYPE_CHECKING:
    from collections.abc import Sequence, Set as AbstractSet

    from pytest_chaos.mutate.mutants import Mutant
    from pytest_chaos.mutate.package import SourceModule

COLLECT_S_MAX: Final = 120.0
TEST_S_MAX: Final = 600.0
_LINES_SHOWN: Final = 12
_NO_TESTS: Final = 5


class CleanPlace(msgspec.Struct, frozen=True, kw_only=True):
    """The execution of a test at one place of its sweep of points."""

    place: str
    duration_s: float
    reached: frozenset[int]


class CleanTest(msgspec.Struct, frozen=True, kw_only=True):
    """One test: its file, the seconds it took, and the numbers of the probes that it reached.

    A test with a sweep of points has its first execution, without a fault, and one for each place.
    """

    name: str
    path: str
    is_scenario: bool
    duration_s: float
    reached: frozenset[int]
    places: tuple[CleanPlace, ...] = ()

    def at(self, probes: AbstractSet[int]) -> CleanTest | None:
        """Return the test with those places alone that reach a probe, or None if it does not."""
        places = tuple(place for place in self.places if place.reached & probes)
        return msgspec.structs.replace(self, places=places) if places or self.reached & probes else None

    @property
    def whole_s(self) -> float:
        """How long it takes, with its places, in seconds."""
        return self.duration_s + sum(place.duration_s for place in self.places)

    @property
    def all_reached(self) -> frozenset[int]:
        """What it reaches, with its places."""
        return self.reached.union(*(place.reached for place in self.places))


class CleanRun(msgspec.Struct, frozen=True, kw_only=True):
    """All tests, how pytest is to be called, and what may be preloaded.

    ``given`` are its arguments for all tests, ``arguments`` those without the tests' files.
    ``offsets`` has the number of the first probe of each module, ``functions`` that of each
    function (``module:name``). ``sources`` are the files of the imported modules that are neither
    Python's nor installed ones.
    """

    tests: tuple[CleanTest, ...]
    arguments: tuple[str, ...]
    given: tuple[str, ...]
    preload: tuple[str, ...]
    sources: tuple[str, ...]
    offsets: dict[str, int]
    functions: dict[str, int]

    def reaching(self, mutant: Mutant, modules: Sequence[SourceModule]) -> list[CleanTest]:
        """Return the tests that reach a mutant, the quickest first.

        A statement outside of functions is reached through the functions that use the names it
        binds, or names made of them, and one of a class through its methods; if there is none, by
        every test.
        """
        probes = {self.offsets[mutant.module] + mutant.probe}
        if mutant.constants:
            names = frozenset(mutant.constants)
            for _ in range(2):  # a constant may be made of one in another module
                names = names.union(*(derived_names(module.source, names) for module in modules))
            users = {f"{module.name}:{name}" for module in modules for name in users_of(module.source, names)}
            if mutant.function:  # a field of a class: its methods may know it by another way
                users |= {name for name in self.functions if name.startswith(f"{mutant.place}.")}
            probes = {self.functions[user] for user in users & self.functions.keys()}
            if not probes:
                return sorted(self.tests, key=lambda test: test.whole_s)
        found = (test.at(probes) for test in self.tests)
        return sorted((test for test in found if test is not None), key=lambda test: test.whole_s)

    def shares(self, module: str) -> dict[str, float]:
        """Return the share of a module's statements and functions that each test reaches."""
        first = self.offsets[module]
        last = min((each for each in self.offsets.values() if each > first), default=None)
        reached = {
            test.name: {each for each in test.all_reached if each >= first and (last is None or each < last)}
            for test in self.tests
        }
        whole = len(set().union(*reached.values())) or 1
        return {name: len(found) / whole for name, found in reached.items()}


def run_clean(
    command: PytestCommand,
    package: str,
    modules: Sequence[SourceModule],
    folder: Path,
    *,
    seed: str,
    jobs: int = 1,
    without: str = "a mutant",
) -> CleanRun:
    """Run the tests with probes. Raises UsageError when they do not pass, or have no scenario.

    With several jobs each runs a part of the tests. ``without`` names what comes afterwards.
    """
    watched = CleanEvents()
    if jobs > 1:
        _run_part(command, package, modules, folder / "collect", watched, seed=seed, collect_only=True)
    names = [name for name, _, _ in watched.collected["tests"]]
    parts = [names[number::jobs] for number in range(jobs)] if names else [None]
    with ThreadPoolExecutor(len(parts)) as pool:
        tasks = [
            pool.submit(_run_part, command, package, modules, folder / str(number), watched, seed=seed, only=part)
            for number, part in enumerate(parts)
            if part is None or part
        ]
        ends = [task.result() for task in tasks]
    if watched.failed:
        name, text = next(iter(watched.failed.items()))
        how = f"got {len(watched.failed)} failed, first {name}: {text.rstrip('.?')}"
        msg = f"the tests must pass without {without}; {how}. Mend them"
        raise UsageError(msg)
    for end in ends:
        if end.why != "ended" or end.status not in {0, _NO_TESTS}:
            said = "\n".join(end.output.strip().splitlines()[-_LINES_SHOWN:])
            how = f"exit {end.status}" if end.why == "ended" else end.why
            msg = f"the test command must pass without {without}; got {how}. It said:\n{said}"
            raise UsageError(msg)
    if not any(test.is_scenario for test in watched.tests.values()):
        msg = f"the test command must run a chaos test; got {len(watched.tests)} tests without the marker chaos. "
        raise UsageError(msg + "Mark scenarios with pytest.mark.chaos, or select others after --")
    return watched.clean_run(command, *_offsets(modules))


def _run_part(
    command: PytestCommand,
    package: str,
    modules: Sequence[SourceModule],
    folder: Path,
    watched: CleanEvents,
    *,
    seed: str,
    only: Sequence[str] | None = None,
    collect_only: bool = False,
) -> RunEnd:
    def take(event: Event) -> bool:
        return watched.take(event) and not (collect_only and event["event"] == "collected")

    _write_probes(modules, folder)
    with PreloadedPytest(command, package, seed=seed) as pytest:
        environment = {"CHAOS_MUTATE_MODULES": "1"}
        return pytest.run(
            folder,
            command.arguments,
            watched.bound_s,
            take,
            environment=environment,
            only=None if only is None else dict.fromkeys(only),
        )


def _offsets(modules: Sequence[SourceModule]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the number of the first probe of each module, and of each function."""
    offsets: dict[str, int] = {}
    functions: dict[str, int] = {}
    total = 0
    for module in modules:
        offsets[module.name] = total
        _, count, found = compiled_with_probes(module.source, str(module.path), total)
        functions |= {f"{module.name}:{name}": number for name, number in found.items()}
        total += count
    return offsets, functions


def _write_probes(modules: Sequence[SourceModule], folder: Path) -> None:
    folder.mkdir(parents=True)
    total = 0
    for module in modules:
        code, count, _ = compiled_with_probes(module.source, str(module.path), total)
        (folder / f"{module.name}.code").write_bytes(marshal.dumps(code))
        total += count
    (folder / "reach.map").write_bytes(bytes(max(1, total)))


class CleanEvents:
    """What the plugin tells of the clean run."""

    def __init__(self) -> None:
        self.tests: dict[str, CleanTest] = {}
        self.failed: dict[str, str] = {}
        self.collected: Event = {"given": [], "root": "", "configuration": "", "tests": []}
        self.modules: list[tuple[str, str | None]] = []
        self._known: dict[str, tuple[bool, str]] = {}

    def bound_s(self, event: Event) -> float:
        """Return how long the next event may take, in seconds."""
        return TEST_S_MAX if event["event"] in {"collected", "started", "finished", "report"} else COLLECT_S_MAX

    def take(self, event: Event) -> bool:
        """Take note of an event; there is always more to see."""
        kind = event["event"]
        if kind == "collected":
            self.collected = event
            self._known |= {name: (is_scenario, path) for name, is_scenario, path in event["tests"]}
        elif kind == "report" and event["outcome"] == "failed":
            self.failed.setdefault(event["test"], _why(event))
        elif kind == "finished" and event["test"] in self._known:
            is_scenario, path = self._known[event["test"]]
            duration_s, reached = event["duration_s"], frozenset(event["reached"])
            if (survey := self.tests.get(event["test"])) is not None:  # it is a sweep of points
                place = CleanPlace(place=event["place"], duration_s=duration_s, reached=reached)
                self.tests[event["test"]] = msgspec.structs.replace(survey, places=(*survey.places, place))
                return True
            self.tests[event["test"]] = CleanTest(
                name=event["test"], path=path, is_scenario=is_scenario, duration_s=duration_s, reached=reached
            )
        elif kind == "modules":
            self.modules = event["modules"]
        return True

    def clean_run(self, command: PytestCommand, offsets: dict[str, int], functions: dict[str, int]) -> CleanRun:
        """Return what was seen, once all tests have passed."""
        found = [f"--rootdir={self.collected['root']}"]
        found += ["-c", self.collected["configuration"]] if self.collected["configuration"] else []
        arguments = _without(command.arguments, self.collected["given"])
        return CleanRun(
            tests=tuple(self.tests.values()),
            arguments=(*arguments, *found),
            given=(*command.arguments, *found),
            preload=tuple(_preloadable(self.modules)),
            sources=tuple(_sources(self.modules)),
            offsets=offsets,
            functions=functions,
        )


def _why(event: Event) -> str:
    findings = event.get("findings") or [["", "", event.get("text", "")]]
    signature, _, text = findings[0]
    return f"{signature}: {text}".strip(": ") if signature else text


_WITH_VALUE: Final = frozenset({"-k", "-m", "-p", "-c", "-n", "-o", "-W", "-r", "--deselect", "--ignore"})


def _without(arguments: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return the arguments of pytest without its files: each mutant has files of its own."""
    return [
        word
        for before, word in zip(["", *arguments], arguments, strict=False)
        if word not in given or before in _WITH_VALUE
    ]


def _libraries() -> list[Path]:
    paths = sysconfig.get_paths()
    return [Path(paths[name]).resolve() for name in ("stdlib", "purelib", "platlib")]


def _sources(modules: Sequence[tuple[str, str | None]]) -> list[str]:
    files = {str(Path(file).resolve()) for _, file in modules if file is not None and file.endswith(".py")}
    roots = _libraries()
    return sorted(file for file in files if not any(Path(file).is_relative_to(root) for root in roots))


def _preloadable(modules: Sequence[tuple[str, str | None]]) -> list[str]:
    """Return the modules of the standard library and of distributions that are no pytest plugins.

    Pytest rewrites the assertions of its plugins, and complains of one that is imported before.
    """
    roots = _libraries()
    plugins = set()
    for distribution in importlib.metadata.distributions():
        if any(entry.group == "pytest11" for entry in distribution.entry_points):
            plugins |= {Path(str(file)).parts[0].removesuffix(".py") for file in distribution.files or ()}
    own = ("chaos_mutate", "sitecustomize", "__main__", "usercustomize")
    return [
        name
        for name, file in modules
        if file is not None and not name.startswith(own) and name.partition(".")[0] not in plugins
        if any(Path(file).resolve().is_relative_to(root) for root in roots)
    ]
