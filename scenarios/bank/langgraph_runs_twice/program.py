"""A graph of three nodes with an effect each, run by langgraph with a saver in SQLite."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph

if TYPE_CHECKING:
    from pytest_chaos import Marks

NODES = 3
DELAYED = 2
"""The node whose writes are delayed, and in whose checkpoint the process is killed."""
WAIT_S = 30.0


class State(TypedDict):
    """The number of effects so far."""

    sent: int


class Saver(SqliteSaver):  # type: ignore[misc, unused-ignore]  # the library is in the entry's own environment
    """The library's saver: the writes of a node wait until its checkpoint is being saved."""

    def __init__(self, connection: sqlite3.Connection, marks: Marks) -> None:
        super().__init__(connection)
        self.marks = marks
        self.is_saving = threading.Event()
        self.is_written = threading.Event()

    def put_writes(self, config: Any, writes: Any, *rest: Any, **options: Any) -> None:
        """Save what a node has written."""
        is_delayed = ("sent", DELAYED) in list(map(tuple, writes))
        if is_delayed:
            self.is_saving.wait(WAIT_S)
        super().put_writes(config, writes, *rest, **options)
        if is_delayed:
            self.is_written.set()

    def put(self, config: Any, checkpoint: Any, *rest: Any, **options: Any) -> Any:
        """Save a checkpoint."""
        if checkpoint["channel_values"].get("sent") == DELAYED:
            self.before_delayed()
            self.marks.note("saving")
            self.is_saving.set()
        return super().put(config, checkpoint, *rest, **options)

    def before_delayed(self) -> None:
        """Wait for nothing, as the library does."""


class MendedSaver(Saver):
    """Waits for the writes before it saves the checkpoint that they belong to."""

    def before_delayed(self) -> None:
        """Let the writes go on, and wait for them."""
        self.is_saving.set()
        self.is_written.wait(WAIT_S)


def run(marks: Marks, *, is_resumed: bool, is_mended: bool) -> None:
    """Run the graph from its beginning, or resume it."""

    def node(number: int) -> Any:
        def act(_: State) -> State:
            marks.note("effect", number)
            return {"sent": number}

        return act

    graph = StateGraph(State)
    names = [f"node-{number}" for number in range(1, NODES + 1)]
    for number, name in enumerate(names, start=1):
        graph.add_node(name, node(number))
    for one, other in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(one, other)
    with closing(sqlite3.connect("graph.db", check_same_thread=False)) as connection:
        delayed = MendedSaver if is_mended else Saver
        saver = SqliteSaver(connection) if is_resumed else delayed(connection, marks)
        config = {"configurable": {"thread_id": "1"}}
        compiled = graph.compile(checkpointer=saver)
        ended = compiled.invoke(None if is_resumed else {"sent": 0}, config, durability="sync")
        marks.ack("run", value=ended["sent"])
