"""The papers' tables from evaluation folders, one file each: Markdown, LaTeX or CSV.

A table is a module with a `TITLE`, `numbers(runs, judges) -> Numbers` and, where a paper prints the
same, `paper(cell, model)`, with `BY_MODEL` where it does so for several models. The folder is the
registry: a new table is a new file.
"""

from ._making import find_evaluations as find_evaluations
from ._making import make_table as make_table
from ._making import table_names as table_names
from ._rendering import FORMATS as FORMATS
from ._rendering import Table as Table
