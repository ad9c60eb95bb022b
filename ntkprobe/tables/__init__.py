"""The papers' tables from evaluation folders, one file each: Markdown, LaTeX or CSV.

A table is a module with `table(runs, judges) -> Table`, `MISSING` (what to do where it is empty)
and, where a paper prints the same, `paper(cell, model)` with `PRINTED` (its source) and `BY_MODEL`
(if it does so for several models). The folder is the registry: a new table is a new file.
"""

from .making import find_evaluations as find_evaluations
from .making import make_table as make_table
from .making import table_names as table_names
from .rendering import FORMATS as FORMATS
from .rendering import Table as Table
