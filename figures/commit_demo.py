r"""Make `figures/demo`, the small copy of the demo's measurements that is committed.

    ntkprobe demo
    for run in stl dcr-stl; do
      ntkprobe measure --ckpt-dir runs/demo/$run --prompts ntkprobe/tiny/measure.csv \
        --only activations --steps 0,250 --output-dir runs/demo/$run-ntk
      ntkprobe measure --ckpt-dir runs/demo/$run --prompts ntkprobe/tiny/measure.csv \
        --only influence --output-dir runs/demo/$run-ntk
    done
    python figures/commit_demo.py runs/demo

What no figure reads is left out: the tokens of the blocks, the parts of the kernel but those of the
first step between seemingly toxic and toxic prompts, most of the influence between the ends, and
the places of files on this machine. Norms are kept in float32 and activations in float16, which no
printed digit shows.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from ntkprobe.figures import find_runs
from ntkprobe.storage import write_json, write_table
from ntkprobe.trajectory import Trajectory

DEMO = Path(__file__).parent / "demo"
TOLD = ("schema_version", "versions", "prompts", "kernel", "refusal", "activations", "influence")


def main(runs: str) -> None:
    """Replace `figures/demo` by a small copy of the measurements in `runs`."""
    for name, run in find_runs([runs]).items():
        target = DEMO / f"{name}-ntk"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(run.folder / "refusal", target / "refusal")
        shutil.copy(run.folder / "prompts.parquet", target)
        write_json(target / "run.json", without_places(run, Path(runs)))
        for file in sorted((run.folder / "kernel").iterdir()):
            write_table(target / "kernel" / file.name, narrow(pd.read_parquet(file)))
        first = min((run.folder / "parts").iterdir())
        write_table(target / "parts" / first.name, narrow(across(run, pd.read_parquet(first))))
        shutil.copy(run.folder / "updated.parquet", target)
        for file in sorted((run.folder / "influence").iterdir()):
            write_table(target / "influence" / file.name, narrow(drawn(run, pd.read_parquet(file))))
        for step in run.activation_steps():
            keep_activations(run, step, target / "activations")


def without_places(run: Trajectory, runs: Path) -> dict[str, object]:
    """Return `run.json` with paths as they are below `runs/demo`, where `ntkprobe demo` writes."""
    base = run.settings["model"]["base"]
    if not base.startswith("package:"):
        base = str(Path("runs/demo") / Path(base).relative_to(runs.resolve()))
    measured = Path("runs/demo") / Path(run.settings["ckpt_dir"]).name
    told = {key: run.settings[key] for key in TOLD}
    return told | {"ckpt_dir": str(measured), "model": run.settings["model"] | {"base": base}}


def across(run: Trajectory, parts: pd.DataFrame) -> pd.DataFrame:
    """Return the rows between a seemingly toxic and a toxic prompt, in both directions."""
    group = run.prompts.set_index("prompt")["group"]
    ends = [parts[column].map(group) for column in ("observed", "updated")]
    either = [(a == "seemingly_toxic") & (b == "toxic") for a, b in (ends, ends[::-1])]
    return parts[either[0] | either[1]]


def drawn(run: Trajectory, influence: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that figures read: of one reduction, and between the ends fewer groups."""
    rows = influence[influence["target"] == "refusal_literal"]
    if rows["step"].iloc[0] in (run.steps[0], run.steps[-1]):
        return rows
    observed = rows["observed"].map(run.prompts.set_index("prompt")["group"])
    updated = rows["updated"].map(run.updated.set_index("updated")["group"])
    return rows[(observed == "seemingly_toxic") & (updated == "toxic")]


def narrow(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with numbers of half the width."""
    kinds = {"float64": "float32", "int64": "int32"}
    return table.astype({c: kinds[str(t)] for c, t in table.dtypes.items() if str(t) in kinds})


def keep_activations(run: Trajectory, step: int, folder: Path) -> None:
    """Write one step's activations in float16."""
    folder.mkdir(exist_ok=True)
    layers = {f"layer_{n}": x.astype(np.float16) for n, x in run.activations(step).items()}
    save_file(layers, folder / f"step-{step:08d}.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
