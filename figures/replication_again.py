"""Compare runs of the replication with the same runs trained again on another processor.

`python figures/replication_again.py` reads the runs in `figures/replication/again`. For those that
were evaluated again it prints for how many answers the refusal filter says otherwise than in
`figures/replication/eval`, and by how much the losses differ; for those whose kernels were measured
along the run, by how much the kernel of the first checkpoint differs from that in
`figures/replication/ntk`. It draws figure 3 of these kernels into `figures/replication/again`, and
copies it to `docs`. No model is loaded.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ntkprobe import Trajectory
from ntkprobe.figures import draw_figures
from ntkprobe.replication.results import REFUSED

HERE = Path(__file__).with_name("replication")
AGAIN = HERE / "again"


def main() -> int:
    """Return the exit status, after printing a line for each comparison and drawing figure 3."""
    measured: dict[str, Trajectory] = {}
    for name in ("stl-0", "dcr-stl-0", "control-stl-0"):
        if (AGAIN / name / REFUSED).is_file():
            print(f"{name}: {answers(name)}")
        if (AGAIN / name / "ntk/run.json").is_file():
            measured[name.rpartition("-")[0]] = Trajectory(AGAIN / name / "ntk")
            print(f"{name}: {first_kernel(name)}")
    drawn = draw_figures(measured, AGAIN, ["fig3"])
    for name, why in (drawn.missing | drawn.broken).items():
        print(f"error: {name} was not drawn: {why}", file=sys.stderr)
        return 1
    shutil.copy(AGAIN / "fig3.png", HERE.parents[1] / "docs/replication_fig3.png")
    print("\n".join(changes(measured)))
    return 0


def answers(name: str) -> str:
    """Return how much the answers and losses of both trainings differ."""
    first, again = HERE / "eval" / name, AGAIN / name
    refused = _both(first / REFUSED, again / REFUSED, ["set", "id"])
    # A row of one alone differs, too.
    other = int(refused["refused"].ne(refused["refused_again"]).fillna(True).sum())
    losses = _both(first / "losses.parquet", again / "losses.parquet", ["pair"])
    largest = (losses["loss"] - losses["loss_again"]).abs().max()
    return (
        f"{other} of {len(refused)} answers are refused in one training alone;"
        f" the loss of an answer differs by at most {largest:.2g} nats per token"
    )


def first_kernel(name: str) -> str:
    """Return how much the kernel of the first checkpoint differs, on both processors."""
    keys = ["observed", "updated"]
    step_0 = "kernel/step-00000000.parquet"
    both = _both(HERE / "ntk" / name / step_0, AGAIN / name / "ntk" / step_0, keys)
    largest = (both["norm_again"] / both["norm"] - 1).abs().max()
    return f"the norms of {len(both)} pairs at step 0 differ by at most {largest:.1g} of them"


def changes(measured: dict[str, Trajectory]) -> Iterator[str]:
    """Yield the mean similarities of each run at its first and last step, rows observed."""
    for name, run in measured.items():
        means = run.group_means()
        for step in (run.steps[0], run.steps[-1]):
            table = means[means["step"] == step].pivot(
                index="observed_group", columns="updated_group", values="similarity"
            )
            yield f"{name}, step {step}:\n{table.round(3).to_string()}"


def _both(first: Path, again: Path, keys: list[str]) -> pd.DataFrame:
    """Return the rows of both files side by side; each has its counterpart."""
    one, other = pd.read_parquet(first), pd.read_parquet(again)
    return one.merge(other, on=keys, suffixes=("", "_again"), validate="one_to_one", how="outer")


if __name__ == "__main__":
    sys.exit(main())
