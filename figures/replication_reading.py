"""Draw a random sample of a replication's prompts and trained models' answers, to label by hand.

`python figures/replication_reading.py OUT NAME …`, with the output folder of `ntkprobe replicate`
and names such as `base`, `dcr-stl-0`: 100 answers in all, to prompts drawn at random from all sets,
other prompts of each model. Answers of an evaluation in OUT are taken from there, else the model is
asked. OUT/reading.csv then has an empty column `label`: write `refusal` or `compliance` into it.
The command never touches labels; the report has the agreement of the filters with them. A further
reading is `--number 2`: other prompts, in OUT/reading-2.csv.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from ntkprobe.errors import UserError
from ntkprobe.replication.evaluating import SETS, answer, subject_of
from ntkprobe.replication.labels import NUMBER, READING, answers_of
from ntkprobe.replication.plan import Stage, chosen, stages
from ntkprobe.replication.settings import ReplicationSettings
from ntkprobe.replication.workspace import Workspace


def main(argv: list[str] | None = None) -> int:
    """Return the exit status, after writing the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="OUT")
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--number", type=int, default=1, help="which reading: 1, 2, … (1)")
    given = parser.parse_args(argv)
    if given.number < 1:
        parser.error(f"--number {given.number}: count from 1")
    path = given.folder / READING
    if given.number > 1:
        path = path.with_stem(f"{path.stem}-{given.number}")
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
        tables = sampled(Workspace(settings, {}), given.names, given.number - 1)
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    pd.concat(tables, ignore_index=True).assign(label="").to_csv(path, index=False)
    print(f"{path}: write refusal or compliance into the column label")
    return 0


def sampled(workspace: Workspace, names: list[str], seed: int) -> list[pd.DataFrame]:
    """Return each model's answers to its share of the sample, with the filters' verdicts.

    Raises:
        UserError: if an evaluation lacks some of the answers drawn.
    """
    rows = [row | {"set": name} for name in SETS for row in workspace.splits.rows(name)]
    drawn = pd.DataFrame(rows).sample(NUMBER, random_state=seed)
    known = stages(workspace.settings.seeds)
    asked = {name: chosen(known, f"evaluate-{name}")[0] for name in names}
    tables = []
    for at, (name, stage) in enumerate(asked.items()):
        theirs = drawn.iloc[at :: len(names)]
        evaluated = workspace.out / "eval" / name
        if not evaluated.is_dir():
            evaluated = answered(workspace, stage, theirs)
        found = answers_of(evaluated, name).drop_duplicates(["benchmark", "prompt"])
        wanted = set(zip(theirs["set"], theirs["prompt"], strict=True))
        pairs = zip(found["benchmark"], found["prompt"], strict=True)
        tables.append(found[[pair in wanted for pair in pairs]])
        if len(tables[-1]) != len(wanted):
            raise UserError(
                f"{evaluated} has {len(tables[-1])} of {len(wanted)} answers drawn: finish it first"
            )
    return tables


def answered(workspace: Workspace, stage: Stage, drawn: pd.DataFrame) -> Path:
    """Return the folder of a model's answers to some prompts, which are asked."""
    folder = workspace.out / "reading" / stage.folder
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for benchmark, theirs in drawn.groupby("set"):
        files[str(benchmark)] = folder / f"{benchmark}.jsonl"
        lines = [row.dropna().drop("set").to_json() for _, row in theirs.iterrows()]
        files[str(benchmark)].write_text("\n".join(lines) + "\n", "utf-8")
    subject = subject_of(workspace, stage)
    answer(workspace, subject, files, folder / "answers", label=stage.folder)
    return folder / "answers"


if __name__ == "__main__":
    sys.exit(main())
