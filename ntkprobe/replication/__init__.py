"""The paper's experiment on a real model, end to end: data, training, measuring, report.

`docs/replication.md` says what is asked and was written first. Everything is done by the public
functions of the other rooms; here stand only the plan, the splits of the data, and the verdicts.
"""

from .run import replicate as replicate
from .settings import SCALES as SCALES
from .settings import ReplicationSettings as ReplicationSettings
from .settings import Scale as Scale
