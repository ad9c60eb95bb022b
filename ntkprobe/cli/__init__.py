"""The command line: parse, one public call, one closing line.

The folder is the registry: each of its modules is a sub-command, unless its name begins with `_`.
"""

from ._main import main as main
