# The names of the room, each imported when it is first used: lazy_loader reads this list.

from .manifest import verify as verify
from .open import Pack as Pack, open_pack as open_pack
from .pack import salvage as salvage, write as write
from .redact import SECRETS as SECRETS
from .standalone import dump_failure_evidence as dump_failure_evidence
