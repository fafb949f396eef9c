"""Ownership checkers: honest leases pass, and each way of holding wrongly is found under its own
signature.
"""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from pytest_chaos.checkers.ownership import Grant, Write, no_stale_write, one_holder, tokens_rise


def _grant(token: int, start: float, end: float | None = None, *, holder: str = "a", resource: str = "item") -> Grant:
    return Grant(resource=resource, holder=holder, token=token, start=start, end=end)


def _write(token: int, at: float, *, accepted: bool = True, resource: str = "item") -> Write:
    return Write(resource=resource, token=token, at=at, accepted=accepted)


@st.composite
def honest_grants(draw: st.DrawFn) -> list[Grant]:
    """Draw grants of several resources, each held by one at a time under rising tokens,
    in any order.
    """
    grants: list[Grant] = []
    for resource in ("item", "job"):
        moment, token = 0, 0
        for _ in range(draw(st.integers(0, 5))):
            moment += draw(st.integers(0, 3))
            token += draw(st.integers(1, 3))
            end = moment + draw(st.integers(1, 5))
            grants.append(_grant(token, moment, end, holder=draw(st.sampled_from("abc")), resource=resource))
            moment = end
    return draw(st.permutations(grants))


@given(honest_grants(), st.data())
def test_an_honest_lease_is_never_accused(grants: list[Grant], data: st.DataObject) -> None:
    """Grants that follow each other, also without a pause between,
    and writes of the holder of the moment all pass.
    """
    writes = [
        _write(
            grant.token,
            data.draw(st.floats(grant.start, grant.end or grant.start, exclude_max=True)),
            resource=str(grant.resource),
        )
        for grant in grants
    ]

    assert one_holder(grants) == ()
    assert tokens_rise(grants) == ()
    assert no_stale_write(grants, writes) == ()


@pytest.mark.parametrize(
    ("grants", "text"),
    [
        (
            [_grant(1, 0, 10), _grant(2, 9, 20, holder="b")],
            "1 times held by two at once: 'item' by a (token 1, 0 to 10) and b (token 2, 9 to 20)",
        ),
        (
            [_grant(1, 0), _grant(2, 50, holder="b")],
            "1 times held by two at once: 'item' by a (token 1, 0 to now) and b (token 2, 50 to now)",
        ),
        (
            [_grant(1, 0, 10), _grant(2, 5, 8)],
            "1 times held by two at once: 'item' by a (token 1, 0 to 10) and a (token 2, 5 to 8)",
        ),
        (
            [_grant(1, 0, 100), _grant(2, 5, 8, holder="b"), _grant(3, 9, 10, holder="c")],
            (
                "2 times held by two at once: 'item' by a (token 1, 0 to 100) and b (token 2, 5 to 8), "
                "'item' by a (token 1, 0 to 100) and c (token 3, 9 to 10)"
            ),
        ),
    ],
)
def test_two_holders_at_once_are_found(grants: list[Grant], text: str) -> None:
    """An overlap is found however the grants are nested,
    also with an older life of the same holder.
    """
    (finding,) = one_holder(grants)

    assert (finding.signature, finding.text) == ("ownership:two-holders", text)


def test_different_resources_may_be_held_at_once() -> None:
    """Each resource has its own holder and its own tokens."""
    grants = [_grant(5, 0, 10), _grant(1, 1, 9, holder="b", resource="job")]

    assert one_holder(grants) == ()
    assert tokens_rise(grants) == ()


@pytest.mark.parametrize("token", [7, 3])
def test_a_token_that_does_not_rise_is_found(token: int) -> None:
    """A token that is given out twice, or falls, could not fence the holder before."""
    (finding,) = tokens_rise([_grant(7, 0, 1), _grant(token, 2, 3, holder="b")])

    assert (finding.signature, finding.text) == (
        "ownership:token-not-rising",
        f"1 tokens did not rise: 'item' 7 then {token}",
    )


def test_a_zombie_whose_write_is_accepted_is_found() -> None:
    """A holder that wakes after another was granted must be refused;
    if it is not, that is the finding.
    """
    grants = [_grant(1, 0, 10), _grant(2, 12, 30, holder="b")]

    (finding,) = no_stale_write(grants, [_write(1, 5), _write(2, 13), _write(1, 15)])

    assert (finding.signature, finding.text) == (
        "ownership:stale-write",
        "1 writes accepted under a stale token: 'item' token 1 at 15",
    )
    assert no_stale_write(grants, [_write(1, 15, accepted=False)]) == ()


def test_a_late_write_that_nobody_was_granted_over_is_allowed() -> None:
    """Past its expiry but before the next grant, a holder's token is still the highest:
    fencing lets it write.
    """
    assert no_stale_write([_grant(1, 0, 10), _grant(2, 12, 30)], [_write(1, 11)]) == ()


@pytest.mark.parametrize("write", [_write(9, 5), _write(2, 5), _write(1, 5, resource="job")])
def test_a_write_under_a_token_that_was_not_granted_is_found(write: Write) -> None:
    """An unknown token, one that is granted only later,
    and one of another resource were not granted.
    """
    (finding,) = no_stale_write([_grant(1, 0, 10), _grant(2, 12, 30)], [write])

    assert finding.signature == "ownership:ungranted-write"
    assert finding.text == (
        f"1 writes accepted under a token that was not granted: {write.resource!r} token {write.token} at 5"
    )
