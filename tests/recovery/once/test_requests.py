"""Canonical requests: the same request has one hash, different ones never share it."""

from __future__ import annotations

import datetime
import decimal
import math

import pytest
from durable_agents.errors import InvalidKey, InvalidRequest, InvalidResult
from durable_agents.once.requests import KEY_BYTES_MAX, canonical, check_key, encoded_result, request_hash
from hypothesis import given, strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def kind(value: object) -> str:
    """Name a parameter without its address: workers that run the tests at once must agree on the
    name.
    """
    return f"{type(value).__name__} {value!a:.7}"


def shuffled(value: object) -> object:
    """Return an equal value whose objects have their keys in the opposite order."""
    if isinstance(value, dict):
        return {name: shuffled(value[name]) for name in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(JSON)
def test_the_order_of_keys_does_not_matter(request_: object) -> None:
    """A request has the hash of any other order of its keys."""
    assert request_hash(request_) == request_hash(shuffled(request_))


@given(JSON, JSON)
def test_different_requests_have_different_forms(one: object, other: object) -> None:
    """Equal canonical forms mean equal values, of equal types."""
    if canonical(one) == canonical(other):
        assert one == other


def test_the_hash_is_all_of_the_sha_256_of_the_canonical_form() -> None:
    """The form is known to other programs: sorted keys, no spaces, UTF-8."""
    assert canonical({"b": [1, 2.5, None], "a": "ключ"}) == '{"a":"ключ","b":[1,2.5,null]}'.encode()
    assert len(request_hash({})) == 64


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (0, False), ("1", 1), (None, "null"), ([], {})])
def test_values_of_different_types_are_different_requests(one: object, other: object) -> None:
    """What Python calls equal need not be the same JSON."""
    assert request_hash([one]) != request_hash([other])


def test_a_tuple_is_the_same_request_as_a_list() -> None:
    """JSON knows one kind of list."""
    assert request_hash({"stop": ("a", ("b",))}) == request_hash({"stop": ["a", ["b"]]})


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        b"bytes",
        {1: "a"},
        {None: 1},
        {1, 2},
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        decimal.Decimal("1.5"),
        "\ud800",
        object(),
        math.sin,
    ],
    ids=kind,
)
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    """Each of these is written by some encoder as another request."""
    for request_ in (value, [value], {"a": {"b": (value,)}}):
        with pytest.raises(InvalidRequest, match=r"must (be|consist of) .*JSON"):
            request_hash(request_)


def test_a_request_that_contains_itself_is_refused() -> None:
    """It has no end, and is refused like any other that cannot be encoded."""
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(InvalidRequest):
        request_hash(endless)


@pytest.mark.parametrize(
    "key",
    ["", "a\0b", "\ud800", "k" * (KEY_BYTES_MAX + 1), "k" * 1024 * 1024, b"k", 7, None],
    ids=lambda key: f"{type(key).__name__} {key!a:.8} {len(str(key))}",
)
def test_a_key_that_cannot_be_stored_is_refused(key: object) -> None:
    """The error is short, whatever the length of the key."""
    with pytest.raises(InvalidKey, match="A key must be 1 to 1024 bytes") as caught:
        check_key(key)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300


def test_a_key_of_the_greatest_length_is_accepted() -> None:
    """The bound counts bytes, not characters."""
    check_key("ж" * (KEY_BYTES_MAX // 2))
    with pytest.raises(InvalidKey):
        check_key("ж" * (KEY_BYTES_MAX // 2 + 1))


@pytest.mark.parametrize(
    "value", [(1,), b"x", math.nan, {1: 2}, object(), "\ud800", {1}], ids=lambda value: type(value).__name__
)
def test_a_result_that_would_come_back_as_another_is_refused(value: object) -> None:
    """A tuple too: the first caller would get it, and all others a list."""
    with pytest.raises(InvalidResult):
        encoded_result(value)


def test_a_result_that_is_too_large_is_refused() -> None:
    """The bound counts bytes of JSON."""
    assert encoded_result("x" * 8, 10) == b'"xxxxxxxx"'
    with pytest.raises(InvalidResult, match="at most 10 bytes"):
        encoded_result("x" * 9, 10)
