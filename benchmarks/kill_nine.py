"""kill -9 while measuring, 50 times at random moments: what is on disk afterwards?

After every kill each file must be readable; at last the tables must equal, byte for byte, those of
a run that nobody disturbed, and no step may have been measured twice. Writes `kill_nine.md`.

    python benchmarks/kill_nine.py [--times 50]
"""

import argparse
import collections
import json
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fault_workers
import pandas as pd
from tiny_runs import lora_run

STEPS = tuple(range(10, 310, 10))


def main() -> None:
    """Run the trial and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as place:
        rows = trial(Path(place), times)
    table = pd.DataFrame(rows.items(), columns=["what", "count"])
    text = f"# kill -9 at random moments of `ntkprobe measure`\n\n{to_markdown(table)}\n"
    Path(__file__).with_suffix(".md").write_text(text)
    print(text)


def trial(root: Path, times: int) -> dict[str, int]:
    """Return what was found: kills, and files or steps that are not as they should be.

    Args:
        root: an empty folder.
        times: how often to kill; a run that was measured to its end is begun anew.
    """
    run, undisturbed = lora_run(root, STEPS), root / "undisturbed"
    fault_workers.measure(run, undisturbed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(fault_workers.PRELOADED)
    seconds = measured_in(context, run, root / "timed")
    chance, found, kills = random.Random(0), collections.Counter(), 0
    out = root / "killed-0"
    while kills < times:
        child = context.Process(target=fault_workers.measure, args=(run, out))
        child.start()
        child.join(chance.uniform(seconds / 20, seconds / 2))
        if child.is_alive():
            kills += 1
            child.kill()
        child.join()
        found["files that could not be read after a kill"] += unreadable(out)
        if child.exitcode == 0 or kills == times:
            found.update(finished(run, out, undisturbed))
            out = root / f"killed-{kills}"
    return {"kills of a live process": kills, **dict(found)}


def measured_in(context: multiprocessing.context.BaseContext, run: Path, out: Path) -> float:
    """Return the seconds that one undisturbed child takes."""
    begin = time.monotonic()
    child = context.Process(target=fault_workers.measure, args=(run, out))
    child.start()
    child.join()
    return time.monotonic() - begin


def finished(run: Path, out: Path, undisturbed: Path) -> dict[str, int]:
    """Return how a run ends that was killed again and again, and then left in peace."""
    before = len(list(out.glob("kernel/step-*.parquet")))
    fault_workers.measure(run, out)
    done = collections.Counter(e["step"] for e in events(out) if e["state"] == "done")
    tables = list(undisturbed.glob("*/step-*.parquet"))
    return {
        "runs of 31 steps finished in spite of them": 1,
        "steps that killed processes had measured": before,
        "tables that differ from the undisturbed run's": sum(
            p.read_bytes() != (out / p.relative_to(undisturbed)).read_bytes() for p in tables
        ),
        "steps measured twice": sum(count > 1 for count in done.values()),
        "pins left behind": len(list(out.rglob("*.safetensors"))),
        "hidden files left behind": len(list(out.rglob(".*.tmp"))),
    }


def unreadable(out: Path) -> int:
    """Return how many files under a visible name cannot be read."""
    bad = 0
    for path in out.rglob("[!.]*.parquet"):
        try:
            pd.read_parquet(path)
        except Exception:
            bad += 1
    return bad


def events(out: Path) -> list[dict]:
    """Return all events that are whole lines."""
    found = []
    for path in out.glob("events-*.jsonl"):
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def to_markdown(table: pd.DataFrame) -> str:
    """Return a Markdown table."""
    lines = [" | ".join(table.columns), " | ".join("---" for _ in table.columns)]
    lines += [" | ".join(map(str, row)) for row in table.itertuples(index=False)]
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    main()
