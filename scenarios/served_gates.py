"""The gates that ``python -m recovery serve`` is told to load in scenario 11; where to ask is in the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from scenarios.webhook_agents import FOLDER, TRACKER, make_gates

GATES: Final = make_gates(Path(os.environ[FOLDER]), int(os.environ[TRACKER]))
