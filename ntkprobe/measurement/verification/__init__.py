"""Checks of a measurement by two comparisons that do not depend on each other.

`backward_passes` compares an estimator with plain backward passes on the model in memory.
`independent_load` compares the model in memory, and what was measured on it, with the checkpoint
loaded by transformers and peft alone.
"""

from .backward_passes import Verification as Verification
from .backward_passes import WrongKernel as WrongKernel
from .backward_passes import verify as verify
from .backward_passes import verify_pair as verify_pair
from .independent_load import Comparison as Comparison
from .independent_load import compare_with_files as compare_with_files
from .measured_sample import MeasuredSample as MeasuredSample
from .measured_sample import sample_measurement as sample_measurement
from .plain_load import FAILURES as FAILURES
from .plain_load import WrongMeasurement as WrongMeasurement
