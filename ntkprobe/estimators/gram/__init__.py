"""The Gram estimator, the default: exact, from reverse mode alone. Start at `algorithm.py`."""

from .algorithm import Gram as Gram
