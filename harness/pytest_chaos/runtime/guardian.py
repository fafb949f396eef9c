"""What an agent prints: read from a pipe, written to its log, and never more than a bound of it.

The first bytes go to the file as they come, so that whoever waits for a line sees it at once; of
what goes beyond the bound the last part is kept in memory and written when the output ends, with a
line that says how much is missing between the two.

The guardian: forks, reads and reaps all agents of one pytest process, and outlives it just to clean
up.

Started by exec (``python -m pytest_chaos.runtime.guardian FD``) in a session of its own, with one
thread, as a child subreaper. It obeys messages from the controller; when the controller's socket
closes, or a process it was told to watch is gone, it ends every descendant, turns the run's journal
into an evidence pack and removes the session's folder. A parent-death signal would not do: it
misses grandchildren and daemons, and fires when the creating thread ends.

This module is long because it is one event loop: the handlers of one process share its tables.
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

from pytest_chaos.runtime import child, processes, wire
from pytest_chaos.runtime import zygote as template

if TYPE_CHECKING:
    from collections.abc import Callable

TAIL_BYTES: Final = 64 * 1024
"""How much of the end is kept of an output that went beyond its bound."""


class Output:
    """One agent's output. ``limit`` is in bytes and bounds what is kept from the beginning."""

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
        """Close our copy of the writing end, once the agent has its own: only then is there an end of file."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def drain(self) -> bool:
        """Take all there is at the moment; return whether there may be more."""
        while True:
            try:
                content = os.read(self.read_end, 1 << 16)
            except BlockingIOError:
                return True
            if not content:
                return False
            self._keep(content)

    def close(self) -> None:
        """Write the kept end, if the output went beyond its bound, and close everything."""
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
            with contextlib.suppress(OSError):
                os.write(self._file, head)
            self._kept += len(head)
        self._tail += content[len(head) :]
        if len(self._tail) > TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]


TemplateKey: TypeAlias = tuple[str, int]
"""A module and the number of the import path under which it was imported."""

_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Template:
    """What the guardian knows of one template: whether it is ready, and which agents wait for it."""

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
        self._output_bytes: dict[int, int] = {}  # id -> what it had printed, of outputs that are closed
        self._templates: dict[TemplateKey, Template] = {}
        self._paths: dict[int, list[str]] = {}
        self._unfit: dict[str, str] = {}
        self._folder: Path | None = None
        self._journal: Path | None = None
        self._environments: list[dict[str, str]] = []  # of this run's agents: their secrets stay out of its evidence
        self._watched: tuple[int, int] | None = None
        self._running = True
        self._commands: dict[str, Callable[[wire.Message], None]] = {
            "folder": self._on_folder,
            "watch": self._on_watch,
            "path": self._on_path,
            "begin": self._on_begin,
            "spawn": self._on_spawn,
            "signal-group": self._on_signal_group,
            "end": self._on_end,
        }

    def serve(self) -> None:
        """Work until the controller is gone, then clean up."""
        processes.adopt_orphans()
        for number in _IGNORED:  # it ends when its controller does, not before
            signal.signal(number, signal.SIG_IGN)
        self._listen_for_children()
        self._register(self._controller.fileno(), self._on_controller)
        wire.send(self._controller, {"event": "up", "pid": os.getpid()})
        while self._running:
            for descriptor, _ in self._poll.poll():
                if (handler := self._handlers.get(descriptor)) is not None:
                    handler()
        self._clean_up()

    def _listen_for_children(self) -> None:
        read_end, write_end = os.pipe()
        for descriptor in (read_end, write_end):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

        def on_wakeup() -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(read_end, 4096)
            self._reap()

        self._register(read_end, on_wakeup)

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

    # What the controller asks for

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
        """Take the end of another process (xdist's controller) for the end of ours."""

        def gone() -> None:
            self._running = not self._alone()

        self._watched = (message["pid"], message["start_ticks"])
        if (descriptor := processes.pidfd_of(*self._watched)) is not None:
            self._register(descriptor, gone)

    def _alone(self) -> bool:
        """Whether the other process (xdist's controller), if there was one, is gone."""
        return self._watched is not None and not processes.is_running(*self._watched)

    def _on_path(self, message: wire.Message) -> None:
        self._paths[message["number"]] = message["path"]

    def _on_begin(self, message: wire.Message) -> None:
        self._journal = Path(message["journal"])
        self._environments.clear()

    def _on_end(self, _: wire.Message) -> None:
        """End everything that the run left: agents, their children, their daemons."""
        for key, found in list(self._templates.items()):
            if found.waiting:  # whoever waited for this import has given up
                os.kill(found.pid, signal.SIGKILL)
                self._drop_template(key, found, "it was still being imported when the run ended")
        ended = [process.pid for process in self._descendants() if process.alive]
        left = self._end_descendants()
        for output in list(self._outputs.values()):
            output.drain()
            self._close_output(output)
        self._output_bytes.clear()
        self._journal = None
        self._tell({"event": "ended", "ended": ended, "left": [process.pid for process in left]})

    def _on_signal_group(self, message: wire.Message) -> None:
        """Signal the group of an agent that has not been reaped: as long as it is ours, so is its group's number."""
        pid = message["pid"]
        if pid in self._agents:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, message["signal"])
        self._tell({"event": "signalled", "id": message["id"]})

    def _on_spawn(self, message: wire.Message) -> None:
        spec: child.Spec = message["spec"]
        self._environments.append({name: value for name, value in spec["environment"].items() if value is not None})
        module = (spec["target"] or "").rpartition(":")[0]
        if spec["target"] is None or message["fresh"] or module in self._unfit:
            self._spawn_here(spec, message)
            return
        key = (module, spec["path"])
        if key not in self._templates:
            self._start_template(key, message["log"])
        self._new_output(spec, message)
        found = self._templates[key]
        found.waiting.append(spec)
        if found.ready:
            self._ask(found)

    # Agents that are forked and executed here

    def _spawn_here(self, spec: child.Spec, message: wire.Message) -> None:
        write_end = self._new_output(spec, message)
        failure_read, failure_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._execute(spec, write_end, failure_write)
        os.close(failure_write)
        self._drop_write_end(spec["id"])
        with os.fdopen(failure_read, "rb") as failure:  # its end of file is the successful exec
            reason = failure.read()
        if reason:
            self._tell({"event": "failed", "id": spec["id"], "error": reason.decode(errors="replace")})
        else:
            note = self._unfit.get((spec["target"] or "").rpartition(":")[0], "")
            process = processes.read(pid)  # a zombie at worst: only we can reap it
            start_ticks = process.start_ticks if process is not None else 0
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

    # Agents that come from a template

    def _start_template(self, key: TemplateKey, log: str) -> None:
        ours, theirs = wire.pair()
        log_descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        guardian_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                processes.die_with_parent(guardian_pid)
                template.serve(theirs, key[0], self._paths[key[1]], log_descriptor)
            finally:
                os._exit(70)
        theirs.close()
        os.close(log_descriptor)
        self._templates[key] = found = Template(pid, ours, key[0])
        self._register(ours.fileno(), lambda: self._on_template(key, found))

    def _on_template(self, key: TemplateKey, found: Template) -> None:
        while True:
            try:
                received = wire.receive(found.end, wait=False)
            except BlockingIOError:
                return
            if received is None:
                self._drop_template(key, found, "the process that imported it ended")
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
                self._drop_template(key, found, message["error"])
                return

    def _ask(self, found: Template) -> None:
        for spec in found.waiting:
            write_end = self._outputs[spec["id"]].write_end
            with contextlib.suppress(OSError):  # its end of file is handled when the loop comes to it
                wire.send(found.end, {"spec": spec}, [write_end])
                self._drop_write_end(spec["id"])
        found.waiting.clear()

    def _respawn_waiting(self, key: TemplateKey, found: Template) -> None:
        waiting, found.waiting = found.waiting, []
        self._drop_template(key, found, "")
        for spec in waiting:
            output = self._outputs.pop(spec["id"])
            self._unregister(output.read_end)
            output.close()
            self._spawn_here(spec, {"output": str(output.path), "output_bytes_max": output.limit})

    def _drop_template(self, key: TemplateKey, found: Template, reason: str) -> None:
        self._unregister(found.end.fileno())
        found.end.close()
        self._templates.pop(key, None)
        for spec in found.waiting:
            self._close_output(self._outputs[spec["id"]])
            self._tell({"event": "failed", "id": spec["id"], "error": reason})

    # What all agents have in common

    def _new_output(self, spec: child.Spec, message: dict[str, Any]) -> int:
        output = Output(spec["id"], Path(message["output"]), message["output_bytes_max"])
        self._outputs[spec["id"]] = output

        def on_output() -> None:
            if not output.drain():
                self._close_output(output)

        self._register(output.read_end, on_output)
        return output.write_end

    def _drop_write_end(self, number: int) -> None:
        self._outputs[number].drop_write_end()

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
        """Collect every dead child, and say of agents how they died and what they used."""
        for key, found in list(self._templates.items()):
            self._on_template(key, found)  # an agent announces itself before it can die
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (number := self._agents.pop(pid, None)) is None:
                continue
            self._tell_exit(template.exit_message(number, status, usage))

    def _tell_exit(self, message: wire.Message) -> None:
        """Say how an agent ended, after what it printed has been read."""
        if (output := self._outputs.get(message["id"])) is not None:
            output.drain()
            self._output_bytes[output.number] = output.total
        self._tell({**message, "output_bytes": self._output_bytes.get(message["id"], 0)})

    def _descendants(self) -> list[processes.Process]:
        return processes.descendants(os.getpid(), without={found.pid for found in self._templates.values()})

    def _end_descendants(self) -> list[processes.Process]:
        templates = {found.pid for found in self._templates.values()}
        return processes.end_all(os.getpid(), without=templates, reap=self._reap)

    def _clean_up(self) -> None:
        """The controller is gone: nothing of the session may be left but the evidence of a run that was under way."""
        self._templates.clear()
        processes.end_all(os.getpid(), reap=processes.reap_all)
        for output in list(self._outputs.values()):
            output.drain()
            output.close()
        if self._journal is not None and self._journal.exists():
            from pytest_chaos.evidence import SECRETS  # only now: the guardian has to stay small
            from pytest_chaos.runtime.scratch import save

            for environment in self._environments:
                SECRETS.add_environment(environment)
            with contextlib.suppress(Exception):  # the folder goes in any case
                save(self._journal, "the process that ran this test ended before the test did", alone=self._alone())
        if self._folder is not None:
            from pytest_chaos.runtime import scratch  # as above

            scratch.remove(self._folder)


def _interpreter(descriptor: int) -> list[str]:
    return [sys.executable, "-c", f"from pytest_chaos.runtime.child import main; main({descriptor})"]


def main() -> None:
    """Serve the controller at the other end of the descriptor named on the command line."""
    Guardian(socket.socket(fileno=int(sys.argv[1]))).serve()


if __name__ == "__main__":
    main()
