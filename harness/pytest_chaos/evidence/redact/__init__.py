"""Masks secrets in everything that is written: records, matrix, packs, failures, explorations.

These are secrets: values registered in :data:`SECRETS` (``spawn(env=...)`` does that), values of
environment variables whose names look secret, values that follow a secret-like name
(``password=...``, ``--token X``, a column of a row, an item of JSON), and values of well-known
shapes. ``secret_patterns`` is the table of names and shapes. Numbers are never secrets: the fencing
tokens of a lease are evidence. Digests, seeds and run ids follow no secret-like name, and entropy
alone makes no secret.

Existing scanners were not taken. Some, such as detect-secrets, judge by entropy, which would blank
the hashes and run ids that evidence consists of, and they return places, not text. A list misses
unknown kinds: treat a pack as you would treat the log.

A registered value is known to its process alone. A run writes those that it knows into its journal,
for the process that salvages its pack.
"""

from __future__ import annotations

import enum
import functools
import json
import math
import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pytest_chaos.evidence.redact import secret_patterns as table

if TYPE_CHECKING:
    from pytest_chaos.model.values import Json

MASK: Final = "[redacted]"
"""Stands in place of a secret."""

_LENGTH_MIN: Final = 4
_ENVIRONMENT_LENGTH_MIN: Final = 8
_WORKING_DIRECTORIES: Final = {"PWD", "OLDPWD"}

_SUFFIX: Final = r"(?:\d{1,3}|[_-]?(?:value|b64|base64|plain))?"
_IS: Final = (
    r"""(?P<is>\\*+["']?\]?[ \t]*+(?:=>|:=|[=!]==?|[=:]|%3d)[ \t]*+"""  # an assignment, JSON, a header, a query
    r"""|(?P<tag>>)"""  # <password>...</password>
    r"""|(?P<pair>\\*["'][ \t]*,[ \t]*)(?=\\*["'])"""  # an argv or a pair, written as a list
    r"""|[ \t]+(?P<words>is|was)[ \t]+:?"""
    r"""|(?P<space>[ \t]+))"""  # an option, SQL
)
_EXACT_NAMES: Final = frozenset({"token", "auth_token", "x-api-key", "sig"})
_NAME_LENGTH_MAX: Final = 64
_NAME_REVERSED: Final = re.compile(r"[\w-]*")
_SCHEME: Final = re.compile(r"""\\*["']?(?:basic|bearer|digest|token|negotiate|apikey|aws4-hmac-sha256)[ \t]+""", re.I)
_OPENING: Final = re.compile(r"""\\*["']""")
_VALUE_LENGTH_JUDGED: Final = 1024
"""Characters of a value that are judged: it bounds the time for a line with many names."""
_VALUE: Final = r"""[^\s"'\\,;&(){}\[\]<>]"""
_IN_TAG: Final = r"[^<\r\n]"
_TO_THE_END: Final = r"""[^\r\n"'\\]"""
_IN_QUOTES: Final = {'"': r'(?:[^"\\\r\n]|\\[^\r\n])', "'": r"(?:[^'\\\r\n]|\\[^\r\n])"}
_NO_VALUE: Final = re.compile(
    r"[\d.,:+-]*|\*+|[xX]{3,}|[.…]+|\$.*|%.{0,3}|%\(\w*\)s|\{.*|<.*>?|\?|:\w+|https?:|" + re.escape(MASK) + ".*",
    re.DOTALL,
)
_UUID: Final = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.I)
_WORDS: Final = re.compile(r"[A-Z]*[a-z]+(?:[A-Z][a-z]+)*[A-Z]?|[A-Z]+|[a-z]+")
_ENTROPY_MIN: Final = 2.4
"""Minimum entropy of a random value, in bits a character; 16 random hex digits have some 3.3."""
_RANDOM_LENGTH_MIN: Final = 8


def _tree(patterns: Iterable[str]) -> str:
    """Return one pattern for many that begin with a literal, grouped by it, which is faster."""
    groups: dict[str, list[str]] = {}
    for pattern in dict.fromkeys(patterns):
        first = 2 if pattern.startswith("\\") else 1
        groups.setdefault(pattern[:first], []).append(pattern[first:])
    return "|".join(f"{first}(?:{'|'.join(rest)})" for first, rest in groups.items())


def _name(name: str) -> str:
    """Return the pattern of a name of the table."""
    pattern = re.escape(name.removeprefix("^").replace(" ", "~")).replace("\\~", "~").replace("~", "[_-]?")
    return f"{pattern[0]}(?<![a-z]{pattern[0]}){pattern[1:]}" if name.startswith("^") else pattern


