# The public names, each imported when it is first used: lazy_loader reads this list.

from .errors import ChaosError as ChaosError
from .evidence import dump_failure_evidence as dump_failure_evidence
from .faults.clock.kinds import (
    clock_drift as clock_drift,
    clock_freeze as clock_freeze,
    clock_heal as clock_heal,
    clock_jump as clock_jump,
    clock_uptime as clock_uptime,
)
from .faults.every_point import at_every_point as at_every_point
from .faults.hold import hold as hold, release as release
from .faults.hold_lock import hold_lock as hold_lock
from .faults.kill import kill as kill
from .faults.pause import pause as pause, resume as resume
from .faults.restart import restart as restart
from .faults.terminate import terminate as terminate
from .faults.toxics import deliver as deliver
from .model.history import History as History
from .model.plan import (
    after_mark as after_mark,
    at_delivery as at_delivery,
    at_moment as at_moment,
    at_point as at_point,
    at_step as at_step,
)
from .model.values import (
    Fault as Fault,
    Finding as Finding,
    Mark as Mark,
    Plan as Plan,
    Receipt as Receipt,
    RunRecord as RunRecord,
    Verdict as Verdict,
)
from .runtime.agent import Agent as Agent
from .runtime.marks import Marks as Marks
from .runtime.run import Run as Run
