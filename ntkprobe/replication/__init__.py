"""The paper's experiment on a real model, end to end: data, training, measuring, report.

`docs/replication.md` states the hypotheses and was written first. All work is done by the public
functions of the other packages; here are the plan, the splits of the data, and the verdicts.
"""

from typing import TYPE_CHECKING

from ..lazy_imports import names_of

if TYPE_CHECKING:
    from .run import replicate as replicate
    from .settings import SCALES as SCALES
    from .settings import ReplicationSettings as ReplicationSettings
    from .settings import Scale as Scale

_HOMES = {
    "SCALES": "settings",
    "ReplicationSettings": "settings",
    "Scale": "settings",
    "replicate": "run",
}
__all__ = sorted(_HOMES)

__getattr__ = names_of(__name__, _HOMES)
