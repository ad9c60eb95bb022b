"""`ntkprobe demo`: train, measure and draw on the embedded model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._options import quieten

if TYPE_CHECKING:
    import pandas as pd


def demo(
    seed: Annotated[int, typer.Option(help="Of the training and the choice of prompts.")] = 0,
    output_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to; an earlier demo there goes on.")
    ] = Path("runs/demo"),
) -> int:
    """Train without and with DCR on the embedded model, measure every checkpoint, and draw.

    Minutes on two cores. Stop it at any time: the same command goes on where it was.
    """  # ruff: ignore[docstring-missing-returns]
    quieten()
    from ..demo import before_and_after, run_demo
    from ..plots.style import run_label

    done = run_demo(output_dir, seed, tell=lambda line: print(line, file=sys.stderr, flush=True))
    for where, why in done.failed.items():
        print(f"not measured: {where}: {why}", file=sys.stderr)
    typer.echo(demo_table({run_label(n): before_and_after(run) for n, run in done.runs.items()}))
    typer.echo(
        "\na ← b: how far a training step on b reaches into the answer to a."
        f"\nFigures 1, 3, 5 and 6 are in {output_dir / 'figures'}, as PNG, PDF and CSV."
        "\nThis is a constructed world: it shows the instrument at work and replicates nothing on"
        "\nreal models. For a run of yours:  ntkprobe measure --ckpt-dir RUN --prompts FILE"
        f"\nTo explore both runs, open this page in a browser:  {done.report}"
    )
    return 1 if done.failed else 0


def demo_table(runs: "dict[str, pd.DataFrame]") -> str:
    """Return the runs side by side: every quantity before and after safety alignment.

    Args:
        runs: of each its `before_and_after`, by its title.

    Returns:
        Lines of fixed width.
    """
    head = "".join(f"{name:>24}" for name in runs)
    steps = "".join(f"{f'step {step}':>12}" for table in runs.values() for step in table.columns)
    lines = [f"\n{'':36}{head}", f"{'':36}{steps}"]
    rows = next(iter(runs.values())).index
    for quantity, group in rows:
        values = [v for table in runs.values() for v in table.loc[quantity, group]]
        cells = "".join(f"{v:12.0%}" if "rate" in quantity else f"{v:12.2f}" for v in values)
        lines.append(f"{quantity:13}{group.replace('_', ' '):23}{cells}")
    return "\n".join(lines)
