"""``chaos check``: judges a history of any tool by a model or a checker."""

from __future__ import annotations

import contextlib
import re
import resource
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from pytest_chaos.checkers import TIME_IS_UP
from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from pytest_chaos.model.calls import Call
    from pytest_chaos.model.values import Finding, Receipt

_EXIT: Final = {Verdict.HELD: 0, Verdict.VIOLATED: 1, Verdict.INCONCLUSIVE: 2}
_MEGABYTE: Final = 1_000_000
_LEAST_MB: Final = 64
"""What the command may take however small --memory is: it has to say so."""
_LINEARIZABLE: Final = (
    "register", "cas-register", "set", "queue", "unordered-queue", "mutex", "lock", "lease", "linearizable-counter",
    "map",
)  # fmt: skip
_ISOLATION: Final = ("list-append", "rw-register")
_ELEMENTS: Final = ("set-full", "total-queue", "unique-ids", "counter")
_SNAPSHOTS: Final = ("bank", "long-fork", "comments", "sequential")
_MODELS: Final = (*_LINEARIZABLE, *_ISOLATION, *_ELEMENTS, *_SNAPSHOTS)
_FACTS: Final = ("wfr-keys", "sequential-keys", "linearizable-keys")


@click.command()
@click.argument("history", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--model", required=True, type=click.Choice(_MODELS), help="What to judge it by.")
@click.option(
    "--level",
    default="strict-serializable",
    show_default=True,
    help="The isolation that list-append and rw-register must keep.",
)
@click.option("--keyed", is_flag=True, help="Values are [key, value], and each key is an object of its own.")
@click.option("--initial", default=None, help="What a register holds at first, as JSON.  [default: nothing]")
@click.option(
    "--assume", "facts", multiple=True, type=click.Choice(_FACTS), help="What orders the versions of rw-register."
)
@click.option("--total", type=float, default=None, help="The sum of a bank's accounts.  [default: of the first read]")
@click.option("--negative", is_flag=True, help="A balance of a bank may be below 0.")
@click.option("--group-size", type=int, default=None, help="How many keys each read of long-fork must have.")
@click.option("--time", "time_s", type=float, default=600.0, show_default=True, help="How long to search, in seconds.")
@click.option(
    "--memory", "memory_mb", type=int, default=2000, show_default=True, help="Memory that it may take, in MB."
)
@click.option("--write", "target", type=click.Path(path_type=Path), help="Write the history again: .edn or .json.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    *, history: Path, model: str, keyed: bool, time_s: float, memory_mb: int, target: Path | None, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Judge a HISTORY that Jepsen, elle-cli, porcupine or a run has written.

    It is EDN or JSON, an event a line or all in one list, a console log of Jepsen, or a mark file.
    The models from register to map ask for linearizability; list-append and rw-register for
    isolation; the others for one thing each.

    Exits 0 when it holds, 1 when it does not, 2 when the time or
    the memory was not enough, 3 for a history that cannot be read.
    """
    with _bounded(memory_mb):
        _check(history, model, target, time_s, memory_mb, _Options(**options), keyed=keyed, as_json=as_json)


def _check(
    history: Path, model: str, target: Path | None, time_s: float, memory_mb: int, options: _Options, *, keyed: bool,
    as_json: bool,
) -> None:  # fmt: skip
    receipts: list[Receipt] = []
    judge, functions = _judge(model, memory_mb, options)
    calls = _read(history, functions, memory_mb, receipts, keyed=keyed)
    if target is not None:
        _write(target, calls)
    over_s = time.monotonic() + time_s
    token = TIME_IS_UP.set(lambda: time.monotonic() > over_s)
    try:
        findings = judge(calls, receipts)
    except MemoryError:
        findings = (_too_large(memory_mb, len(calls)),)
    finally:
        TIME_IS_UP.reset(token)
    verdict = Verdict.worst([Verdict.HELD, *(finding.verdict for finding in findings)])
    _print(history, model, verdict, len(calls), findings, as_json=as_json)
    raise click.exceptions.Exit(_EXIT[verdict])


class _Options(NamedTuple):
    """The options that belong to some models alone."""

    level: str
    initial: str | None
    facts: tuple[str, ...]
    total: float | None
    negative: bool
    group_size: int | None

    def require_of(self, model: str) -> None:
        """Raise UsageError for an option that says nothing about this model."""
        given: tuple[tuple[str, object, Collection[str]], ...] = (
            ("--initial", self.initial, ("register", "cas-register")),
            ("--assume", self.facts, ("rw-register",)),
            ("--total", self.total, ("bank",)),
            ("--negative", self.negative, ("bank",)),
            ("--group-size", self.group_size, ("long-fork",)),
        )
        for name, value, models in given:
            if value not in (None, False, ()) and model not in models:
                msg = f"{name} must be given for {' or '.join(models)}; got it for {model}. Leave it out"
                raise UsageError(msg)


def _judge(
    model: str, memory_mb: int, options: _Options
) -> tuple[Callable[[Sequence[Call], Sequence[Receipt]], tuple[Finding, ...]], Sequence[str]]:
    """Return what judges calls by a model, and the functions that the model knows."""
    from pytest_chaos.checkers import elements, isolation, snapshots
    from pytest_chaos.checkers.linearizability import linearizable, models

    options.require_of(model)
    if model == "list-append":
        return isolation.list_append(options.level).judge, ()
    if model == "rw-register":
        wfr, by_process, by_time = (fact in options.facts for fact in _FACTS)
        checker = isolation.rw_register(
            options.level, wfr_keys=wfr, sequential_keys=by_process, linearizable_keys=by_time
        )
        return checker.judge, ()
    made: dict[str, Callable[[], elements.CallChecker]] = {
        "set-full": elements.set_full, "total-queue": elements.total_queue, "unique-ids": elements.unique_ids,
        "counter": elements.counter, "comments": snapshots.comments, "sequential": snapshots.sequential,
        "bank": partial(snapshots.bank, total=options.total, negative=options.negative),
        "long-fork": partial(snapshots.long_fork, group_size=options.group_size),
    }  # fmt: skip
    if model in made:
        other = made[model]()
        return other.judge, tuple(other.functions)
    named = models.model_named(model.removeprefix("linearizable-"))
    if options.initial is not None and isinstance(named, models.Register):
        named = type(named)(_json(options.initial))
    return linearizable(named, memory_bytes=memory_mb * _MEGABYTE // 2).judge, tuple(named.functions)


def _json(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        msg = f"--initial must be JSON; got {text!r} ({error}). Quote a text twice: --initial '\"text\"'"
        raise UsageError(msg) from error


def _read(
    history: Path, functions: Sequence[str], memory_mb: int, receipts: list[Receipt], *, keyed: bool
) -> list[Call]:
    from pytest_chaos.model.interchange import read_calls

    full = partial(_full, memory_mb)
    try:
        with history.open("rb") as lines:
            return read_calls(lines, functions=functions, is_full=full, is_keyed=keyed, receipts=receipts)
    except UsageError as error:
        msg = f"{history}: {error}"
        raise UsageError(msg) from error
    except MemoryError:
        msg = (
            f"{history}: the history must fit the memory that it may take; got more than {memory_mb:,} MB (--memory). "
            "Split it by key"
        )
        raise UsageError(msg) from None
    except OSError as error:
        msg = f"the history must be a file that can be read; got {history} ({error.strerror}). Give another one"
        raise UsageError(msg) from error


@contextlib.contextmanager
def _bounded(memory_mb: int) -> Iterator[None]:
    """Let the process have no more memory than it may: then it gets a MemoryError, and no kill.

    What it has already, and the least that it needs to say so, come on top.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _taken_bytes() + max(memory_mb, _LEAST_MB) * _MEGABYTE
    if before[1] != resource.RLIM_INFINITY:
        limit = min(limit, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _taken_bytes() -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return 0


def _too_large(memory_mb: int, count: int) -> Finding:
    from pytest_chaos.model.values import Finding

    text = (
        f"{count:,} operations cannot be judged within {memory_mb:,} MB (--memory). Give more, or split the history "
        "by key"
    )
    return Finding(signature="check:memory", text=text, kind="harness")


def _full(memory_mb: int) -> str:
    """Return why no more may be read, or an empty text."""
    used_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // _MEGABYTE
    return f"{used_mb:,} MB of {memory_mb:,} (--memory)" if used_mb > memory_mb else ""


def _write(target: Path, calls: Sequence[Call]) -> None:
    from pytest_chaos.model.interchange import to_edn, to_json

    formats = {".edn": to_edn, ".json": to_json}
    if target.suffix not in formats:
        msg = f"--write must name a file that ends in .edn or .json; got {target}. Rename it"
        raise UsageError(msg)
    with target.open("wb") as lines:
        lines.writelines(formats[target.suffix](calls))


def _print(
    history: Path, model: str, verdict: Verdict, count: int, findings: Sequence[Finding], *, as_json: bool
) -> None:
    if as_json:
        import msgspec

        from pytest_chaos.cli.documents import CheckDocument

        said = CheckDocument(
            history=str(history), model=model, verdict=verdict, operations=count, findings=list(findings)
        )  # fmt: skip
        click.echo(msgspec.json.format(msgspec.json.encode(said), indent=1))
        return
    click.echo(f"{verdict}: {history} ({count:,} operations) by {model}")
    for finding in findings:
        click.echo(f"  [{finding.signature}] {finding.text}".replace("\n", "\n    "))
