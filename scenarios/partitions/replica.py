"""A small replicated log: two nodes, one of which leads, each in a process of its own.

A write is acknowledged when both nodes have it. Every leadership has an epoch, which each append
carries; a node takes no append of an older epoch than it knows (the fencing token of Kleppmann's
"How to do distributed locking", and the term of Raft). An operator promotes a node whose leader
cannot be reached: it then leads a new epoch, alone. What is asked is one line of JSON each way.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pytest_chaos import Marks

Place = tuple[str, int]
WAIT_S: Final = 20.0
"""How long a peer is waited for that is there, and slow."""


class Replica:
    """One node: its log, the epoch that it knows, and whether it leads."""

    def __init__(self, name: str, *, leads: bool) -> None:
        self.name = name
        self.log: list[tuple[int, str]] = []
        self.epoch = 1
        self.leads = leads
        self.is_alone = False
        self.peer: Place | None = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Do what a client, an operator or the other node asks."""
        asked = question.pop("ask")
        if asked == "join":
            self.peer = (question["host"], question["port"])
            return {"ok": True}
        if asked == "promote":
            self.epoch, self.leads, self.is_alone = self.epoch + 1, True, True
            return {"ok": True, "epoch": self.epoch}
        if asked == "append":
            return self.append(**question)
        if asked == "put":
            return self.put(**question)
        return {"ok": True, "log": self.log, "epoch": self.epoch, "leads": self.leads}

    def put(self, value: str) -> dict[str, Any]:
        """Take a client's write, if this node leads; acknowledge it once it is safe."""
        if not self.leads:
            return {"ok": False, "why": "does not lead"}
        place, entry = len(self.log), (self.epoch, value)
        if not self.is_alone:
            assert self.peer is not None
            try:
                taken = ask(self.peer, "append", epoch=self.epoch, value=value, place=place)
            except OSError as error:
                if not self.acknowledges_alone():
                    return {"ok": False, "why": f"peer cannot be reached: {error}"}
            else:
                if not taken["ok"]:
                    self.leads = False  # another one leads a later epoch
                    return {"ok": False, "why": "fenced"}
        self.log.append(entry)
        return {"ok": True, "epoch": self.epoch}

    def append(self, epoch: int, value: str, place: int) -> dict[str, Any]:
        """Take an entry of the leader."""
        if not self.takes(epoch):
            return {"ok": False, "epoch": self.epoch}
        self.epoch = max(epoch, self.epoch)
        if self.log[place : place + 1] != [(epoch, value)]:  # asked again, because its answer was lost
            self.log.append((epoch, value))
        return {"ok": True}

    def takes(self, epoch: int) -> bool:
        """Whether an append of this epoch is taken: of no older one than is known."""
        return epoch >= self.epoch

    def acknowledges_alone(self) -> bool:
        """Whether a write is acknowledged that the other node does not have: never."""
        return False


def serve(marks: Marks, replica: str, name: str, host: str, *, leads: bool) -> None:
    """Be a node on an address of its own, until the process ends."""
    from scenarios.work.agents import class_named

    node: Replica = class_named(replica)(name, leads=leads)
    with socket.create_server((host, 0)) as server:
        marks.note("up", value=server.getsockname()[1])
        while True:
            end, _ = server.accept()
            with contextlib.suppress(OSError, ValueError), end:  # its client was cut off
                end.settimeout(WAIT_S)
                question = json.loads(end.makefile().readline())
                end.sendall(json.dumps(node.answer(question)).encode() + b"\n")


def ask(node: Place, asked: str, /, **values: Any) -> dict[str, Any]:
    """Ask a node. Raises OSError."""
    with socket.create_connection(node, timeout=WAIT_S) as end:
        end.sendall(json.dumps({"ask": asked, **values}).encode() + b"\n")
        line = end.makefile().readline()
    if not line:
        raise ConnectionResetError(None, "it hung up without an answer")
    answer: dict[str, Any] = json.loads(line)
    return answer


def put(marks: Marks, place: Place, value: str) -> None:
    """Write a value at a node; an ack is the node's word that it is safe."""
    marks.intent("put", value)
    try:
        answer = ask(place, "put", value=value)
    except OSError as error:
        marks.note("unknown", value, str(error))
        return
    if answer["ok"]:
        marks.ack("put", value, answer["epoch"])
    else:
        marks.note("refused", value, answer["why"])


def write_at(marks: Marks, place: list[Any], values: list[str], *, promotes: bool = False) -> None:
    """Be a client, or an operator, of one node: promote it, write values, say when that is done."""
    node = (place[0], place[1])
    if promotes:
        marks.note("promoted", value=ask(node, "promote")["epoch"])
    for value in values:
        put(marks, node, value)
    marks.ack("written")


def look(marks: Marks, places: dict[str, list[Any]]) -> None:
    """Mark what each node has."""
    for name, (host, port) in places.items():
        marks.note("has", name, ask((host, port), "look"))
