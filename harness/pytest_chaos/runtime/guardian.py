"""The guardian: starts and reaps all agents of a pytest process, and outlives it to clean up.

It is started by exec (``python -m pytest_chaos.runtime.guardian FD``) in a session of its own, has
one thread, and is a child subreaper: what an agent leaves behind becomes its child. It obeys the
messages of the controller. When the controller's socket closes, or a process that it watches ends,
it ends every descendant, turns the run's journal into an evidence pack and removes the session's
folder. A parent-death signal is not enough: it misses grandchildren and daemons, and it fires when
the creating thread ends.

The guardian has a stand-in, its parent: :func:`stand_in` forks the guardian before anything else.
The stand-in does nothing but wait. If the guardian is killed, all orphans become children of the
stand-in, which cleans up in its place.

The guardian of an exploration (``explore/launch.py``) shares :func:`become_guardian`,
:func:`stand_in` and :func:`end_descendants`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from pytest_chaos.runtime import child, owner, processes, wire, zygote

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TAIL_BYTES: Final = 64 * 1024
"""Bytes kept of the end of an output that is longer than its limit."""

ZygoteKey: TypeAlias = tuple[str, int]
"""A module, and the number of the import path under which it was imported."""


def become_guardian() -> None:
    """Adopt all orphans below this process, and ignore the signals that end its controller.

    A guardian ends when its controller has ended, and not before.
    """
    processes.adopt_orphans()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def end_descendants() -> None:
    """End and reap every descendant of this process."""
    processes.end_all(os.getpid(), reap=processes.reap_all)


def stand_in(controller: int, folders: Sequence[Path], *, let_go: Callable[[], None]) -> None:
    """Fork, return in the child, and have this process clean up if the child is killed.

    ``controller`` is a pidfd, and ``folders`` are owned by both processes. ``let_go`` closes what
    only the child may have open. The child's signals are passed on to it. SIGTERM also says that
    the controller has noticed the end of the child: then only processes are ended.
    """
    passed_on = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    try:
        pid = os.fork()
    except OSError:  # there is room for one guardian only
        pid = 0
    if pid:
        _stand_in(pid, controller, folders, let_go)
    processes.adopt_orphans()  # a fork does not inherit that
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    for folder in folders:
        owner.hold(folder)


class _Released(Exception):  # noqa: N818 - says what happened
    """The controller lives, and has noticed the end of its guardian."""


def _stand_in(pid: int, controller: int, folders: Sequence[Path], let_go: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        let_go()
        code = int(not _outlive(os.pidfd_open(pid), pid, controller, folders))
    finally:
        os._exit(code)


def _outlive(guardian: int, pid: int, controller: int, folders: Sequence[Path]) -> bool:
    """Wait for the guardian's end; return whether it ended well, which leaves nothing to do."""
    released = False

    def pass_on(number: int, _: object) -> None:
        nonlocal released
        released = released or number == signal.SIGTERM
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(guardian, number)

    def release(*_: object) -> None:
        raise _Released

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    if os.waitpid(pid, 0)[1] == 0:
        return True
    end_descendants()
    with contextlib.suppress(_Released):
        signal.signal(signal.SIGTERM, release)
        if not released:
            poll = select.poll()
            poll.register(controller, select.POLLIN)
            poll.poll()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if processes.has_ended(controller):
        from pytest_chaos.runtime import scratch  # only now: the guardian has to stay small

        for folder in folders:
            scratch.clear(folder)
    return False


