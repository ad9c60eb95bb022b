"""The Gram estimator."""

from .algorithm import Gram as Gram
