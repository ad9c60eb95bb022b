"""How much of what safety SFT does to P_refuse, Eq. 2's first order explains, step by step.

`python benchmarks/dynamics.py` writes `dynamics.md`; some 20 minutes on one core. The demo's
alignment (preset `tiny`) is trained with `StepCallback`, without and with DCR before it; then
AdamW's steps are replayed one after another. Before each, J(x′) Δθ predicts the change of log
P_refuse; after it that is measured. Both are kept in `--output-dir`: what is there is not computed
again.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from support.tables import machine, table, write
from torch import Tensor, nn
from tqdm import tqdm

import ntkprobe as ntk
from ntkprobe import tiny
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.checkpoints.adapters import adapted
from ntkprobe.demo import refine
from ntkprobe.measurement.influence import apply_step, predict_step, read_steps
from ntkprobe.measurement.influence.updates import Direction
from ntkprobe.presets.settings import preset_settings
from ntkprobe.prompts.phrases import phrase_set
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.refusal import refusal_log_probabilities
from ntkprobe.storage import write_table
from ntkprobe.training.data import read_pairs
from ntkprobe.training.sft import SFTConfig, train_sft

BASE = str(tiny.model_path())
WINDOWS = (1, 10, 50, 250)
WAYS = ("STL", "DCR → STL")
GROUPS = ("normal", "seemingly_toxic", "toxic")
PHASES = {"1 – 10": (1, 10), "11 – 20": (11, 20), "21 – 250": (21, 250)}


def main() -> None:
    """Train, replay both runs, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/dynamics"))
    parser.add_argument("--per-group", type=int, default=8)
    parser.add_argument("--way", nargs="+", default=WAYS, choices=WAYS)
    given = parser.parse_args()
    rows, ends = {}, {}
    for name in given.way:
        start = BASE if name == "STL" else str(refine(given.output_dir / "dcr", 0))
        run = given.output_dir / ("stl" if name == "STL" else "dcr-stl")
        align(start, run)
        rows[name] = pd.concat(followed(start, run, given.per_group, window) for window in WINDOWS)
        ends[name] = at_the_end(rows[name])
    count = next(iter(rows.values()))["prompt"].nunique()
    print(
        write(
            __file__,
            "# Does the first order explain how refusals grow?",
            "The demo (a constructed world; LoRA, AdamW, 250 steps, seed 0), without and with "
            f"DCR before safety SFT, {count} prompts that no stage has seen. Predicted: Σ J(x′; "
            "θ_t) Δθ_t over AdamW's recorded steps, for log P_refuse (A.5, literal). Measured: "
            "log P_refuse after less before. The derivative is taken anew every so many steps: "
            "where it is at every step, this is Eq. 2 with the optimiser's own step in the "
            "place of −η ∇L; at 250 it is taken once at the beginning, as if the kernel never "
            "changed. Slope: of measured on predicted over prompts; 1 is calibrated. "
            f"{machine()}; by `{command()}`.",
            "## The whole run, per prompt",
            table(
                (
                    "run",
                    "derivative every",
                    "Pearson",
                    "Spearman",
                    "slope",
                    "mean predicted",
                    "mean measured",
                    "root mean square error",
                ),
                [(name, *line) for name, end in ends.items() for line in whole_run(end)],
            ),
            f"## The same by group, derivative every {steps_of(1)}",
            "Mean change of log P_refuse (nats) over the run.",
            table(
                ("run", "group", "predicted", "measured", "Pearson within", "slope within"),
                [(name, *line) for name, end in ends.items() for line in by_group(end)],
            ),
            f"## Piece by piece, derivative every {steps_of(1)}",
            "Over all prompts and the pieces within the steps named: predicted and measured change "
            "from one derivative to the next. "
            "Unexplained: Σ (measured − predicted)² / Σ measured².",
            table(
                ("run", "steps", "Pearson", "Spearman", "slope", "unexplained"),
                [(name, *line) for name, frame in rows.items() for line in by_phase(frame)],
            ),
        )
    )


def command() -> str:
    """Return how this was called."""
    return shlex.join(["python", "benchmarks/dynamics.py", *sys.argv[1:]])


def steps_of(window: int) -> str:
    """Return after how many steps the derivative is taken anew, in words."""
    return "step" if window == 1 else f"{window} steps"


def align(start: str, folder: Path) -> None:
    """Train the demo's alignment of a model, recording every step."""
    settings = preset_settings("tiny", "sft") | {"output_dir": str(folder), "seed": 0}
    del settings["model"]
    pairs = (read_pairs(path) for path in (tiny.general_path(), tiny.safe_path()))
    train_sft(start, *pairs, SFTConfig(**settings), callbacks=[ntk.StepCallback()])


