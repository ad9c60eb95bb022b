"""Make the report of the replication again from the measurements that are committed.

`python figures/replication.py` reads and writes `figures/replication`: `report.md`, its figures and
its tables. With `--copy OUT`, the folder of `ntkprobe replicate --output-dir OUT`, what a report is
made of is copied there before, without texts and places (`ntkprobe.replication.publishing`). The
figures that the documentation shows are copied to `docs`. No model is loaded.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from ntkprobe.errors import UserError
from ntkprobe.replication.publishing import publish
from ntkprobe.replication.report import write_report
from ntkprobe.replication.settings import ReplicationSettings
from ntkprobe.replication.workspace import Workspace

HERE = Path(__file__).with_name("replication")
SHOWN = ("fig1", "fig6", "fig7")
"""Figures that the README and docs/replication.md show."""


def main(argv: list[str] | None = None) -> int:
    """Return the exit status, after copying what is asked for and writing the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--copy", type=Path, metavar="OUT", help="a replication's output folder")
    parser.add_argument("--folder", type=Path, default=HERE, help="the committed measurements")
    options = parser.parse_args(argv)
    try:
        if options.copy:
            publish(options.copy, options.folder)
        record = json.loads((options.folder / "replication.json").read_text())
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    settings = ReplicationSettings(
        model=record["model"],
        output_dir=options.folder,
        seeds=tuple(record["seeds"]),
        scale=record["compared"]["scale"],
    )
    print(write_report(Workspace(settings, {})))
    if options.folder == HERE:
        docs = HERE.parents[1] / "docs"
        for name in SHOWN:
            shutil.copy(HERE / "figures" / f"{name}.png", docs / f"replication_{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
