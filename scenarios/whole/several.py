"""Several processes that write one database, as targets: workers, and callers of keys."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from typing import TYPE_CHECKING, Final

from durable_agents import CheckpointManager, IdempotencyStore, LeaseManager, TaskManager, open_store
from pytest_chaos import Finding

from scenarios.whole.core_targets import DATABASE, SOUND
from scenarios.work.agents import made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

TASK: Final = "shared"
ITEMS: Final = 2
KEYS: Final = ("a", "b")
WRITERS: Final = ("first", "second")
LONG_S: Final = 3600.0


def in_processes(work: Callable[[str], None]) -> None:
    """Let each writer work in a process of its own, and wait for both."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(writer,)) for writer in WRITERS]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise SystemExit(failed[0])


class Workers:
    """Two workers take items, save a checkpoint for each, and complete it."""

    name = "two workers"

    def __init__(self, parts: dict[str, str]) -> None:
        self._parts = SOUND | {part: planted for part, planted in parts.items() if part in SOUND}

    def setup(self, directory: Path) -> None:
        """Make the items."""
        with LeaseManager(db_path=directory / DATABASE) as leases:
            TaskManager(leases.store).create(TASK)
            for _ in range(ITEMS):
                leases.enqueue(TASK, "work")

    def run(self, directory: Path, marks: Marks) -> None:
        """Work in two processes, until nothing is left."""

        def work(writer: str) -> None:
            with open_store(str(directory / DATABASE)) as store:
                leases: LeaseManager = made(self._parts["leases"], store)
                saver: CheckpointManager = made(self._parts["checkpoints"], store)
                while (lease := leases.acquire(writer, ttl_s=LONG_S)) is not None:
                    marks.ack("lease", lease.token, value=lease.work_item_id)
                    marks.intent("save", lease.token)
                    saved = saver.save(TASK, {"token": lease.token}, lease=lease)
                    marks.ack("save", lease.token, value=saved.sequence_number)
                    leases.complete(lease)
                    marks.ack("complete", lease.token, value=lease.work_item_id)

        in_processes(work)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Find what two have got, what is lost, and numbers with a hole."""
        said = {name: [mark for mark in marks if mark.kind == "ack" and mark.operation == name] for name in ACKS}
        taken = Counter(mark.value for mark in said["lease"])
        if twice := sorted(item for item, times in taken.items() if times > 1):
            yield Finding(signature="several:granted-twice", text=f"items {twice} were granted twice")
        with CheckpointManager(db_path=directory / DATABASE) as saved, LeaseManager(saved.store) as leases:
            rows = {each.snapshot["token"]: each.sequence_number for each in saved.list(TASK)}
            done = {number for number in range(1, ITEMS + 1) if leases.get(number).status == "completed"}
        if sorted(rows.values()) != list(range(1, len(rows) + 1)):
            yield Finding(signature="several:hole", text=f"the numbers are {sorted(rows.values())}")
        if lost := [mark.key for mark in said["save"] if rows.get(int(mark.key or 0)) != mark.value]:
            yield Finding(signature="several:lost", text=f"checkpoints of tokens {lost} were acknowledged")
        if lost := sorted({mark.value for mark in said["complete"]} - done):
            yield Finding(signature="several:lost", text=f"the ends of items {lost} were acknowledged")


ACKS: Final = ("lease", "save", "complete")


class Callers:
    """Two callers ask for the same keys: one executes, and both get its result."""

    name = "two callers"

    def setup(self, directory: Path) -> None:
        """Make the database."""
        open_store(str(directory / DATABASE)).close()

    def run(self, directory: Path, marks: Marks) -> None:
        """Ask in two processes."""

        def ask(writer: str) -> None:
            with IdempotencyStore(db_path=directory / DATABASE) as keys:
                for key in KEYS:

                    def produce(key: str = key) -> str:
                        marks.note("executed", key, value=writer)
                        return f"{key} by {writer}"

                    marks.ack("got", key, value=[writer, keys.execute(key, produce).result])

        in_processes(ask)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Find a key that was executed twice, answers that differ, and results that are lost."""
        answered = {(mark.key, mark.value[0]) for mark in marks if mark.operation == "got"}
        for key in KEYS:
            by = [mark.value for mark in marks if mark.operation == "executed" and mark.key == key]
            if any((key, writer) in answered for writer in by[:-1]):  # else it died, and the other took over
                yield Finding(signature="several:executed-twice", text=f"key {key} was executed by {by}")
        with IdempotencyStore(db_path=directory / DATABASE) as keys:
            for mark in marks:
                if mark.operation == "got":
                    found = keys.find(str(mark.key))
                    if found is None or found.result != mark.value[1]:
                        text = f"{mark.key} was answered with {mark.value[1]!r}, and is {found}"
                        yield Finding(signature="several:lost", text=text)
