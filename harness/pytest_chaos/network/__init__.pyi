# The names that users import from here, each loaded when it is first used.

from pytest_chaos.faults.network.links import disturb as disturb
