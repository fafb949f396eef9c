"""The event of the creation is delivered behind that of the update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding, at_delivery, deliver

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.chaos(id="bank-created-after-updated", title="The mirror has what the service has")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """The shop has the status that the subscription has."""
    chaos.plan(deliver("proxy", "reorder", at_delivery(1), status=200, behind=1, hold_s=60))
    receiver = chaos.spawn(f"{PROGRAM}:shop", kwargs={"is_mended": form == "mended"}, name="shop")
    (ready,) = receiver.wait_for("listening", kind="note", timeout_s=60)
    proxy = chaos.proxy(f"http://127.0.0.1:{ready.value}")
    chaos.spawn(f"{PROGRAM}:subscribe", kwargs={"url": proxy.url}, name="service").wait_exit(timeout_s=60)
    receiver.wait_for("handled", kind="note", count=2, timeout_s=60)
    proxy.wait_for_deliveries(2, timeout_s=60)

    there, here = (
        json.loads((chaos.directory / name).read_text())["status"] for name in ("service.json", "mirror.json")
    )
    text = f"the subscription is {there} at the service, and {here} in the shop"
    found = [Finding(signature="subscription-stale", text=text)] if here != there else []
    chaos.check(found, expect=f"both say the same: {here}")
