"""Options of an exploration: one frozen value, validated where it is made."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.simulate.power import SAMPLES, Model
from pytest_chaos.model.plan import COUNT_MAX, TIME_S_MAX, shown

POWER_STATES: Final = 100_000
CONFIRMATIONS: Final = 8
"""Crash points without a finding that are also tried with a real kill."""
RECOVERIES: Final = 64
"""Crash states whose recovery is recorded and interrupted; of more, a sample is drawn."""
WORKLOADS: Final = 25
"""Workloads that are drawn of a state machine."""
OPERATIONS: Final = 10
"""Operations of such a workload, at most."""
IO_RUNS: Final = 2000
"""I/O errors that are made for real; of more, a sample is drawn."""
RUN_TIMEOUT_S: Final = 60.0
CHECK_TIMEOUT_S: Final = 10.0
_TIMES: Final = f"more than 0 s, and {TIME_S_MAX:,.0f} s at most"
ALL, EACH = "all", "each"
"""What a crash ends: the whole process tree, or in addition each process alone."""
SQLITE: Final = "sqlite"
WATCHES: Final = (SQLITE,)
"""What can be watched beside the families."""
SCHEDULES_MAX: Final = 10_000
JOBS_MAX: Final = 256
"""Upper bound on workers: a typing error must not fork until the machine has no memory left."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of an exploration. Raises UsageError that names every invalid option.

    ``samples`` bounds the power-loss states of a moment that has more than 64. If a run is so long
    that this gives more than ``power_states`` of a model, fewer moments are explored, spread
    evenly. ``schedules`` is the number of recordings, each of another order of threads and
    processes; 0 is 1 for a program with one thread that makes the same steps twice, else 5. With
    ``victim`` each, a crash also ends each process of the program alone; any other victim is the
    name, a pattern or the number of processes that do so. ``budget_s`` None is no
    limit. ``source`` is seccomp, audit, or None for the best source on this machine.

    Of a state machine that many ``workloads`` are drawn, each of at most so many ``operations``.

    ``ignore`` and ``volatile`` are patterns of files that are no data, in addition to those of the
    target; ``trace.step.FileKinds`` says what they mean.

    ``watch`` names what else is looked at, in a run of its own: ``sqlite`` finds what the program
    does that corrupts a SQLite database.

    ``doubt`` also tries the check: does it notice the states that damaged recordings leave?

    ``scratch`` is the folder for states, by default in memory. Failing states are kept in ``kept``;
    texts call it ``kept_as`` if it will be moved. ``progress`` is the file from which a stopped
    exploration goes on. ``command`` is the beginning of the command line that explores this target.
    ``cluster`` is the address of a cluster that judges in place of ``jobs``: ``local:4``,
    ``tcp://host:8786``, ``slurm:8``.

    >>> Options(seed="s", jobs=0)
    Traceback (most recent call last):
    pytest_chaos.errors.UsageError: jobs must be 1 to 256; got 0
    """

    seed: str
    families: tuple[Family, ...] = tuple(Family)
    watch: tuple[str, ...] = ()
    doubt: bool = False
    models: tuple[Model, ...] = tuple(Model)
    jobs: int = 1
    budget_s: float | None = None
    samples: int = SAMPLES
    power_states: int = POWER_STATES
    confirmations: int = CONFIRMATIONS
    recoveries: int = RECOVERIES
    io_runs: int = IO_RUNS
    workloads: int = WORKLOADS
    operations: int = OPERATIONS
    schedules: int = 0
    victim: str = ALL
    ignore: tuple[str, ...] = ()
    volatile: tuple[str, ...] = ()
    run_timeout_s: float = RUN_TIMEOUT_S
    check_timeout_s: float = CHECK_TIMEOUT_S
    source: str | None = None
    scratch: Path | None = None
    kept: Path | None = None
    kept_as: str = ""
    progress: Path | None = None
    command: str = ""
    cluster: str = ""

    def __post_init__(self) -> None:
        """Check everything that can be wrong, and report it together."""
        wrong = []
        if not _is_whole(self.jobs, JOBS_MAX):
            wrong.append(f"jobs must be 1 to {JOBS_MAX}; got {shown(self.jobs)}")
        counts = {"samples": self.samples, "recoveries": self.recoveries, "io-runs": self.io_runs}
        counts |= {"workloads": self.workloads, "operations": self.operations}
        wrong += [
            f"{name} must be at least 1, and {COUNT_MAX:,} at most; got {shown(count)}"
            for name, count in counts.items()
            if not _is_whole(count, COUNT_MAX)
        ]
        if not _is_whole(self.schedules, SCHEDULES_MAX, least=0):
            rule = f"1 to {SCHEDULES_MAX}, or 0 to let the program decide"
            wrong.append(f"schedules must be {rule}; got {shown(self.schedules)}")
        if not isinstance(self.victim, str) or not self.victim.strip():
            wrong.append(f"victim must be {ALL}, {EACH}, or the name of a process; got {shown(self.victim)}")
        if unknown := [each for each in self.watch if each not in WATCHES]:
            wrong.append(f"watch must be {' or '.join(WATCHES)}; got {shown(unknown[0])}")
        if not self.families:
            wrong.append(f"families must name at least one of {', '.join(Family)}; got none")
        if Family.POWER in self.families and not self.models:
            wrong.append(f"models must name at least one of {', '.join(Model)}; got none")
        wrong += patterns_wrong("ignore", self.ignore) + patterns_wrong("volatile", self.volatile)
        times = {"run-timeout": self.run_timeout_s, "check-timeout": self.check_timeout_s}
        if self.budget_s is not None:
            times["budget"] = self.budget_s
        wrong += [
            f"{name} must be {_TIMES}; got {shown(time_s)}"
            for name, time_s in times.items()
            if not _is_number(time_s) or not 0 < time_s <= TIME_S_MAX
        ]
        if wrong:
            raise UsageError("; ".join(wrong))

    @property
    def choice(self) -> str:
        """A digest of the options that decide what is found, apart from the seed."""
        chosen = repr(msgspec.structs.replace(self.deciding, seed="-"))
        return blake2b(chosen.encode(errors="surrogatepass"), digest_size=6).hexdigest()

    @property
    def deciding(self) -> Options:
        """The options, with those reset that do not decide what is found."""
        return msgspec.structs.replace(
            self,
            jobs=1,
            doubt=False,
            budget_s=None,
            source=None,
            scratch=None,
            kept=None,
            kept_as="",
            progress=None,
            command="",
            cluster="",
        )


def patterns_wrong(name: str, patterns: object) -> list[str]:
    """Return what is wrong with patterns of files: each must be able to match a path."""
    rule = f"{name} must be patterns of paths in the directory, such as '*.log' or 'run/*.pid'"
    if not isinstance(patterns, tuple | list):
        return [f"{rule}; got {shown(patterns)}"]
    return [
        f"{rule}; got {shown(pattern)}"
        for pattern in patterns
        if not isinstance(pattern, str) or not pattern.strip("/") or {".", ".."} & set(pattern.split("/"))
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(count: object, most: int, *, least: int = 1) -> bool:
    return _is_number(count) and isinstance(count, int) and least <= count <= most
