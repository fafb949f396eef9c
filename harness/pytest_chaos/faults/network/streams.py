"""Toxics that agents meet which call LLM APIs: streams that break, storms of 429, broken tool JSON.

They are toxics of a fault proxy like those of ``faults/toxics.py``, planned with ``deliver``.
Server-sent events are those of the HTML standard: blocks of lines with an empty line behind each.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pytest_chaos.faults.kind import Parameter
from pytest_chaos.faults.messages import HttpResponse
from pytest_chaos.faults.toxics import toxic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.faults.proxy_server import PassingDelivery

_BLANK: Final = b"\n\n"
RETRY_AFTER_S_MAX: Final = 86_400


@toxic(
    "cut-stream-delivery",
    event=Parameter(int, 1, default=None, may_be_none=True),
    framed=Parameter(bool, default=True),
    reset=Parameter(bool, default=False),
)
async def cut_stream(passing: PassingDelivery, event: int | None, *, framed: bool, reset: bool) -> HttpResponse:
    """Carry it, and end its answer in the middle of an event: of this one, or of the middle one."""
    answer = await passing.carry()
    events = [part + _BLANK for part in answer.body.replace(b"\r\n", b"\n").split(_BLANK) if part.strip()]
    number = (len(events) + 1) // 2 if event is None else event
    if not 1 <= number <= len(events):
        return answer
    before = b"".join(events[: number - 1])
    kept = before + events[number - 1][: max(1, (len(events[number - 1]) - len(_BLANK)) // 2)]
    total = sum(map(len, events))
    sent = await passing.stream(answer, [kept], 0.0, is_framed=framed, is_whole=False)
    if sent:
        passing.fired(
            f"was cut within event {number} of {len(events)} of its answer, after {len(kept)} of {total} bytes"
        )
    return passing.hang_up(reset=reset)


@toxic("trickle-delivery", bytes_each=Parameter(int, 1, default=8), pause_s=Parameter(float, 0, 3600, default=0.05))
async def trickle(passing: PassingDelivery, bytes_each: int, pause_s: float) -> HttpResponse:
    """Carry it, and hand out the body of its answer a few bytes at a time."""
    answer = await passing.carry()
    pieces = [answer.body[place : place + bytes_each] for place in range(0, len(answer.body), bytes_each)]
    if len(pieces) < 2:
        return answer
    sent = await passing.stream(answer, pieces, pause_s, is_framed=True, is_whole=True)
    ending = "" if sent == len(pieces) else "; its sender hung up then"
    if sent > 1:
        passing.fired(f"had {sent} of {len(pieces)} pieces of its answer, {pause_s:g} s apart{ending}")
    return passing.hang_up()


@toxic(
    "storm-delivery",
    retry_after_s=Parameter(int, 0, RETRY_AFTER_S_MAX, default=1),
    status=Parameter(int, 400, 599, default=429),
)
async def storm(passing: PassingDelivery, retry_after_s: int, status: int) -> HttpResponse:
    """Do not carry it; tell its sender to come back later, with Retry-After."""
    passing.fired(f"was not carried; its sender was told {status}, and to come back after {retry_after_s} s")
    body = json.dumps({"error": {"type": "rate_limit_error", "message": "slow down, says the fault proxy"}})
    headers = [(b"content-type", b"application/json"), (b"retry-after", str(retry_after_s).encode())]
    return HttpResponse(status, headers, body.encode())


@toxic("malform-delivery", field=Parameter(str, default="arguments"))
async def malform(passing: PassingDelivery, field: str) -> HttpResponse:
    """Carry it, and break the JSON text in this field of its JSON answer; all else stays valid."""
    answer = await passing.carry()
    try:
        whole = json.loads(answer.body)
    except ValueError:
        return answer
    for holder in _holders(whole, field):
        text = holder[field]
        broken = _broken(text)
        if broken is not None:
            holder[field] = broken
            passing.fired(f"had {len(broken)} of {len(text)} characters of {field!r} in its answer: no JSON any more")
            return answer._replace(body=json.dumps(whole).encode())
    return answer


def _holders(value: Any, field: str) -> Iterator[dict[str, Any]]:
    """Yield the objects within a value that have a text in this field, outermost first."""
    if isinstance(value, dict):
        if isinstance(value.get(field), str):
            yield value
        for each in value.values():
            yield from _holders(each, field)
    elif isinstance(value, list):
        for each in value:
            yield from _holders(each, field)


def _broken(text: str) -> str | None:
    """Return the longest beginning of a JSON text, half of it at most, that is none; or None.

    >>> _broken('{"city": "Bern"}')
    '{"city":'
    """
    for length in range(len(text) // 2, 0, -1):
        try:
            json.loads(text[:length])
        except ValueError:
            return text[:length]
    return None