def followed(start: str, run: Path, per_group: int, window: int) -> pd.DataFrame:
    """Return a row for each piece of a run and prompt, from its file where there is one."""
    kept = run.with_name(f"{run.name}-dynamics-{per_group}-{window}.parquet")
    if not kept.exists():
        write_table(kept, pd.DataFrame(replayed(start, run, per_group, window)))
    return pd.read_parquet(kept)


def replayed(start: str, run: Path, per_group: int, window: int) -> Iterator[dict[str, object]]:
    """Yield a row for each piece of `window` steps and prompt: predicted and measured change."""
    prompts = ntk.PromptSet.from_file(tiny.measure_path()).sample(per_group)
    steps = [step for _, step in read_steps(run.with_name(f"{run.name}-steps"))]
    pieces = [total(steps[first : first + window]) for first in range(0, len(steps), window)]
    tokenizer = load_tokenizer(BASE)
    found = []
    with adapted(load_model(start), run / "checkpoint-0", merge=False) as model:
        for piece in tqdm(pieces, desc=f"{run.name}, every {steps_of(window)}"):
            found.append(
                predict_step(model, tokenizer, observed=prompts, step=piece, mode="reverse")
            )
            apply_step(model, piece)
        after = refusals(model, tokenizer, prompts)
    with adapted(load_model(start), run / "final", merge=False) as model:
        gap = float((refusals(model, tokenizer, prompts) - after).abs().max())
    assert gap < 1e-2, f"the steps do not lead to the trained adapter: log P_refuse off by {gap}"
    levels = [*(each.before["literal"] for each in found), after]
    for number, prediction in enumerate(found):
        measured = levels[number + 1] - levels[number]
        for row, prompt in enumerate(prompts):
            yield {
                "window": window,
                "step": number * window + 1,
                "prompt": row,
                "group": prompt.group,
                "predicted": float(prediction.refusal[row]),
                "measured": float(measured[row]),
            }


def total(steps: list[Direction]) -> Direction:
    """Return what some steps change together."""
    return {name: torch.stack([step[name] for step in steps]).sum(0) for name in steps[0]}


def refusals(model: nn.Module, tokenizer: object, prompts: ntk.PromptSet) -> Tensor:
    """Return log P_refuse of every prompt."""
    template = resolve_template(tokenizer, "auto")
    ids = [tuple(template.encode(tokenizer, prompt, None)) for prompt in prompts]
    return refusal_log_probabilities(
        model, tokenizer, ids, list(phrase_set("paper31")), template=template, batch_size=32
    )


def at_the_end(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what was predicted and measured over the whole run, by window and prompt."""
    return (
        rows.groupby(["window", "prompt", "group"])[["predicted", "measured"]].sum().reset_index()
    )


def agreement(rows: pd.DataFrame) -> tuple[str, str, str]:
    """Return Pearson's and Spearman's correlation, and the slope of measured on predicted."""
    predicted, measured = rows["predicted"], rows["measured"]
    slope = np.polyfit(predicted, measured, 1)[0]
    both = (predicted.corr(measured, method=how) for how in ("pearson", "spearman"))
    return (*(f"{value:.2f}" for value in both), f"{slope:.2f}")  # type: ignore[return-value]


def whole_run(end: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Yield a line for each number of steps after which the derivative is taken anew."""
    for window in sorted(end["window"].unique()):
        rows = end[end["window"] == window]
        error = float(((rows["predicted"] - rows["measured"]) ** 2).mean() ** 0.5)
        means = (f"{rows[column].mean():+.2f}" for column in ("predicted", "measured"))
        yield (steps_of(window), *agreement(rows), *means, f"{error:.2f}")


def by_group(end: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Yield a line for each group of prompts."""
    for group in GROUPS:
        rows = end[(end["window"] == end["window"].min()) & (end["group"] == group)]
        pearson, _, slope = agreement(rows)
        means = (f"{rows[column].mean():+.2f}" for column in ("predicted", "measured"))
        yield (group, *means, pearson, slope)


def by_phase(rows: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Yield a line for each phase of training."""
    for name, (first, last) in PHASES.items():
        some = rows[(rows["window"] == rows["window"].min()) & rows["step"].between(first, last)]
        left = ((some["predicted"] - some["measured"]) ** 2).sum() / (some["measured"] ** 2).sum()
        yield (name, *agreement(some), f"{left:.1%}")


if __name__ == "__main__":
    main()
