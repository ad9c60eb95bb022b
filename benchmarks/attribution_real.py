"""One deletion on a real model: what a run of SFT becomes without the refusals that push most.

`python benchmarks/attribution_real.py --model FILE.gguf --run RUN --prompts FILE` writes
`attribution_real.md`, its raw numbers beside it; trainings and scores are kept in `--output-dir`.
RUN is a run of `ntkprobe train sft` on that model (as `choice-0.0015` of `ntkprobe replicate` is),
PROMPTS has groups (such as that folder's `along.jsonl`).

10 of the seemingly toxic prompts are explained, by the sum over checkpoints of the run; `--steps`
chooses some (a prompt takes about 18 s a checkpoint on one core: both numbers were chosen by that).
From the base, with the run's settings, seed and pairs, two models are trained: without the 5 % of
refusals that push the explained prompts most towards refusal, and without as many drawn at random.
They are compared on the seemingly toxic prompts that were not explained, and on all others.

Hypotheses, written before the first run; of the embedded model, neither held in 4 of 5 seeds:

R1. Without the refusals that push most, the mean log P(refuse) of the seemingly toxic prompts that
    were not explained is lower than without random ones: the 95 % interval of the paired difference
    (bootstrap over prompts) lies below 0.
R2. Fewer of them are refused: likewise.

One seed, one draw: the intervals are of the prompts, and say nothing about other trainings.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import bootstrap
from support.tables import machine, table, write

import ntkprobe as ntk
from ntkprobe.attribution import AttributionSettings, rank_candidates
from ntkprobe.attribution.training_run import TrainingRun
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.checkpoints.adapters import adapted
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.storage import replacing
from ntkprobe.training.data import Pair
from ntkprobe.training.sft import train_sft
from ntkprobe.watcher.choices import parse_steps

SHARE = 0.05
EXPLAINED = 10
NUMBERS = Path(__file__).with_name("attribution_results") / "real.csv"
WHOLE, PUSHING, RANDOM = "nothing", "the pushing 5 %", "a random 5 %"


def main() -> None:
    """Score, train, measure, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--steps", help="of the checkpoints summed over; all, if not given")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/attribution-real"))
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    prompts = PromptSet.from_file(options.prompts)
    explained = prompts.in_group("seemingly_toxic").sample(EXPLAINED, 0)
    run = TrainingRun(options.run)
    safe = [pair for source, pair in run.texts if source == "safe"]
    pushing = _pushing(options, explained, safe)
    n = round(SHARE * len(safe))
    order = np.random.default_rng(17).permutation(len(safe))
    left_out = {
        WHOLE: [],
        PUSHING: pushing[:n],
        RANDOM: [safe[row] for row in order[:n]],
    }
    frames = [_measured(options, run, way, out, prompts) for way, out in left_out.items()]
    known = {prompt.text for prompt in explained}
    frame = pd.concat(frames).assign(
        explained=lambda rows: [prompts[row].text in known for row in rows["prompt"]]
    )
    frame.to_csv(NUMBERS, index=False, float_format="%.6g")
    print(write(__file__, *_sections(options, frame, left_out, len(safe))))


def _pushing(options: argparse.Namespace, explained: PromptSet, safe: list[Pair]) -> list[Pair]:
    """Return the refusals, those that push the explained prompts most towards refusal first."""
    file = options.output_dir / "scores.parquet"
    if not file.is_file():
        found = rank_candidates(
            options.run,
            prompts=explained,
            candidates=safe,
            settings=AttributionSettings(batch_size=8),
            steps=parse_steps(options.steps) if options.steps else (),
            model=options.model,
            output_dir=options.output_dir / "scores",
            progress=True,
        )
        assert found is not None  # one worker has all blocks
        with replacing(file) as hidden:
            found.to_parquet(hidden)
    scores = pd.read_parquet(file).sort_values("change", ascending=False)
    return [Pair(*row) for row in zip(scores["prompt"], scores["response"], strict=True)]


def _measured(
    options: argparse.Namespace, run: TrainingRun, way: str, out: list[Pair], prompts: PromptSet
) -> pd.DataFrame:
    """Return log P(refuse) and whether it refuses, by prompt; trained if not known yet."""
    name = way.replace(" %", "").replace(" ", "-")
    file = options.output_dir / f"{name}.json"
    if not file.is_file():
        adapter = options.run / "final" if way == WHOLE else _trained(options, run, name, out)
        with adapted(load_model(options.model), adapter) as model:
            found = ntk.measure_refusal(
                model, load_tokenizer(options.model), prompts, max_new_tokens=20
            )
        rows = found.frame()
        rows = rows[rows["reduction"] == "literal"].sort_values("prompt")
        kept = {c: rows[c].astype(float).tolist() for c in ("log_probability", "refuses")}
        with replacing(file) as hidden:
            hidden.write_text(json.dumps(kept))
    return pd.DataFrame(
        {
            "left_out": way,
            "prompt": range(len(prompts)),  # its row: texts of others' data are not copied
            "group": [p.group for p in prompts],
            **json.loads(file.read_text()),
        }
    )


