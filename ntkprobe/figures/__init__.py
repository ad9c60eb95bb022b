"""Figures from measurement folders, one file each: the paper's and further ones.

A figure is a module with `numbers(runs) -> DataFrame` (tidy, saved as CSV next to the picture) and
`draw(numbers) -> Figure`. The folder is the registry: a new figure is a new file.
"""

from .drawing import Drawn as Drawn
from .drawing import draw_figures as draw_figures
from .drawing import figure_names as figure_names
from .drawing import find_runs as find_runs
