"""The paper's figures and ours, one file each, from measurement folders alone.

A figure is a module with `numbers(runs) -> DataFrame` (tidy, saved beside the picture as CSV) and
`draw(numbers) -> Figure`. The folder is the registry: a new figure is a new file.
"""

from ._drawing import Drawn as Drawn
from ._drawing import draw_figures as draw_figures
from ._drawing import figure_names as figure_names
from ._runs import find_runs as find_runs
