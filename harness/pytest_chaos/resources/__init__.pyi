# The names that users import from here, each loaded when it is first used.

from pytest_chaos.faults.resources.kinds import crowd as crowd, limit as limit, starve as starve, unlimit as unlimit
