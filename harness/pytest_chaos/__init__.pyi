# The public names, each imported when it is first used: lazy_loader reads this list.

from .errors import ChaosError as ChaosError
from .evidence import dump_failure_evidence as dump_failure_evidence
from .model.history import History as History
from .model.plan import (
    after_mark as after_mark,
    at_delivery as at_delivery,
    at_moment as at_moment,
    at_point as at_point,
    deliver as deliver,
    hold_lock as hold_lock,
    kill as kill,
    pause as pause,
    restart as restart,
    resume as resume,
    terminate as terminate,
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
