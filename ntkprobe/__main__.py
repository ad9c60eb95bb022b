"""`python -m ntkprobe`: the command line, where the command `ntkprobe` is not on the path."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
