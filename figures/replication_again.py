"""Compare a run of the replication with the same run trained again on another processor.

`python figures/replication_again.py` reads `refused.parquet` and `losses.parquet` of every run in
`figures/replication/again`, and of the same run in `figures/replication/eval`, and prints for how
many answers the refusal filter says otherwise, and by how much the losses differ. No model is
loaded.
"""

from pathlib import Path

import pandas as pd

from ntkprobe.replication.results import REFUSED

HERE = Path(__file__).with_name("replication")


def main() -> None:
    """Print a line for each run."""
    for again in sorted((HERE / "again").iterdir()):
        first = HERE / "eval" / again.name
        refused = _both(first / REFUSED, again / REFUSED, ["set", "id"])
        # A row of one alone differs, too.
        other = int(refused["refused"].ne(refused["refused_again"]).fillna(True).sum())
        losses = _both(first / "losses.parquet", again / "losses.parquet", ["pair"])
        largest = (losses["loss"] - losses["loss_again"]).abs().max()
        print(
            f"{again.name}: {other} of {len(refused)} answers are refused in one training alone;"
            f" the loss of an answer differs by at most {largest:.2g} nats per token"
        )


def _both(first: Path, again: Path, keys: list[str]) -> pd.DataFrame:
    """Return the rows of both files side by side; each has its counterpart."""
    one, other = pd.read_parquet(first), pd.read_parquet(again)
    return one.merge(other, on=keys, suffixes=("", "_again"), validate="one_to_one", how="outer")


if __name__ == "__main__":
    main()
