"""Measure one model: the kernel between prompts, the probability of refusal, activations.

What is kept are raw numbers and the settings that they depend on; everything else is a method.
"""

from .activations import ActivationMeasurement as ActivationMeasurement
from .activations import measure_activations as measure_activations
from .between import measure_between as measure_between
from .encoding import Encoded as Encoded
from .encoding import encode as encode
from .encoding import evaluating as evaluating
from .kernels import KernelMeasurement as KernelMeasurement
from .kernels import measure_kernel as measure_kernel
from .refusals import RefusalMeasurement as RefusalMeasurement
from .refusals import measure_refusal as measure_refusal
