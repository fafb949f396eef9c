"""How much of everything a pack takes. Whatever is cut because of a limit is named in the pack's table ``problems``."""

from __future__ import annotations

from typing import Final

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of one pack. Sizes in bytes, times in seconds; with these a pack stays below about 1.2 GB."""

    searched_files_max: int = 20_000
    """Files under the work folder that are looked at, to see whether they are SQLite files."""
    databases_max: int = 16
    """Databases that are described; those that the test named come first."""
    database_bytes_max: int = 256 * 1024 * 1024
    """A larger database (with its side files) is described from its header, not copied and not queried."""
    copied_bytes_max: int = 1024 * 1024 * 1024
    """All copies together."""
    database_s_max: float = 20.0
    """Time for all questions to one database; the question that exceeds it is interrupted and says so."""
    tables_max: int = 200
    rows_max: int = 50
    """The newest rows of each table."""
    answer_rows_max: int = 200
    value_length_max: int = 4096
    """Characters of one text, mark value or row value; a blob is always cut to its first 64 bytes."""
    rows_bytes_max: int = 32 * 1024 * 1024
    """JSON of all rows and answers together."""
    attachments_bytes_max: int = 128 * 1024 * 1024
    """Files that the run attached, all together: recordings and failing states of explorations."""
    journal_file_bytes_max: int = 64 * 1024 * 1024
    """Of each of the journal's own files, the newest part."""
    marks_max: int = 50_000
    """The newest marks."""
    agents_max: int = 500
    log_bytes_max: int = 256 * 1024
    """Of each agent's output: half from its start, half from its end."""
    log_lines_max: int = 2_000
    """Of each agent's output, in the table ``log_lines``: the newest lines of what was kept."""
    failure_length_max: int = 256 * 1024
    problems_max: int = 1_000


DEFAULT: Final = Limits()
