"""The database of logs of the command ``llm``, migrated from the twelfth to the thirteenth step."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING
from unittest import mock

import llm.migrations
import sqlite_utils
from pytest_chaos import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

NAMES = [function.__name__ for function in llm.migrations.MIGRATIONS]
BEFORE = NAMES.index("m013_usage")
COLUMNS = {"input_tokens": int, "output_tokens": int, "token_details": str}


def migrate(directory: Path, migrations: Sequence[Callable[..., object]]) -> None:
    """Let the library do these of its migrations."""
    database = sqlite_utils.Database(directory / "logs.db")
    with closing(database.conn), mock.patch.object(llm.migrations, "MIGRATIONS", list(migrations)):
        llm.migrations.migrate(database)


class Reported:
    """The library as it is."""

    name = "llm, migration m013"

    def migrations(self) -> list[Callable[..., object]]:
        """Return the migrations up to the thirteenth."""
        return list(llm.migrations.MIGRATIONS[: BEFORE + 1])

    def setup(self, directory: Path) -> None:
        """Have a database of the version before."""
        migrate(directory, self.migrations()[:-1])

    def run(self, directory: Path, marks: Marks) -> None:
        """Do the thirteenth migration, as the next command does."""
        marks.intent("migrate")
        migrate(directory, self.migrations())
        marks.ack("migrate")

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Call a command again: it migrates, and has its columns."""
        try:
            migrate(directory, self.migrations())
        except Exception as error:  # noqa: BLE001 - what the library raises to its user
            yield Finding(signature="migration-wedged", text=f"the next command fails: {error}")
            return
        database = sqlite_utils.Database(directory / "logs.db")
        with closing(database.conn):
            missing = COLUMNS.keys() - database["responses"].columns_dict.keys()
        if missing:
            yield Finding(signature="column-missing", text=f"there is no {', '.join(sorted(missing))}")


class Mended(Reported):
    """The library, with a thirteenth migration that can be done again."""

    name = "llm, migration m013 done again"

    def migrations(self) -> list[Callable[..., object]]:
        """Return the migrations, the last one mended."""
        return [*super().migrations()[:-1], m013_usage]


def m013_usage(database: sqlite_utils.Database) -> None:
    """Add the columns that are not there yet."""
    table = database["responses"]
    for name, kind in COLUMNS.items():
        if name not in table.columns_dict:
            table.add_column(name, kind)
