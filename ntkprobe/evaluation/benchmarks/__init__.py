"""Prompts that a model is evaluated on: by name, or from a file. No texts come with the package.

`catalogue` says what each benchmark is, `schema` what its rows mean, `sources` where they are.
"""

from .catalogue import BENCHMARKS as BENCHMARKS
from .schema import Benchmark as Benchmark
from .schema import Hub as Hub
from .sources import BenchmarkPrompts as BenchmarkPrompts
from .sources import read_benchmark as read_benchmark
