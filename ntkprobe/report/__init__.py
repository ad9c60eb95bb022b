"""One self-contained HTML page about measured runs and evaluations. Loads no torch.

    folders ──► measured, layers, evaluated ──► contents ──► packing ──► page
      which         tables and arrays of a run   one tree    JSON, base64   HTML

`vendor/` holds the plotting library as it goes into the page, `scripts/` and `styles/` are ours.
"""

from .page import follow as follow
from .page import make_report as make_report
