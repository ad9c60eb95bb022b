"""Let trained models answer a random sample of a replication's prompts, to be labelled by hand.

`python figures/replication_reading.py OUT NAME …`, with the output folder of `ntkprobe replicate`
and names such as `base`, `dcr-stl-0`: 100 answers in all, to prompts drawn at random from all sets,
other prompts of each model. OUT/reading.csv then has an empty column `label`: write `refusal` or
`compliance` into it. The same command leaves labels alone; the report has the agreement of the
filters with them.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from ntkprobe.errors import UserError
from ntkprobe.replication.evaluating import SETS, answer, subject_of
from ntkprobe.replication.labels import NUMBER, READING, answers_of
from ntkprobe.replication.plan import chosen, stages
from ntkprobe.replication.settings import ReplicationSettings
from ntkprobe.replication.workspace import Workspace


def main(argv: list[str] | None = None) -> int:
    """Return the exit status, after writing the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="OUT")
    parser.add_argument("names", nargs="+", metavar="NAME")
    given = parser.parse_args(argv)
    path = given.folder / READING
    if path.is_file():
        print(f"error: {path} is there already: label it, or move it away", file=sys.stderr)
        return 2
    try:
        record = json.loads((given.folder / "replication.json").read_text())
        settings = ReplicationSettings(
            model=record["model"],
            output_dir=given.folder,
            seeds=tuple(record["seeds"]),
            scale=record["compared"]["scale"],
        )
        tables = sampled(Workspace(settings, {}), given.names)
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    pd.concat(tables, ignore_index=True).assign(label="").to_csv(path, index=False)
    print(f"{path}: write refusal or compliance into the column label")
    return 0


def sampled(workspace: Workspace, names: list[str]) -> list[pd.DataFrame]:
    """Return each model's answers to its share of the sample, with the filters' verdicts."""
    rows = [row | {"set": name} for name in SETS for row in workspace.splits.rows(name)]
    drawn = pd.DataFrame(rows).sample(NUMBER, random_state=0)
    tables = []
    known = stages(workspace.settings.seeds)
    asked = {name: chosen(known, f"evaluate-{name}")[0] for name in names}
    for at, (name, stage) in enumerate(asked.items()):
        folder = workspace.out / "reading" / name
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for benchmark, theirs in drawn.iloc[at :: len(names)].groupby("set"):
            files[str(benchmark)] = folder / f"{benchmark}.jsonl"
            lines = [row.dropna().drop("set").to_json() for _, row in theirs.iterrows()]
            files[str(benchmark)].write_text("\n".join(lines) + "\n", "utf-8")
        subject = subject_of(workspace, stage)
        answer(workspace, subject, files, folder / "answers", label=name)
        tables.append(answers_of(folder / "answers", name))
    return tables


if __name__ == "__main__":
    sys.exit(main())
