"""A server that keeps a number, and a client that has it saved, in four manners."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_chaos import Finding

from scenarios.targets.databases import LOST

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_chaos import Mark, Marks

_PROGRAM = Path(__file__).with_name("number_server.py")
_ANSWER_S = 10.0


class NumberServer:
    """The server in one manner: sound, early, unsynced or in-place."""

    port = 0
    numbers = 2

    def __init__(self, manner: str) -> None:
        self.name = f"number server, {manner}"
        self._manner = manner

    def serve(self, directory: Path) -> list[str]:
        """Return its command."""
        del directory
        return [sys.executable, "-I", "-S", str(_PROGRAM), str(self.port), self._manner]

    def drive(self, directory: Path, marks: Marks) -> None:
        """Have the numbers from 1 on saved."""
        del directory
        for number in range(1, self.numbers + 1):
            marks.intent("save", number)
            if (answer := self._ask(f"save {number}")) != "saved":
                msg = f"save {number} was answered by {answer!r}"
                raise ValueError(msg)
            marks.ack("save", number)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Ask for the number, and find it less than what was acknowledged."""
        del directory
        acknowledged = max((int(mark.key or 0) for mark in marks if mark.kind == "ack"), default=0)
        if (number := int(self._ask("get"))) < acknowledged:
            yield Finding(signature=LOST, text=f"{acknowledged} was acknowledged, and {number} is there")

    def _ask(self, request: str) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=_ANSWER_S) as connection:
            connection.sendall(f"{request}\n".encode())
            with connection.makefile(encoding="ascii") as answer:
                return answer.readline().strip()
