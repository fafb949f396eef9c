"""EDN, Clojure's notation of data, as far as histories use it: text to plain values and back.

Keywords become texts without their colon, symbols texts, lists, vectors and sets lists, maps
dictionaries. A tag (``#jepsen.history.Op``) is left out. PyPI's parsers of EDN take some hundred
times as long, and a history has millions of forms (github.com/edn-format/edn).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOKEN: Final = re.compile(
    r'(?:[\s,]|;[^\n]*)*(?:(?P<open>#?\{|[\[(])|(?P<close>[\]})])|(?P<text>"(?:[^"\\]|\\.)*")|(?P<skip>\#_)'
    r"|(?P<tag>\#[A-Za-z][^\s,;{}\[\]()\"]*)|(?P<atom>[^\s,;{}\[\]()\"]+)|(?P<end>\Z))",
    re.DOTALL,
)
_INTEGER: Final = re.compile(r"[+-]?\d+N?")
_FLOAT: Final = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?M?")
_CONSTANTS: Final = {"nil": None, "true": True, "false": False}
_CLOSES: Final = {"[": "]", "(": ")", "{": "}", "#{": "}"}
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
_END: Final = object()


def parse_edn(text: str) -> Any:
    r"""Return the value of one form. Raises ValueError for text that is none, or more than one.

    >>> parse_edn('{:type :ok, :value [[:r 1 nil] [:append 1 2]], :error "no\\n"}')
    {'type': 'ok', 'value': [['r', 1, None], ['append', 1, 2]], 'error': 'no\n'}
    """
    values = list(_values(text))
    if len(values) != 1:
        msg = f"expected one form, got {len(values)}"
        raise ValueError(msg)
    return values[0]


def _values(text: str) -> Iterator[Any]:
    """Yield the values of a text, one form after the other."""
    place = 0
    open_forms: list[tuple[str, list[Any]]] = []
    skips: list[int] = []
    """The depth of each ``#_`` whose form is still to come."""
    while True:
        match = _TOKEN.match(text, place)
        if match is None:
            msg = f"unreadable at character {place + 1}: {text[place : place + 20]!r}"
            raise ValueError(msg)
        place = match.end()
        kind = match.lastgroup
        word = match.group(kind or "end")
        if kind == "open":
            open_forms.append((word, []))
            continue
        if kind == "tag":
            continue
        if kind == "skip":
            skips.append(len(open_forms))
            continue
        if kind == "end":
            if open_forms or skips:
                msg = "it ends within a form"
                raise ValueError(msg)
            return
        value = _closed(word, open_forms) if kind == "close" else _text(word) if kind == "text" else _atom(word)
        if skips and skips[-1] == len(open_forms):
            skips.pop()
        elif open_forms:
            open_forms[-1][1].append(value)
        else:
            yield value


def _closed(word: str, open_forms: list[tuple[str, list[Any]]]) -> Any:
    if not open_forms or _CLOSES[open_forms[-1][0]] != word:
        msg = f"{word!r} closes nothing"
        raise ValueError(msg)
    opener, values = open_forms.pop()
    if opener != "{":
        return values
    if len(values) % 2:
        msg = "a map must have a value for each key"
        raise ValueError(msg)
    keys = [tuple(key) if isinstance(key, list) else key for key in values[::2]]
    return dict(zip(keys, values[1::2], strict=True))


def _text(word: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match.group(1), match.group(1)), word[1:-1], flags=re.DOTALL)


def _atom(word: str) -> Any:
    if word[0] == ":":
        return word[1:]
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if _INTEGER.fullmatch(word):
        return int(word.rstrip("N"))
    return float(word.rstrip("M")) if _FLOAT.fullmatch(word) else word


def edn_of(value: Any, keywords: frozenset[str] = frozenset()) -> str:
    """Return a value as EDN: keys of maps as keywords, and texts that are in ``keywords``.

    >>> edn_of({"type": "ok", "value": [["r", "x", None]]}, frozenset({"ok", "r"}))
    '{:type :ok, :value [[:r "x" nil]]}'
    """
    if value is None or value is True or value is False:
        return {None: "nil", True: "true", False: "false"}[value]
    if isinstance(value, str):
        if value in keywords:
            return f":{value}"
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, dict):
        pairs = (
            f"{f':{key}' if isinstance(key, str) else key} {edn_of(each, keywords)}" for key, each in value.items()
        )
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{' '.join(edn_of(each, keywords) for each in value)}]"
    return str(value)
