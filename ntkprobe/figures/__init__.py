"""The paper's figures and ours, one file each, from measurement folders alone.

A figure is a module with `numbers(runs) -> DataFrame` (tidy, saved as CSV next to the picture) and
`draw(numbers) -> Figure`. The folder is the registry: a new figure is a new file.
"""

from .drawing import Drawn as Drawn
from .drawing import draw_figures as draw_figures
from .drawing import figure_names as figure_names
from .runs import find_runs as find_runs
