"""The own line of a program: the innermost that is not Python's, an installed package's, or ours.

Every Python agent imports this module, so it imports next to nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import CodeType, FrameType

_OWN: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep  # noqa: PTH120 - see above
_PYTHON: Final = os.path.dirname(os.__file__)  # noqa: PTH120 - see above
_LIBRARIES: Final = (_PYTHON + os.sep, os.path.realpath(_PYTHON) + os.sep)
_FOREIGN: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def is_of_user(file: str) -> bool:
    """Whether a file is the user's own: not Python's, an installed package's, or pytest_chaos's."""
    return not file.startswith((_OWN, "<", *_LIBRARIES)) and not any(part in file for part in _FOREIGN)


def own_line(frame: FrameType | None) -> str:
    """Return the own line of a frame or of its callers, as ``file.py:12 in work``, or nothing.

    For a library, the function that was called there follows: ``app.py:12 in save (json.dump)``.
    """
    library: CodeType | None = None
    module = ""
    while frame is not None and not is_of_user(frame.f_code.co_filename):
        if not frame.f_code.co_filename.startswith((_OWN, "<")):
            library, module = frame.f_code, str(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
    if frame is None:
        return ""
    public = module.partition("._")[0]  # pathlib of pathlib._local
    called = f" ({public}.{library.co_qualname})" if library is not None else ""
    code = frame.f_code
    return f"{code.co_filename.rpartition(os.sep)[2]}:{frame.f_lineno} in {code.co_name}{called}"
