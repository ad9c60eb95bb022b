"""Directions of refusal, over-refusal and toxicity in activations; loads no torch.

`differences`: directions as differences of means, and scores along them. `measurement`: these for
every position and layer of one model, and from step to step.
"""

from .differences import NAMES as NAMES
from .differences import PERMUTATIONS as PERMUTATIONS
from .differences import Classes as Classes
from .differences import auc as auc
from .differences import classes as classes
from .differences import cosines as cosines
from .differences import direction as direction
from .differences import drift as drift
from .differences import held_out_scores as held_out_scores
from .differences import probe_accuracy as probe_accuracy
from .differences import projections as projections
from .differences import separation as separation