_NAMED: Final = re.compile(f"(?:{_tree(map(_name, (*table.STRONG_NAMES, *table.WEAK_NAMES)))}){_SUFFIX}{_IS}")
"""A secret-like name and the separator before its value, in lower-case text."""
_STRONG_END: Final = re.compile(f"(?:{'|'.join(map(_name, table.STRONG_NAMES))}){_SUFFIX}\\Z")
_WEAK_END: Final = re.compile(f"(?:{'|'.join(map(_name, table.WEAK_NAMES))}){_SUFFIX}\\Z")
_HINTS: Final = (
    "auth", "credential", "cookie", "code(?=s?[^a-z])", "dsn", "hmac", "jwt", r"k(?<=[a-z_-]k)ey(?![a-rt-z])",
    "mnemonic", "otp", "pass(?!ed|es|ing)", "pwd", "pat(?![a-z])", "secret", "session[_-]?id", "s(?<![a-z]s)ig(?!h|m)",
    "s(?<![a-z]s)alt", "token", "webhook",
)  # fmt: skip
"""Parts, one of which is in every secret-like name; a line without them has no such name."""
_HINTED_NAME: Final = re.compile(_tree(_HINTS))
_SHAPES: Final = tuple(
    (shape.anchors, re.compile(shape.pattern), rf"\g<keep>{MASK}" if "(?P<keep>" in shape.pattern else MASK)
    for shape in table.SHAPES
)
_ANCHORS: Final = tuple(dict.fromkeys(anchor for shape in table.SHAPES for anchor in shape.anchors))
_WORD_ANCHOR: Final = re.compile(
    f"(?<![a-z0-9_])(?:{_tree(re.escape(anchor) for anchor in _ANCHORS if anchor[0].isalnum())})"
)
"""The anchors that begin a word; places within a word are skipped quickly."""
_OTHER_ANCHORS: Final = tuple(anchor for anchor in _ANCHORS if not anchor[0].isalnum())
_KEY_BLOCK: Final = re.compile(table.KEY_BLOCK)

_SHORT_CHARACTERS_MAX: Final = 400
_SHORT_TEXTS_MAX: Final = 8192

Value = TypeVar("Value")


class Secrets:
    """The registered secrets of this process."""

    def __init__(self) -> None:
        """Start with none."""
        self._values: set[str] = set()

    def add(self, value: str) -> None:
        """Register a value of at least four characters: a shorter one is in all texts."""
        if len(value) >= _LENGTH_MIN:
            self._values.add(value)

    def add_environment(self, environment: Mapping[str, str]) -> None:
        """Register the values of an environment whose names look secret."""
        for value in secret_values(environment):
            self.add(value)

    def add_argv(self, argv: Iterable[str]) -> None:
        """Register the value of each option with a secret-like name, as in ``--password X``."""
        self.add_environment({f"{place}-{name}": value for place, (name, value) in enumerate(_options(argv))})

    @property
    def values(self) -> frozenset[str]:
        """The registered values."""
        return frozenset(self._values)


SECRETS: Final = Secrets()
"""The registry of this process."""


