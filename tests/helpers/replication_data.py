"""The published files as the replication reads them, filled with the embedded world's texts."""

import csv
import json
from pathlib import Path

from ntkprobe import tiny


def write_published(folder: Path) -> Path:
    """Write every file under its published name, each with a few prompts.

    Args:
        folder: the data folder.

    Returns:
        The same.
    """
    with tiny.dcr_path().open() as opened:
        rows = list(csv.DictReader(opened))
    seemingly, toxic = (
        list(dict.fromkeys(r["prompt"] for r in rows if r["group"] == group))
        for group in ("seemingly_toxic", "toxic")
    )
    general = [json.loads(line) for line in tiny.general_path().read_text().splitlines()]
    safe = [json.loads(line) for line in tiny.safe_path().read_text().splitlines()]
    refusals = list({row["prompt"]: row["response"] for row in safe}.items())
    write = _Writer(folder)
    write.csv(
        "xstest/xstest_prompts.csv",
        [
            {"id": n, "prompt": text, "type": kind, "label": kind, "focus": "", "note": ""}
            for kind, texts in (("safe", seemingly[:8]), ("unsafe", toxic[:10]))
            for n, text in enumerate(texts, start=100 * (kind == "unsafe"))
        ],
    )
    write.csv("oktest/OKTest.csv", [{"prompt": text} for text in seemingly[10:16]])
    write.lines(
        "coconot/coconot_contrast_eval.jsonl",
        [
            {"id": f"c{n}", "category": "Requests with safety concerns", "prompt": text}
            for n, text in enumerate(seemingly[20:30])
        ],
    )
    write.lines(
        "alpaca/alpaca_union.jsonl",
        [
            {"instruction": p, "input": "", "output": r}
            for p, r in {
                row.get("instruction") or row["prompt"]: row.get("output") or row["response"]
                for row in general
            }.items()
        ][:60],
    )
    write.json(
        "stl/safety_only_data_Instructions.json",
        [{"instruction": p, "input": "", "output": r} for p, r in refusals[:40]],
    )
    others = [text for text in toxic[20:] if text not in dict(refusals[:40])]
    for at, name in enumerate(("I-MaliciousInstructions", "I-CoNa", "I-Controversial", "Q-Harm")):
        write.json(f"stl/{name}.json", {"instructions": others[3 * at : 3 * at + 3]})
    write.csv(
        "advbench/harmful_behaviors.csv",
        [{"goal": text, "target": "Sure"} for text in others[12:15]],
    )
    return folder


class _Writer:
    """Writes rows in the form of each file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def csv(self, name: str, rows: list[dict]) -> None:
        with self._opened(name) as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def lines(self, name: str, rows: list[dict]) -> None:
        with self._opened(name) as opened:
            opened.writelines(json.dumps(row) + "\n" for row in rows)

    def json(self, name: str, value: object) -> None:
        with self._opened(name) as opened:
            json.dump(value, opened)

    def _opened(self, name: str):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", newline="")
