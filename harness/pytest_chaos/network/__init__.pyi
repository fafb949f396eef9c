# The names that users import from here, each loaded when it is first used.

from pytest_chaos.faults.network.links import disturb as disturb
from pytest_chaos.faults.network.partitions import (
    bridge as bridge,
    heal as heal,
    isolate as isolate,
    majorities_ring as majorities_ring,
    partition as partition,
    unreachable as unreachable,
)
