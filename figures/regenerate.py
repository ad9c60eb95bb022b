"""Redraw the figures from measurement folders: `python figures/regenerate.py [--runs DIR]`.

Without `--runs`, from the demo's own measurements, which are committed beside this file. The
drawing code is in the package: `ntkprobe figures` does the same. No model is loaded, and no torch.
"""

import argparse
import sys
from pathlib import Path

from ntkprobe.errors import UserError
from ntkprobe.figures import draw_figures, figure_names, find_runs

HERE = Path(__file__).parent


def main(argv: list[str] | None = None) -> int:
    """Return the exit status, after drawing and naming what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=HERE / "demo", help="folder of measured runs")
    parser.add_argument("--output-dir", type=Path, help="where to (default: RUNS/figures)")
    parser.add_argument("--only", nargs="+", default=[], choices=figure_names(), metavar="FIGURE")
    parser.add_argument("--compare", choices=["paper"], help="put its printed numbers beside ours")
    options = parser.parse_args(argv)
    folder = options.output_dir or options.runs / "figures"
    try:
        drawn = draw_figures(find_runs([options.runs]), folder, options.only, options.compare)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, reason in drawn.missing.items():
        print(f"{name} not drawn: {reason}", file=sys.stderr)
    if drawn.compared:
        print(drawn.comparison(), end="\n\n")
    print(f"{len(drawn.files) // 3} figures in {folder}, each as PNG, PDF and CSV.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