class Output:
    """One agent's output, read from a pipe and written to its log. ``limit`` is in bytes.

    What comes first is written at once, so that a wait for a line sees it. Beyond the limit the
    last TAIL_BYTES are kept in memory, and written at the end after a line that says how much is
    missing.
    """

    def __init__(self, number: int, path: Path, limit: int) -> None:
        self.number = number
        self.path = path
        self.limit = limit
        self.total = 0
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._kept = 0
        self._tail = bytearray()

    def drop_write_end(self) -> None:
        """Close our copy of the writing end: only then does the agent's end close the pipe."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def drain(self) -> bool:
        """Read what is in the pipe; return whether more may come."""
        while True:
            try:
                content = os.read(self.read_end, 1 << 16)
            except BlockingIOError:
                return True
            if not content:
                return False
            self._keep(content)

    def close(self) -> None:
        """Write the kept end, if there is one, and close everything."""
        self.drop_write_end()
        with contextlib.suppress(OSError):  # a full disk costs the end of a log, not the run
            if self._tail:
                missing = self.total - self._kept - len(self._tail)
                os.write(self._file, f"\n[... {missing} bytes left out ...]\n".encode() + bytes(self._tail))
        os.close(self._file)
        os.close(self.read_end)

    def _keep(self, content: bytes) -> None:
        self.total += len(content)
        head = content[: max(0, self.limit - self._kept)]
        if head:
            with contextlib.suppress(OSError):  # as above
                os.write(self._file, head)
            self._kept += len(head)
        self._tail += content[len(head) :]
        if len(self._tail) > TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]


class ModuleZygote:
    """The zygote of one module. Agents in ``waiting`` are forked when it is ready."""

    def __init__(self, pid: int, end: socket.socket, module: str) -> None:
        self.pid = pid
        self.end = end
        self.module = module
        self.ready = False
        self.waiting: list[child.Spec] = []


class Guardian:
    """One event loop over sockets, outputs and dead children."""

    def __init__(self, controller: socket.socket) -> None:
        self._controller = controller
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._agents: dict[int, int] = {}  # pid -> id
        self._outputs: dict[int, Output] = {}  # id -> output
        self._output_bytes: dict[int, int] = {}  # id -> size of an output that is closed
        self._zygotes: dict[ZygoteKey, ModuleZygote] = {}
        self._paths: dict[int, list[str]] = {}
        self._unfit: dict[str, str] = {}  # module -> why it cannot be in a zygote
        self._folder: Path | None = None
        self._journal: Path | None = None
        self._watched: tuple[int, int] | None = None
        self._running = True
        self._commands: dict[str, Callable[[wire.Message], None]] = {
            "folder": self._on_folder,
            "watch": self._on_watch,
            "path": self._on_path,
            "begin": self._on_begin,
            "spawn": self._on_spawn,
            "end": self._on_end,
        }

    def serve(self) -> None:
        """Work until the controller is gone, then clean up."""
        self._listen_for_children()
        self._register(self._controller.fileno(), self._on_controller)
        wire.send(self._controller, {"event": "up", "pid": os.getpid()})
        while self._running:
            for descriptor, _ in self._poll.poll():
                if (handler := self._handlers.get(descriptor)) is not None:
                    handler()
        self._clean_up()

    def _listen_for_children(self) -> None:
        wakeup = processes.wake_on_child()

        def on_wakeup() -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 4096)
            self._reap()

        self._register(wakeup, on_wakeup)

    def _register(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.POLLIN)

    def _unregister(self, descriptor: int) -> None:
        del self._handlers[descriptor]
        self._poll.unregister(descriptor)

    def _tell(self, message: wire.Message, descriptors: tuple[int, ...] = ()) -> None:
        try:
            wire.send(self._controller, message, descriptors)
        except OSError:
            self._running = False

    # Messages of the controller

    def _on_controller(self) -> None:
        received = wire.receive(self._controller)
        if received is None:
            self._running = False
            return
        message, _ = received
        self._commands[message["do"]](message)

    def _on_folder(self, message: wire.Message) -> None:
        self._folder = Path(message["path"])

    def _on_watch(self, message: wire.Message) -> None:
        """Treat the end of another process (xdist's controller) as the end of ours."""

        def gone() -> None:
            self._running = not self._is_watched_gone()

        self._watched = (message["pid"], message["start_ticks"])
        if (descriptor := processes.pidfd_of(*self._watched)) is not None:
            self._register(descriptor, gone)

    def _is_watched_gone(self) -> bool:
        return self._watched is not None and not processes.is_running(*self._watched)

    def _on_path(self, message: wire.Message) -> None:
        self._paths[message["number"]] = message["path"]

    def _on_begin(self, message: wire.Message) -> None:
        self._journal = Path(message["journal"])

    def _on_end(self, _: wire.Message) -> None:
        """End all that the run left: agents, their children and daemons. Idle zygotes stay."""
        for key, found in list(self._zygotes.items()):
            if found.waiting:  # the controller gave up waiting for this import
                os.kill(found.pid, signal.SIGKILL)
                self._drop_zygote(key, found, "it was still being imported when the run ended")
        zygotes = {found.pid for found in self._zygotes.values()}
        ended = [process.pid for process in processes.descendants(os.getpid(), without=zygotes) if process.alive]
        left = processes.end_all(os.getpid(), without=zygotes, reap=self._reap)
        for output in list(self._outputs.values()):
            output.drain()
            self._close_output(output)
        self._output_bytes.clear()
        self._journal = None
        self._tell({"event": "ended", "ended": ended, "left": [process.pid for process in left]})

    def _on_spawn(self, message: wire.Message) -> None:
        spec: child.Spec = message["spec"]
        module = _module_of(spec)
        if spec["target"] is None or message["fresh"] or module in self._unfit:
            self._spawn_here(spec, message)
            return
        key = (module, spec["path"])
        if key not in self._zygotes:
            self._start_zygote(key, message["log"])
        self._new_output(spec, message)
        found = self._zygotes[key]
        found.waiting.append(spec)
        if found.ready:
            self._ask(found)

    # Agents that are forked and executed here

    def _spawn_here(self, spec: child.Spec, message: wire.Message) -> None:
        output = self._new_output(spec, message)
        failure_read, failure_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._execute(spec, output.write_end, failure_write)
        os.close(failure_write)
        output.drop_write_end()
        with os.fdopen(failure_read, "rb") as failure:  # closed by a successful exec
            reason = failure.read()
        if reason:
            self._tell({"event": "failed", "id": spec["id"], "error": reason.decode(errors="replace")})
        else:
            process = processes.read(pid)  # a zombie at worst: we alone can reap it
            start_ticks = process.start_ticks if process is not None else 0
            note = self._unfit.get(_module_of(spec), "")
            self._announce(spec["id"], pid, os.pidfd_open(pid), start_ticks=start_ticks, note=note)

    def _execute(self, spec: child.Spec, output: int, failure: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            source = -1
            if spec["target"] is not None:
                source = os.memfd_create("chaos-spec", 0)
                os.write(source, json.dumps([self._paths[spec["path"]], spec]).encode())
                os.lseek(source, 0, os.SEEK_SET)
            child.become_agent(spec, output, os.getppid())
            argv = spec["argv"] or _interpreter(source)
            environment = dict(os.environ)
            if spec["target"] is not None:
                environment["PYTHONPATH"] = os.pathsep.join(self._paths[spec["path"]])
            os.execvpe(argv[0], argv, environment)
        except OSError as error:
            os.write(failure, f"{error.strerror}: {error.filename or ''}".encode())
        except BaseException as error:  # noqa: BLE001 - a fork must never return into the guardian's loop
            os.write(failure, repr(error).encode())
        os._exit(127)

    # Agents that come from a zygote

    def _start_zygote(self, key: ZygoteKey, log: str) -> None:
        ours, theirs = wire.pair()
        log_descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        guardian_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                processes.die_with_parent(guardian_pid)
                zygote.serve(theirs, key[0], self._paths[key[1]], log_descriptor)
            finally:
                os._exit(70)
        theirs.close()
        os.close(log_descriptor)
        self._zygotes[key] = found = ModuleZygote(pid, ours, key[0])
        self._register(ours.fileno(), lambda: self._on_zygote(key, found))

    def _on_zygote(self, key: ZygoteKey, found: ModuleZygote) -> None:
        while True:
            try:
                received = wire.receive(found.end, wait=False)
            except BlockingIOError:
                return
            if received is None:
                self._drop_zygote(key, found, "the process that imported it ended")
                return
            message, descriptors = received
            if message["event"] == "forked":
                self._announce(message["id"], message["pid"], descriptors[0], start_ticks=message["start_ticks"])
            elif message["event"] == "exited":
                self._agents = {pid: number for pid, number in self._agents.items() if number != message["id"]}
                self._tell_exit(message)
            elif message["event"] == "ready":
                found.ready = True
                self._ask(found)
            elif message["event"] == "unfit":
                self._unfit[found.module] = message["error"]
                self._respawn_waiting(key, found)
                return
            else:
                self._drop_zygote(key, found, message["error"])
                return

    def _ask(self, found: ModuleZygote) -> None:
        for spec in found.waiting:
            output = self._outputs[spec["id"]]
            with contextlib.suppress(OSError):  # the zygote's end is handled when the loop comes to it
                wire.send(found.end, {"spec": spec}, [output.write_end])
                output.drop_write_end()
        found.waiting.clear()

    def _respawn_waiting(self, key: ZygoteKey, found: ModuleZygote) -> None:
        waiting, found.waiting = found.waiting, []
        self._drop_zygote(key, found, "")
        for spec in waiting:
            output = self._outputs.pop(spec["id"])
            self._unregister(output.read_end)
            output.close()
            self._spawn_here(spec, {"output": str(output.path), "output_bytes_max": output.limit})

    def _drop_zygote(self, key: ZygoteKey, found: ModuleZygote, reason: str) -> None:
        self._unregister(found.end.fileno())
        found.end.close()
        self._zygotes.pop(key, None)
        for spec in found.waiting:
            self._close_output(self._outputs[spec["id"]])
            self._tell({"event": "failed", "id": spec["id"], "error": reason})

    # Outputs and ends of all agents

    def _new_output(self, spec: child.Spec, message: dict[str, Any]) -> Output:
        output = Output(spec["id"], Path(message["output"]), message["output_bytes_max"])
        self._outputs[spec["id"]] = output

        def on_output() -> None:
            if not output.drain():
                self._close_output(output)

        self._register(output.read_end, on_output)
        return output

    def _close_output(self, output: Output) -> None:
        self._unregister(output.read_end)
        self._outputs.pop(output.number, None)
        self._output_bytes[output.number] = output.total
        output.close()

    def _announce(self, number: int, pid: int, pidfd: int, *, start_ticks: int, note: str = "") -> None:
        self._agents[pid] = number
        self._tell({"event": "spawned", "id": number, "pid": pid, "start_ticks": start_ticks, "note": note}, (pidfd,))
        os.close(pidfd)

    def _reap(self) -> None:
        """Reap every dead child, and report exit status and resource usage of each agent."""
        for key, found in list(self._zygotes.items()):
            self._on_zygote(key, found)  # an agent announces itself before it can die
        for pid, status, usage in processes.reaped():
            if (number := self._agents.pop(pid, None)) is not None:
                self._tell_exit(zygote.exit_message(number, status, usage))

    def _tell_exit(self, message: wire.Message) -> None:
        """Tell how an agent ended, after its last output was read."""
        if (output := self._outputs.get(message["id"])) is not None:
            output.drain()
            self._output_bytes[output.number] = output.total
        self._tell({**message, "output_bytes": self._output_bytes.get(message["id"], 0)})

    def _clean_up(self) -> None:
        """Remove the session's folder, and save the evidence of a run under way."""
        self._zygotes.clear()
        end_descendants()
        for output in list(self._outputs.values()):
            output.drain()
            output.close()
        if self._journal is not None and self._journal.exists():
            from pytest_chaos.runtime.scratch import save  # only now: the guardian has to stay small

            reason = "the process that ran this test ended before the test did"
            with contextlib.suppress(Exception):  # the folder goes in any case
                save(self._journal, reason, alone=self._is_watched_gone())
        if self._folder is not None:
            from pytest_chaos.runtime import scratch  # as above

            scratch.remove(self._folder)


def _module_of(spec: child.Spec) -> str:
    return (spec["target"] or "").rpartition(":")[0]


def _interpreter(descriptor: int) -> list[str]:
    return [sys.executable, "-c", f"from pytest_chaos.runtime.child import main; main({descriptor})"]


def main() -> None:
    """Serve the controller.

    Descriptors on the command line: its socket, its pidfd, and the lock by which it owns the folder
    (-1 if it does not).
    """
    end, controller, lock = map(int, sys.argv[1:4])
    folder = Path(os.environ[owner.VARIABLE])
    become_guardian()
    for descriptor in (end, controller):
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - it takes no keywords
    if lock >= 0:
        owner.adopt(folder, lock)
    stand_in(controller, [folder], let_go=lambda: os.close(end))
    os.close(controller)
    Guardian(socket.socket(fileno=end)).serve()


if __name__ == "__main__":
    main()
