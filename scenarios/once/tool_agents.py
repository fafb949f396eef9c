"""The programs of the scenario about tools: agents that run real shell commands.

The world keeps the effects of the commands.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from durable_agents import RAISE, RUN_AGAIN, CommandOutput, Happened, Probe, ToolLedger
from durable_agents.errors import InDoubt
from durable_agents.processes import Liveness, look

from scenarios.work.agents import made

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durable_agents.once.tool_ledger import DoubtPolicy
    from pytest_chaos import Marks

LARGE_EVERY = 50
LARGE_BYTES = 150_000
SMALL = r"printf '\000\377\015\012\303( %s' $$"
"""Bytes that are no text, with the number of the process: no two executions put out the same.

The shell does it without another process.
"""


@contextlib.contextmanager
def opened(ledger: str, database: str) -> Iterator[ToolLedger]:
    """Open the ledger of this name, sound or planted."""
    part: ToolLedger = made(ledger, db_path=database)
    with part:
        yield part


def run_tools(marks: Marks, database: str, ledger: str, numbers: list[int], world: str, policy: str) -> None:
    """Run each command; mark its output, or that it is in doubt."""
    with opened(ledger, database) as part:
        for number in numbers:
            marks.intent("tool", number)
            try:
                run = part.run_command(
                    command_of(world, number), key=f"tool-{number}", in_doubt=policy_of(policy, world, number)
                )
            except InDoubt as error:
                marks.note("in-doubt", number, value=str(error))
            else:
                marks.ack("tool", number, value=described(run.output) | {"replay": run.is_replay})
    marks.note("done")


def run_failing(marks: Marks, database: str, ledger: str, world: str, times: int) -> None:
    """Run a command that fails, again and again."""
    argv = ["sh", "-c", f"echo failing >> {world}/effects; echo no >&2; exit 3"]
    with opened(ledger, database) as part:
        for number in range(times):
            marks.intent("failing", number)
            run = part.run_command(argv, key="failing", in_doubt=RAISE)
            marks.ack("failing", number, value=described(run.output) | {"replay": run.is_replay})


def run_interrupted(marks: Marks, database: str, ledger: str, world: str) -> None:
    """Run a tool and its child until an interrupt; mark the survivors, and ask again."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pids, begun = Path(world, "pids"), Path(world, "begun")
    os.mkfifo(begun)
    child = f"echo $$ >> {pids}; echo begun > {begun}; exec sleep 300"
    command = ["sh", "-c", f"echo $$ >> {pids}; sh -c '{child}' & wait"]
    threading.Thread(target=lambda: marks.note("begun", value=begun.read_text()), daemon=True).start()
    with opened(ledger, database) as part:
        marks.intent("tool", "long")
        try:
            part.run_command(command, key="long", in_doubt=RAISE)
        except KeyboardInterrupt:
            marks.note("interrupted", value={"left": ended_late([int(line) for line in pids.read_text().split()])})
        try:
            part.run_command(command, key="long", in_doubt=RAISE)
        except InDoubt as error:
            marks.note("in-doubt", "long", value=str(error))
    marks.note("done")


def ended_late(pids: list[int]) -> list[int]:
    """Return those of the processes that still run, and end them."""
    left = [pid for pid in pids if look(pid, None) is not Liveness.DEAD]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def command_of(world: str, number: int) -> list[str]:
    """Return a command: output of one execution, kept in the world too,
    and one line in the file of effects when it is done.
    """
    output = f"{world}/output-{number}"
    is_large = number % LARGE_EVERY == 1
    large, small = f"head -c {LARGE_BYTES} /dev/urandom > {output}; cat {output}", f"{SMALL} > {output}; {SMALL}"
    put_out = large if is_large else small
    return ["sh", "-c", f"{put_out}; echo {number} >> {world}/effects"]


def policy_of(policy: str, world: str, number: int) -> DoubtPolicy:
    """Return the doubt policy of this name."""
    if policy == "probe":
        return Probe(lambda: seen_in(world, number))
    return RUN_AGAIN if policy == "run-again" else RAISE


def seen_in(world: str, number: int) -> Happened | None:
    """Return what the world shows of a command: its output, if its effect is in the file."""
    effects = Path(world, "effects")
    if not effects.exists() or str(number) not in effects.read_text().split():
        return None
    return Happened(CommandOutput(exit_code=0, stdout=Path(world, f"output-{number}").read_bytes()))


def described(output: Any) -> dict[str, Any]:
    """Return a mark's form of an output: types, exit code and signal, and hashes of the bytes."""
    content = output.stdout
    digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else repr(content)[:80]
    return {
        "type": f"{type(output).__name__} of {type(content).__name__}",
        "sha256": digest,
        "exit_code": output.exit_code,
        "signal": output.signal,
    }
