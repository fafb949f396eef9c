"""Folders as bytes: states that a worker cannot build, and what its real runs leave."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.explore.simulate.content import Content, PageStore
from pytest_chaos.explore.simulate.state import Item

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ARCHIVE_BYTES_MAX: Final = 256 << 20
"""What a run left is not sent back if it is larger."""
_RUN_PAGES: Final = 256


class _PackedItem(msgspec.Struct, frozen=True, array_like=True):
    path: bytes
    kind: str
    mode: int
    node: int
    target: bytes
    size: int
    """Size of the content, -1 without one."""
    runs: tuple[tuple[int, bytes], ...]


def packed_items(items: Mapping[str, Item]) -> bytes:
    """Return the items of a state as bytes; holes stay holes."""
    return msgspec.msgpack.encode(
        [
            _PackedItem(
                os.fsencode(path), item.kind, item.mode, item.node, os.fsencode(item.target),
                *((-1, ()) if item.content is None else (item.content.size, _runs(item.content))),
            )
            for path, item in items.items()
        ]
    )  # fmt: skip


def _runs(content: Content) -> tuple[tuple[int, bytes], ...]:
    return tuple((offset, b"".join(pages)) for offset, pages in content.runs(_RUN_PAGES))


def unpacked_items(content: bytes, store: PageStore) -> dict[str, Item]:
    """Return the items that ``packed_items`` made bytes of."""
    items: dict[str, Item] = {}
    for each in msgspec.msgpack.decode(content, type=list[_PackedItem]):
        held = None
        if each.size >= 0:
            held = Content(store)
            for offset, pages in each.runs:
                held = held.write(offset, pages, keep=store.keep)
            held = held.resize(each.size)
        items[os.fsdecode(each.path)] = Item(each.kind, each.mode, each.node, held, os.fsdecode(each.target))
    return items


def archive(folder: Path) -> bytes:
    """Return a folder as an archive; empty if it is too large to be sent."""
    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if size > ARCHIVE_BYTES_MAX:
        return b""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as made:
        made.add(folder, arcname=".")
    return output.getvalue()


def extract(content: bytes, folder: Path) -> None:
    """Unpack an archive into a new folder; links that lead out of it are what the target made."""
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as found:
        found.extractall(folder, filter=_as_left)  # noqa: S202 - the filter drops what leads out of it


def _as_left(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Keep what is safe to write: no path out of the folder, no device, links as they are."""
    del folder
    if member.name.startswith("/") or ".." in member.name.split("/") or member.ischr() or member.isblk():
        return None
    return member.replace(mode=member.mode | 0o700 if member.isdir() else member.mode, deep=False)
