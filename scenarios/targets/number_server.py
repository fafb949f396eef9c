"""A server that keeps the largest number it was given: ``number_server.py PORT MANNER``.

Requests are ``save N`` and ``get``, each a line; the answers are ``saved`` and the number. It reads
its file when it starts, and ends if it cannot.

    sound      writes another file, syncs it, renames it, syncs the folder, then answers
    early      writes another file, renames it, answers, and syncs the folder then
    unsynced   writes another file, renames it, answers, and syncs nothing
    in-place   writes over its file
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

PORT, MANNER = int(sys.argv[1]), sys.argv[2]


def load() -> int:
    """Return the number of the file, 0 without one."""
    try:
        return int(Path("number").read_text())
    except FileNotFoundError:
        return 0


def save(number: int, connection: socket.socket) -> None:
    """Keep a number, and answer."""
    name = "number" if MANNER == "in-place" else "fresh"
    with Path(name).open("w", encoding="ascii") as file:
        file.write(str(number))
        file.flush()
        if MANNER == "sound":
            os.fsync(file.fileno())
    if MANNER != "in-place":
        Path("fresh").rename("number")
    if MANNER == "early":
        connection.sendall(b"saved\n")
    if MANNER != "unsynced":
        folder = os.open(".", os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    if MANNER != "early":
        connection.sendall(b"saved\n")


def serve(connection: socket.socket, number: int) -> int:
    """Answer the requests of a connection; return the number after them."""
    with connection, connection.makefile("r", encoding="ascii") as lines:
        for line in lines:
            word, _, given = line.strip().partition(" ")
            if word == "save":
                number = max(number, int(given))
                save(number, connection)
            else:
                connection.sendall(f"{number}\n".encode())
    return number


def main() -> None:
    """Serve one connection after the other."""
    number = load()
    with socket.create_server(("127.0.0.1", PORT)) as listening:
        while True:
            number = serve(listening.accept()[0], number)


main()