def _trained(options: argparse.Namespace, run: TrainingRun, name: str, out: list[Pair]) -> Path:
    """Train from the base on the run's pairs without some, and return the adapter."""
    general = [pair for source, pair in run.texts if source == "general"]
    safe = [pair for source, pair in run.texts if source == "safe" and pair not in set(out)]
    old = run.config
    share = (len(general) + len(safe)) / len(run.texts)
    config = replace(
        old,
        output_dir=str(options.output_dir / name),
        n_general=len(general),
        n_safe=len(safe),
        max_steps=math.ceil(old.max_steps * share) if old.max_steps > 0 else -1,
        save_at=None,
        save_strategy="steps",
        save_steps=20,
        save_total_limit=1,
    )
    return train_sft(options.model, general, safe, config)


def _sections(
    options: argparse.Namespace, frame: pd.DataFrame, left_out: dict[str, list[Pair]], safe: int
) -> list[str]:
    """Return the page."""
    parts = {
        "seemingly toxic, explained": frame["explained"],
        "seemingly toxic, others": (frame["group"] == "seemingly_toxic") & ~frame["explained"],
        "toxic": frame["group"] == "toxic",
        "normal": frame["group"] == "normal",
    }
    rows, differences = [], []
    for name, chosen in parts.items():
        part = frame[chosen].set_index("prompt")
        by_way = {way: part[part["left_out"] == way] for way in left_out}
        for way, found in by_way.items():
            rows.append(
                [
                    name,
                    way,
                    len(found),
                    f"{100 * found['refuses'].mean():.0f}",
                    f"{found['log_probability'].mean():.2f}",
                ]
            )
        first, second = by_way[PUSHING], by_way[RANDOM]
        differences.append(
            [
                name,
                _interval(100 * (first["refuses"] - second["refuses"])),
                _interval(first["log_probability"] - second["log_probability"]),
            ]
        )
    measures = ["refused, %", "mean log P(refuse)"]
    verdicts = [
        f"{name} ({what}): {_verdict(differences[1][column])}"
        for name, what, column in (("R1", "log P(refuse)", 2), ("R2", "refused", 1))
    ]
    return [
        "# Without the refusals that push most: a real model, one deletion",
        f"{Path(options.model).name}; {safe} refusals, of which {len(left_out[PUSHING])} are left "
        f"out, those that push {EXPLAINED} prompts most by the sum over "
        f"{f'the checkpoints {options.steps}' if options.steps else 'all checkpoints'} of "
        f"{options.run.name}; one seed; greedy answers of 20 tokens, XSTest's prefixes; "
        f"{machine()}; by `python benchmarks/attribution_real.py`.",
        table(["prompts", "left out", "n", *measures], rows),
        f"Difference: without {PUSHING} − without {RANDOM}, with 95 % intervals (bootstrap over "
        "prompts).",
        table(["prompts", *measures], differences),
        "On the seemingly toxic prompts that were not explained: " + "; ".join(verdicts) + ".",
        "By the scores, the refusals left out carry "
        f"{_share(options, left_out[PUSHING]):.0%} of what all refusals push together. The "
        "two trainings differ in more than that: in the order of the pairs and in the dropout.",
    ]


def _share(options: argparse.Namespace, out: list[Pair]) -> float:
    """Return the share of some refusals in the sum of all scores."""
    changes = pd.read_parquet(options.output_dir / "scores.parquet")["change"].sort_values()
    return float(changes.tail(len(out)).sum() / changes.sum())


def _interval(values: pd.Series) -> str:
    """Return a mean with its bootstrap interval over prompts."""
    numbers = values.to_numpy()
    if np.ptp(numbers) == 0:
        return f"{numbers[0]:.2f} ({numbers[0]:.2f} to {numbers[0]:.2f})"
    found = bootstrap((numbers,), np.mean, method="percentile", rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return f"{numbers.mean():.2f} ({low:.2f} to {high:.2f})"


def _verdict(interval: str) -> str:
    """Return what an interval says of a fall: it lies below 0, above it, or holds it."""
    low, high = (float(end) for end in interval.split("(")[1].rstrip(")").split(" to "))
    return "holds" if high < 0 else "does not hold" if low > 0 else "undecided, the interval has 0"


if __name__ == "__main__":
    main()
