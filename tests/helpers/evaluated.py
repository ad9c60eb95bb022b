"""Evaluation folders with chosen verdicts, as `ntkprobe evaluate` lays them out."""

from pathlib import Path
from typing import Any

import pandas as pd

from ntkprobe.storage import write_json, write_table

SAID = {"c": "compliance", "r": "refusal", "p": "partial", "u": "undetermined"}
SAID |= {"s": "safe", "x": "unsafe", "d": "distanced", "i": "incoherent"}


def evaluate(folder: Path, sets: dict[str, Any], **run: Any) -> Path:
    """Write a folder and return it.

    `sets` has for each benchmark its `kinds` (a letter a prompt, s or x), and for each judge a
    letter a prompt; `pair` gives the ids of contrasts.
    """
    for name, about in sets.items():
        kinds = [SAID[letter] for letter in about["kinds"]]
        ids = [f"{name}-{row}" for row in range(len(kinds))]
        prompts = pd.DataFrame({"id": ids, "prompt": [f"Ask {i}?" for i in ids], "kind": kinds})
        prompts = prompts.assign(type="t", pair=about.get("pair", ""))
        write_table(folder / f"prompts/{name}.parquet", prompts)
        answers = pd.DataFrame({"id": ids, "answer": about.get("answers", ids)})
        write_table(folder / f"answers/{name}/batch-00000.parquet", answers)
        for judge, letters in about.items():
            if judge not in ("kinds", "pair", "answers"):
                said = [SAID[letter] for letter in letters]
                table = pd.DataFrame({"id": ids[: len(said)], "verdict": said, "detail": ""})
                write_table(folder / f"verdicts/{name}/{judge}.parquet", table)
    write_json(folder / "run.json", run)
    return folder
