"""Proposition 1 (A.7) in numbers: the kernel, and its bounds by features.

With h the output of layer ℓ at all positions, J_g = ∂z/∂h and G = ∂h/∂θ over the parameters up to
ℓ, the kernel over these is J_g(x′) G′ Gᵀ J_g(x)ᵀ. Start at `measurement.py`; `factors` has
G and J_g.
"""

from .measurement import BoundMeasurement as BoundMeasurement
from .measurement import measure_bounds as measure_bounds
