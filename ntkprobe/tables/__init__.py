"""The papers' tables from evaluation folders, one file each: Markdown, LaTeX or CSV.

A table is a module with a `TITLE`, `numbers(runs, judges) -> Numbers` and, where a paper prints the
same, `paper(cell, model)`, with `BY_MODEL` where it does so for several models. The folder is the
registry: a new table is a new file.
"""

from .making import find_evaluations as find_evaluations
from .making import make_table as make_table
from .making import table_names as table_names
from .rendering import FORMATS as FORMATS
from .rendering import Table as Table