class Redactor:
    """Masks secrets in text, in JSON and in the values of ``pytest_chaos.model``.

    >>> Redactor(["hunter2!"]).text("login hunter2! with password=abc123xyz and fencing token 42")
    'login [redacted] with password=[redacted] and fencing token 42'
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Mask these values in all their written forms, and everything that looks secret."""
        forms = {form for secret in secrets for form in _forms(secret)}
        self._forms = sorted(forms, key=lambda form: (-len(form), form))
        self._short = functools.lru_cache(_SHORT_TEXTS_MAX)(self._masked)

    def text(self, text: str) -> str:
        """Return the text with every secret masked. Takes time in proportion to its length.

        Records repeat their short texts (titles, names, receipts), so those are kept.
        """
        return self._short(text) if len(text) <= _SHORT_CHARACTERS_MAX else self._masked(text)

    def _masked(self, text: str) -> str:
        if not text:
            return text
        if found := [form for form in self._forms if form in text]:
            text = re.sub("|".join(map(_bounded, found)), MASK, text)
        if any(anchor in text for anchor in table.KEY_ANCHORS):
            text = _KEY_BLOCK.sub(MASK, text)
        lowered = _lowered(text)
        anchors = {*_WORD_ANCHOR.findall(lowered), *(anchor for anchor in _OTHER_ANCHORS if anchor in lowered)}
        shapes = [shape for shape in _SHAPES if not anchors.isdisjoint(shape[0])] if anchors else []
        hints = _hints(frozenset(anchors))
        parts: list[str] = []
        done = 0
        hint = hints.search(lowered)
        while hint is not None:
            start = lowered.rfind("\n", done, hint.start()) + 1 or done
            end = lowered.find("\n", hint.end())
            end = len(lowered) if end < 0 else end
            parts += (text[done:start], _line(text[start:end], lowered[start:end], shapes))
            done = end
            hint = hints.search(lowered, end)
        return "".join([*parts, text[done:]]) if parts else text

    def lines(self, lines: Sequence[str]) -> list[str]:
        """Return the lines of a text with every secret masked, also one over several lines."""
        return self.text("\n".join(lines)).split("\n") if lines else []

    def words(self, argv: Iterable[str]) -> list[str]:
        """Return an argv with every secret masked, and the value of each secret-like option."""
        words = list(argv)
        options = ("", *(word if word.startswith("-") else "" for word in words))
        return [
            MASK if _is_strong(option.lstrip("-")) and _is_argument(word) else self.text(f" {word}")[1:]
            for option, word in zip(options, words, strict=False)
        ]

    def json(self, value: Json, name: str = "") -> Json:
        """Return the value with every secret masked; the ``name`` of its field may tell one."""
        match value:
            case str():
                return self._named(value, name)
            case Mapping():
                return self._mapping(value, name)
            case list() | tuple():
                if len(value) == 2 and all(isinstance(item, str) for item in value) and _is_strong(value[0]):
                    return [value[0], self._named(value[1], value[0])]
                return [self.json(item, name) for item in value]
        return value

    def _named(self, value: str, name: str) -> str:
        if _is_strong(name):
            return MASK if value and value.lower() not in {"null", "none", "true", "false"} else value
        return MASK if _is_weak(name) and _is_random(value) else self.text(value)

    def _mapping(self, value: Mapping[Any, Json], name: str) -> Json:
        if "blob" in value and len(value) == 2 and _is_strong(name):
            return MASK
        said = next((text for key, text in value.items() if key in table.NAME_FIELDS and _is_strong(text)), "")
        return {
            self.text(str(key)): self.json(item, said if said and key in table.VALUE_FIELDS else str(key))
            for key, item in value.items()
        }

    def clean(self, value: Value) -> Value:
        """Return a value of the model (a record, a receipt) with the secrets in its texts masked.

        Identifiers stay as they are: a replay needs seed, plan and node id, and folders have names.
        """
        if isinstance(value, enum.Enum):
            return value
        if isinstance(value, str):
            return self.text(value)  # type: ignore[return-value]  # a str for a str
        if isinstance(value, tuple):
            items = [self.clean(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)  # type: ignore[return-value]
        fields: tuple[str, ...] = getattr(value, "__struct_fields__", ())
        if not fields:
            return value
        import msgspec  # a purely textual use of this module needs none

        clean = {name: self._field(value, name, getattr(value, name)) for name in fields}
        return msgspec.structs.replace(value, **clean)  # type: ignore[type-var]  # it has fields, so it is a struct

    def _field(self, owner: object, name: str, value: object) -> object:
        kind = type(owner).__name__
        if name in _IDENTIFIERS or (kind, name) in _IDENTIFIERS_OF:
            return value
        if kind == "Assertion" and name == "observed":
            return self._observed(getattr(owner, "name", ""), str(value))
        if name == "reproduce":
            return self._reproduce(str(value))
        if kind == "Mark" and name == "value":
            return self.json(value, getattr(owner, "operation", ""))
        if isinstance(value, dict | list):
            return self.json(value)
        return self.clean(value)

    def _observed(self, name: str, observed: str) -> str:
        """Return an observed value, masked as if it followed its name in a text."""
        before, _, after = self.text(f"{name}: {observed}").partition(": ")
        return after if before == self.text(name) else self.text(observed)

    def _reproduce(self, line: str) -> str:
        """Return the line that repeats a run, with the project's own options masked."""
        ours, separator, own = line.partition(" -- ")
        return ours + separator + self.text(own)


_IDENTIFIERS: Final = frozenset({
    "run_id", "node_id", "seed", "plan", "session", "session_folder", "root", "started", "started_at", "worker",
    "versions", "evidence_folder", "pid", "order", "orders", "code", "folder", "family", "kind", "format", "verdict",
})  # fmt: skip
"""Fields that are never masked: identifiers, and fields that a replay needs."""
_IDENTIFIERS_OF: Final = frozenset({
    ("Scenario", "id"), ("RunRecord", "evidence"), ("Finding", "checker"), ("AgentSummary", "name"),
    ("AgentStarted", "name"), ("Mark", "agent"),
})  # fmt: skip


def _options(argv: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the options of an argv with their values: the next word, or the part after ``=``."""
    words = list(argv)
    for place, word in enumerate(words):
        name, separator, value = word.partition("=")
        if word.startswith("-") and separator:
            yield name, value
        elif word.startswith("-") and _is_argument("".join(words[place + 1 : place + 2])):
            yield name, words[place + 1]


def _is_argument(word: str) -> bool:
    return bool(word) and not word.startswith("-") and not word.isdigit()


def redactor(environment: Mapping[str, str] | None = None) -> Redactor:
    """Return the redactor of this process: its registry, and the secrets of an environment."""
    return _redactor(SECRETS.values | secret_values(os.environ if environment is None else environment))


@functools.lru_cache(maxsize=8)
def _redactor(secrets: frozenset[str]) -> Redactor:
    return Redactor(secrets)


def clean(value: Value) -> Value:
    """Return text, or a value of the model, as it may be written: see :meth:`Redactor.clean`."""
    return redactor().clean(value)


def secret_values(environment: Mapping[str, str]) -> frozenset[str]:
    """Return the values of variables whose names look secret.

    Short values, numbers, plain words and paths of existing files are left out: ``SSH_AUTH_SOCK``
    is no secret.
    """
    return frozenset(value for name, value in environment.items() if _is_secret(name, value))


def _is_secret(name: str, value: str) -> bool:
    if name in _WORKING_DIRECTORIES or len(value) < _LENGTH_MIN or value.isdigit():
        return False
    if value.startswith("/") and os.path.exists(value):  # noqa: PTH110 - Path raises on a NUL
        return False
    is_word = value.isalpha() and (value.islower() or value.isupper())
    if _is_strong(name):
        return len(value) >= _ENVIRONMENT_LENGTH_MIN or not is_word
    if not table.ENVIRONMENT_PARTS.isdisjoint(re.split(r"[^a-z0-9]+", name.lower())):
        return len(value) >= _ENVIRONMENT_LENGTH_MIN and not is_word
    return bool(re.search(r"://[^\s:/@]*:[^\s/]+@", value))


def _is_strong(name: object) -> bool:
    """Whether any value of this name is secret."""
    if not isinstance(name, str) or not name:
        return False
    lowered = name[-_NAME_LENGTH_MAX:].lower()
    return not lowered.endswith(table.EVIDENCE_NAMES) and (
        lowered in _EXACT_NAMES or _STRONG_END.search(_snake(name[-_NAME_LENGTH_MAX:])) is not None
    )


def _is_weak(name: str) -> bool:
    """Whether a random-looking value of this name is secret."""
    lowered = _snake(name[-_NAME_LENGTH_MAX:])
    return not lowered.endswith(table.EVIDENCE_NAMES) and _WEAK_END.search(lowered) is not None


def _snake(name: str) -> str:
    """Return a name in lower case with its words apart: dbPassword is db_password."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _is_random(value: str) -> bool:
    """Whether a value looks drawn: letters and digits mixed within a word, with some entropy."""
    if _UUID.fullmatch(value):
        return False
    for word in re.split(r"[^A-Za-z0-9]+", value[:4096]):
        if len(word) < _RANDOM_LENGTH_MIN or word.isdigit() or _WORDS.fullmatch(word):
            continue
        if _entropy(word) >= _ENTROPY_MIN:
            return True
    return False


def _entropy(text: str) -> float:
    """Return Shannon's entropy in bits a character."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values())


@functools.lru_cache(maxsize=256)
def _hints(anchors: frozenset[str]) -> re.Pattern[str]:
    """Return a pattern found in every line that may hold a secret: only such lines are read again.

    ``anchors`` are those that the text has: most texts have few,
    and each costs time at every place.
    """
    return re.compile(_tree((*_HINTS, *map(re.escape, sorted(anchors)))))


def _line(line: str, lowered: str, shapes: Sequence[tuple[tuple[str, ...], re.Pattern[str], str]]) -> str:
    """Return a line with its secrets masked."""
    for anchors, pattern, replacement in shapes:
        if any(anchor in lowered for anchor in anchors):
            line = pattern.sub(replacement, line)
    return _after_names(line) if _HINTED_NAME.search(lowered) else line


def _after_names(line: str) -> str:
    """Mask the value after each secret-like name."""
    parts: list[str] = []
    done = 0
    for match in _NAMED.finditer(_lowered(line)):
        if match.start() < done:
            continue
        place = _value_after(line, match)
        if place is not None:
            parts += (line[done : place[0]], MASK)
            done = place[1]
    return "".join([*parts, line[done:]]) if parts else line


def _value_after(line: str, match: re.Match[str]) -> tuple[int, int] | None:
    """Return start and end of the secret after a name; None if there is no secret."""
    name = _name_before(line, match.start("is"))
    lowered = name.lower()
    is_option = name.startswith("-")
    is_strong = _STRONG_END.search(_snake(name)) is not None or (is_option and lowered.endswith("token"))
    if lowered.endswith(table.EVIDENCE_NAMES) or (not is_strong and lowered.endswith("key") and not name.isupper()):
        return None
    start = match.end()
    if match["tag"] is not None:
        return _in_tag(line, match.start("is") - len(name), start)
    opening = _OPENING.match(line, start)
    if match["space"] is not None and not is_option and opening is None:
        return None
    if "authorization" in lowered and (scheme := _SCHEME.match(line, start)) is not None:
        start, opening = scheme.end(), None
        if "digest" in scheme[0].lower():  # a list of parameters
            return start, len(line.rstrip("\r"))
    quote = opening[0] if opening is not None else ""
    pattern = _TO_THE_END if lowered.endswith("cookie") else _VALUE
    begin, end = _extent(pattern, quote, line, start, _VALUE_LENGTH_JUDGED)
    value = line[begin:end]
    if not _is_value(value) or not (quote or _may_be(value, name, line, end, match)):
        return None
    wants_random = not is_strong or (match["pair"] is not None and not is_option)
    if wants_random and not _is_random(value):
        return None
    return _extent(pattern, quote, line, start, None) if len(value) >= _VALUE_LENGTH_JUDGED else (begin, end)


def _in_tag(line: str, begin: int, start: int) -> tuple[int, int] | None:
    """Return start and end of an XML element's text; None if it is no element with text alone."""
    end = _run(_IN_TAG, line, start)
    is_element = begin > 0 and line[begin - 1] == "<"
    return (start, end) if is_element and line.startswith("</", end) and end > start else None


def _is_value(value: str) -> bool:
    """Whether a text can be a value: it is no placeholder, type, mask or word of a sentence."""
    return bool(value) and not _NO_VALUE.fullmatch(value) and value.lower() not in table.NO_VALUES


def _may_be(value: str, name: str, line: str, end: int, match: re.Match[str]) -> bool:
    """Whether the text after a name can be its value: it is no code, path or other option."""
    if line.startswith(MASK, end) or (value.startswith("-") and match["space"] is not None):
        return False
    if value.startswith("/") and name.lower().endswith("pwd"):
        return False
    if line[end : end + 1] in {"(", "["} and value.replace(".", "").replace("_", "").isalpha():
        return False
    last = value.rpartition(".")[2]
    return _snake(last).strip("_") != _snake(name).strip("_-")


def _extent(pattern: str, quote: str, line: str, start: int, limit: int | None) -> tuple[int, int]:
    """Return start and end of a value, up to its quote or the end of the pattern or ``limit``."""
    start += len(quote)
    if len(quote) > 1:  # quotes within quotes
        end = line.find(quote, start, len(line) if limit is None else start + limit)
        return start, end if end >= 0 else len(line) if limit is None else min(start + limit, len(line))
    return start, _run(_IN_QUOTES[quote] if quote else pattern, line, start, limit)


def _run(pattern: str, line: str, start: int, limit: int | None = _VALUE_LENGTH_JUDGED) -> int:
    """Return the end of a run of characters that match a pattern."""
    found = _run_of(pattern, limit).match(line, start)
    return found.end() if found is not None else start


@functools.lru_cache(maxsize=16)
def _run_of(pattern: str, limit: int | None) -> re.Pattern[str]:
    return re.compile(f"{pattern}{{0,{limit or ''}}}+")


def _name_before(line: str, end: int) -> str:
    """Return the whole name that ends here, from its first letter or dash."""
    reversed_name = line[max(0, end - _NAME_LENGTH_MAX) : end][::-1]
    found = _NAME_REVERSED.match(reversed_name)
    return found[0][::-1] if found is not None else ""


def _lowered(text: str) -> str:
    """Return the text in lower case, each character in its place."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else text.translate(_ASCII_LOWER)


_ASCII_LOWER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def _bounded(form: str) -> str:
    """Return a pattern for a known secret; a plain word matches only as a whole word."""
    if form.isalpha() and (form.islower() or form.isupper()):
        return rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])"
    return re.escape(form)


def _forms(secret: str) -> set[str]:
    """Return the forms of a value in text: plain, in JSON, in a Python literal, in a URL."""
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], urllib.parse.quote(secret, safe="")}
