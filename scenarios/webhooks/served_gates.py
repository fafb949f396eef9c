"""The gates that ``python -m durable_agents serve`` loads in scenario 11."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from scenarios.webhooks.webhook_agents import FOLDER, TRACKER, make_gates

GATES: Final = make_gates(Path(os.environ[FOLDER]), int(os.environ[TRACKER]))
