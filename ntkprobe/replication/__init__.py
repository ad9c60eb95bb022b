"""The paper's experiment on a real model, end to end: data, training, measuring, report.

`docs/replication.md` states the hypotheses and was written first. All work is done by the public
functions of the other packages; here are the plan, the splits of the data, and the verdicts.
"""

from .run import replicate as replicate
from .settings import SCALES as SCALES
from .settings import ReplicationSettings as ReplicationSettings
from .settings import Scale as Scale
