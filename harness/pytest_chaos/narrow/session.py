"""A pytest process that narrows a violation down, heard through a pipe.

The order is a file, named by an environment variable; so is the pipe. If the process that listens
is killed, the next line cannot be written, and the narrowing ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.evidence.replay import of_this_session, options
from pytest_chaos.narrow.variant import Heard, Narrowed
from pytest_chaos.runtime import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_chaos.narrow.variant import NarrowOrder

ORDER: Final = "CHAOS_NARROW"
"""The environment variable with the number of the pipe and the path of the order."""
GRACE_S: Final = 60.0
"""How long a run that has begun may go on after the time of its order."""
_END_S: Final = 20.0
_OUTPUT_BYTES: Final = 20_000
_NO_ANSWER: Final = "the pytest process ended without an answer"


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Make a folder for the results of runs, removed afterwards, or by a later session."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it, with mode 0700
    base = memory if memory.is_dir() and os.access(memory, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    scratch.sweep(base)
    made = scratch.create(base)
    try:
        yield made
    finally:
        scratch.remove(made)


def ask(
    order: NarrowOrder,
    pack: Path,
    node_id: str,
    *,
    root: Path,
    work: Path,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[Heard], object] = bool,
) -> Narrowed:
    """Have an order carried out in a pytest process, and return its answer.

    ``root`` is the project's folder, ``work`` one for the results, which are removed. An answer
    that did not come has a ``problem``.
    """
    place = Path(tempfile.mkdtemp(prefix="narrow-", dir=work))
    (place / "order.json").write_bytes(msgspec.json.encode(order))
    command = [sys.executable, "-m", "pytest", node_id, *options(pack.absolute(), place / "results")]
    command += [f"--rootdir={root}", "-q", "-p", "no:cacheprovider", "--chaos-report=json", "--chaos-confirm=0"]
    reading, writing = os.pipe()
    given = {**of_this_session(), **(environment or {}), ORDER: f"{writing}:{place / 'order.json'}"}
    try:
        with (place / "output").open("wb") as output, os.fdopen(reading, "rb") as pipe:
            process = subprocess.Popen(
                [*command, *arguments], cwd=root, env=given, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                pass_fds=[writing],
            )  # fmt: skip
            os.close(writing)
            try:
                answer = _heard(pipe.fileno(), process, order.seconds + GRACE_S, on_line)
            finally:
                _end(process)
        return answer or Narrowed(problem=_why(process.returncode, place / "output"), is_whole=False)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _heard(
    pipe: int, process: subprocess.Popen[bytes], seconds: float, on_line: Callable[[Heard], object]
) -> Narrowed | None:
    """Return the answer, or None if the process ended, or did not end in time, without one."""
    import select

    deadline_s = time.monotonic() + seconds
    left = b""
    while (patience_s := deadline_s - time.monotonic()) > 0:
        ready, _, _ = select.select([pipe], [], [], min(patience_s, 0.5))
        if not ready:
            if process.poll() is not None:  # something that it has started keeps the pipe open
                return None
            continue
        content = os.read(pipe, 1 << 16)
        if not content:
            return None
        *lines, left = (left + content).split(b"\n")
        for text in lines:
            line = msgspec.json.decode(text, type=Heard)
            if line.answer is not None:
                return line.answer
            on_line(line)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let the process end; interrupt it if it does not, so that its guardian can clean up."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.0 if sys.exc_info()[0] is not None else _END_S)
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _why(code: int | None, output: Path) -> str:
    """Return in one sentence why a pytest process has given no answer."""
    with contextlib.suppress(OSError):
        lines = output.read_bytes()[-_OUTPUT_BYTES:].decode(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith(("ERROR", "E  ", "INTERNALERROR>"))]
        said = " ".join((errors or [line for line in lines if line.strip()] or [""])[-1 if not errors else 0].split())
        if said:
            return f"{_NO_ANSWER} (exit code {code}): {said:.300}"
    return f"{_NO_ANSWER} (exit code {code})"


def order_from_environment() -> tuple[int, Path] | None:
    """Return the pipe and the order of this process, once; None for any other pytest process.

    Raises UsageError for a variable that is none of ours.
    """
    text = os.environ.pop(ORDER, None)
    if text is None:
        return None
    number, _, path = text.partition(":")
    try:
        pipe = int(number)
        os.set_inheritable(pipe, False)  # noqa: FBT003 - its name says it
    except (ValueError, OSError) as error:
        msg = f"{ORDER} must be what chaos shrink sets; got {text!r} ({error}). Unset it"
        raise UsageError(msg) from None
    return pipe, Path(path)
