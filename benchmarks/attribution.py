"""Does attribution say what happens without some training pairs? Retraining tells.

`python benchmarks/attribution.py` writes `attribution.md`, with its figure, and the raw numbers
into `attribution_results/`; what was trained is kept in `--output-dir` and not trained again, so
that it can be stopped and given more halves later. The embedded model, which is a constructed
world, at the settings of the preset `tiny` with `--general`, `--safe` and `--epochs` in place of
its own; a LoRA adapter moves. `attribution_peers.py` makes the scores in between, of ours and of
other packages; `attribution_counterfactual.py` leaves pairs out on purpose.

*Datamodelling.* The model is trained on random halves of the training pairs, with two seeds each. A
method's scores of all pairs, of one run on all of them, predict log P(refuse) of a held-out prompt
by their sum over the half. The linear datamodelling score (LDS; Park et al. 2023, arXiv 2303.14186)
is the Spearman correlation of that with the mean over the two seeds, over the halves, averaged over
prompts. The noise ceiling is the root of the reliability of that mean, from the correlation of the
two seeds (Spearman-Brown): no method can expect more.

*Cost.* Processor time of the exact products of pairs with the gradients of the explained prompts,
at the final checkpoint, over that of a plain forward and backward pass of the same batches; and the
seconds a pair for more and more pairs.

Hypotheses, written before the first run:

H1. The sum over recorded steps has a higher LDS than the sum over checkpoints, and this a higher
    one than the final checkpoint alone.
H2. The sketch, at side 4 and 8 parts, loses less than 0.05 of the exact form's LDS.
H3. Each of ours has a higher LDS than TF-IDF similarity with the sign of the pair's source, and
    than that sign alone.
H5. The exact form costs at most 1.5 plain passes a pair, and the same for 100 pairs as for 1,600.
    (The cost is now measured to 20,000 pairs, which H5 is read to cover.)
H6. The sum over recorded steps has the highest LDS of all methods, the peers included, and
H7. the sum over checkpoints has a higher one than EK-FAC at a tenth of its processor time or less.

(H4 is about `attribution_counterfactual.py`, as C1 there. H6 and H7 were written while the halves
were being trained, before any score was compared with them.)
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from support.attribution_world import BASE, World, from_base, halves, measured, whole_run
from support.interleaved import interleaved
from support.tables import machine, table, write
from torch import nn
from tqdm import tqdm

from ntkprobe.attribution import AttributionSettings
from ntkprobe.attribution.observed import observe, pair_losses
from ntkprobe.attribution.products import PairGradients, products
from ntkprobe.attribution.training_run import TrainingRun
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.checkpoints.adapters import adapted
from ntkprobe.models.generation import length_batches
from ntkprobe.models.parameters import ParameterSelection, requiring_grad
from ntkprobe.storage import write_table

SEEDS = (0, 1)
RESULTS = Path(__file__).with_name("attribution_results")
SIZES = (100, 400, 2000, 6000, 20000)
TIMED_THRICE, TIMED_PLAIN = 400, 6000
OURS, FINAL, STEPS = "ours, checkpoints", "ours, final checkpoint", "ours, recorded steps"
SKETCH = "ours, checkpoints, sketch"
SIMPLE = ("TF-IDF similarity, sign of the source", "sign of the source alone")
EKFAC = "EK-FAC (kronfluence)"


def main() -> None:
    """Train, correlate what was scored, time, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    World.add_options(parser)
    parser.add_argument("--halves", type=int, default=60)
    parser.add_argument("--only", choices=["halves", "datamodelling", "cost"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = World.of(options)
    if options.only != "cost":
        real = retrained(world, options.halves)
        if options.only != "halves":
            datamodelling(world, real)
    if options.only in (None, "cost"):
        cost(world).to_csv(RESULTS / "cost.csv", index=False, float_format="%.6g")
    if options.only != "halves":
        print(write(__file__, *sections(world, options)))


# Datamodelling


def retrained(world: World, number: int) -> pd.DataFrame:
    """Return log P(refuse) of the explained prompts after training on each half with each seed."""
    rows = []
    chosen = halves(world, number)
    for half, seed in tqdm([(h, s) for h in range(number) for s in SEEDS], desc="halves"):
        pairs = [p for p, kept in zip(world.pairs, chosen[half], strict=True) if kept]
        name = f"half-{half:03d}-{seed}"
        values = measured(world, name, world.explained, from_base(world, name, pairs, seed))
        rows += [(half, seed, p, v) for p, v in enumerate(values["log_probability"])]
    return pd.DataFrame(rows, columns=["half", "seed", "prompt", "log_probability"])


def datamodelling(world: World, real: pd.DataFrame) -> None:
    """Write the raw numbers and the scores that `attribution_peers.py` left."""
    RESULTS.mkdir(exist_ok=True)
    real.to_csv(RESULTS / "halves.csv", index=False, float_format="%.6g")
    files = sorted((world.folder / "scores").glob("*.npy"))
    frames, costs = [], []
    for file in files:
        scores, about = np.load(file), json.loads(file.with_suffix(".json").read_text())
        prompts, pairs = np.indices(scores.shape)
        columns = {"prompt": prompts.ravel(), "pair": pairs.ravel(), "score": scores.ravel()}
        frames.append(pd.DataFrame({"method": about["method"], **columns}))
        costs.append(about)
    if frames:
        write_table(RESULTS / "scores.parquet", pd.concat(frames, ignore_index=True))
        pd.DataFrame(costs).to_csv(RESULTS / "seconds.csv", index=False, float_format="%.4g")


def lds(world: World) -> tuple[pd.DataFrame, float, int]:
    """Return LDS by method and prompt, the seeds' mean correlation, and the number of halves."""
    real = pd.read_csv(RESULTS / "halves.csv")
    number = real["half"].nunique()
    by_seed = real.pivot_table(index=["seed", "half"], columns="prompt", values="log_probability")
    each = [by_seed.loc[seed].to_numpy() for seed in SEEDS]
    members = np.array(halves(world, number), dtype=float)
    found = {}
    scores = pd.read_parquet(RESULTS / "scores.parquet")
    for method, rows in scores.groupby("method"):
        matrix = rows.pivot(index="prompt", columns="pair", values="score").to_numpy()
        found[method] = _correlations(members @ matrix.T, sum(each) / len(each))
    return pd.DataFrame(found), float(_correlations(*each).mean()), number


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the Spearman correlation over halves, for each prompt; 0 where one is constant."""
    pairs = zip(first.T, second.T, strict=True)
    return np.nan_to_num([spearmanr(a, b).statistic if np.ptp(a) else 0.0 for a, b in pairs])


def _bounds(values: np.ndarray) -> tuple[float, float]:
    """Return the mean's 95 % interval, by a bootstrap over prompts."""
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def _interval(values: np.ndarray) -> str:
    low, high = _bounds(values)
    return f"{low:.3f} to {high:.3f}"


# Report


def sections(world: World, options: argparse.Namespace) -> list[str]:
    """Return the page, of whatever numbers there are."""
    found = [
        "# Attribution against retraining",
        f"{len(world.general)} normal pairs and {len(world.safe)} refusals, {world.epochs:g} "
        f"epochs; {len(world.explained)} held-out seemingly toxic prompts explained; {machine()}; "
        f"by `python benchmarks/attribution.py --halves {options.halves}` and "
        "`attribution_peers.py`. The embedded model is a constructed world: nothing here is about "
        "another model.",
    ]
    if (RESULTS / "halves.csv").is_file() and (RESULTS / "scores.parquet").is_file():
        found += _datamodelling_section(world)
    if (RESULTS / "cost.csv").is_file():
        found += _cost_section(world)
    return found


def _datamodelling_section(world: World) -> list[str]:
    """Return the section about halves, and draw its figure."""
    frame, between, number = lds(world)
    seconds = pd.read_csv(RESULTS / "seconds.csv").set_index("method")["seconds"]
    ceiling = np.sqrt(max(0.0, 2 * between / (1 + between)))
    order = frame.mean().sort_values(ascending=False).index
    rows = [
        [
            name,
            f"{frame[name].mean():.3f}",
            _interval(frame[name].to_numpy()),
            _interval((frame[name] - frame[OURS]).to_numpy()) if name != OURS else "",
            f"{seconds[name]:.1f}",
            *(_ratio(seconds, name, other) for other in (OURS, EKFAC)),
        ]
        for name in order
    ]
    draw(frame, seconds, ceiling)
    failed = _failed(world)
    return [
        "## Linear datamodelling score",
        f"{number} random halves, two seeds each. Correlation of the two seeds {between:.3f}, "
        f"hence a noise ceiling of {ceiling:.3f}. Intervals are over prompts, those of the "
        f"difference to “{OURS}” paired by prompt. Seconds are processor time with one thread, "
        "from loading the model to the scores.",
        table(
            ["method", "LDS", "95 %", "difference, 95 %", "CPU s", "× ours", "× EK-FAC"],
            rows,
        ),
        "![LDS of every method, with its cost](attribution.png)",
        *_verdicts(frame.mean(), seconds),
        *failed,
    ]


def _verdicts(mean: pd.Series, seconds: pd.Series) -> list[str]:
    """Return what came of the hypotheses, by the means, as far as their methods have rows."""
    ours = [name for name in mean.index if str(name).startswith("ours")]
    tests = {
        "H1 (recorded steps above checkpoints above the final one)": (
            {STEPS, OURS, FINAL},
            lambda: mean[STEPS] > mean[OURS] > mean[FINAL],
        ),
        "H2 (the sketch loses less than 0.05)": (
            {SKETCH, OURS},
            lambda: mean[OURS] - mean[SKETCH] < 0.05,
        ),
        "H3 (each of ours above TF-IDF and the sign alone)": (
            set(SIMPLE),
            lambda: mean[ours].min() > mean[list(SIMPLE)].max(),
        ),
        "H6 (recorded steps the highest of all)": ({STEPS}, lambda: mean.idxmax() == STEPS),
        "H7 (checkpoints above EK-FAC, at a tenth of its time)": (
            {OURS, EKFAC},
            lambda: mean[OURS] > mean[EKFAC] and seconds[OURS] <= seconds[EKFAC] / 10,
        ),
    }
    said = [
        f"{what}: {'holds' if test() else 'does not hold'}"
        for what, (needed, test) in tests.items()
        if needed <= set(mean.index)
    ]
    return ["; ".join(said) + "."]


def _ratio(seconds: pd.Series, name: str, other: str) -> str:
    return f"{seconds[name] / seconds[other]:.2f}" if other in seconds else ""


def _failed(world: World) -> list[str]:
    """Return a paragraph on the packages that have no row."""
    files = sorted((world.folder / "scores").glob("*.failed.json"))
    told = [json.loads(file.read_text()) for file in files]
    lines = [f"{each['method']}: {each['why']}" for each in told]
    return ["No row: " + "; ".join(lines) + "."] if lines else []


def draw(frame: pd.DataFrame, seconds: pd.Series, ceiling: float) -> None:
    """Draw LDS with its interval over prompts, a line a method."""
    import matplotlib.pyplot as plt

    names = frame.mean().sort_values().index
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for place, name in enumerate(names):
        low, high = _bounds(frame[name].to_numpy())
        colour = "#0072b2" if str(name).startswith("ours") else "#888888"
        axes.plot([low, high], [place, place], color=colour, lw=1.5)
        axes.plot(frame[name].mean(), place, "o", color=colour)
    axes.axvline(ceiling, color="black", lw=0.8, ls="--")
    axes.axvline(0, color="black", lw=0.5)
    axes.set_yticks(range(len(names)), [f"{name}, {seconds[name]:.0f} s" for name in names], size=7)
    axes.set(xlabel="linear datamodelling score; dashed: noise ceiling")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150)
    plt.close(figure)


# Cost


def cost(world: World) -> pd.DataFrame:
    """Return seconds for more and more pairs, and those of plain passes."""
    run = TrainingRun(whole_run(world))
    adapter = run.checkpoints()[-1].checkpoint.path
    tokenizer, how = load_tokenizer(BASE), AttributionSettings()
    known = run.encoded(tokenizer)
    rows = []
    with adapted(load_model(BASE, how.load), adapter, merge=False) as model:
        chosen = ParameterSelection.parse("lora").parameters(model)
        observed = observe(world.explained, tokenizer, run.template(tokenizer), run.config, how)
        _, held = observed.held(model, chosen)
        for number in SIZES:
            pairs = (known * -(-number // len(known)))[:number]
            gradients = PairGradients(model, chosen, pairs, how.batch_size)
            blocks = [range(i, min(i + how.block, number)) for i in range(0, number, how.block)]
            ways = {
                "exact": partial(_exact, gradients, blocks, held),
                "plain": partial(_plain_passes, model, chosen, gradients, blocks),
            }
            if number > TIMED_PLAIN:
                del ways["plain"]
            seconds = interleaved(ways) if number <= TIMED_THRICE else _once(ways)
            rows.append({"pairs": number, **seconds, "bytes": 8 * len(world.explained) * number})
    return pd.DataFrame(rows)


def _once(ways: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Return the processor seconds of each way, run once."""
    seconds = {}
    for name, way in ways.items():
        start = process_time()
        way()
        seconds[name] = process_time() - start
    return seconds


def _exact(gradients: PairGradients, blocks: list[range], held: dict[str, Any]) -> None:
    for rows in blocks:
        products(gradients, list(rows), held)


def _plain_passes(
    model: nn.Module, chosen: dict[str, Any], pairs: PairGradients, blocks: list[range]
) -> None:
    """Run the same batches forward and backward, as a training step does."""
    with requiring_grad(model, chosen):
        for block in blocks:
            for rows in length_batches([pairs.ids[row] for row in block], pairs.batch_size):
                numbers = [block[row] for row in rows]
                given = ([pairs.ids[n] for n in numbers], [pairs.labels[n] for n in numbers])
                torch.autograd.grad(pair_losses(model, *given).sum(), list(chosen.values()))


def _cost_section(world: World) -> list[str]:
    """Return the section about seconds a pair, and draw its figure."""
    import matplotlib.pyplot as plt

    frame = pd.read_csv(RESULTS / "cost.csv")
    slope = np.polyfit(np.log(frame["pairs"]), np.log(frame["exact"]), 1)[0]
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for way, colour in (("exact", "#0072b2"), ("plain", "#999999")):
        axes.loglog(frame["pairs"], frame[way], "o-", color=colour, label=way)
    axes.set(xlabel="pairs", ylabel="processor seconds")
    axes.legend(frameon=False)
    figure.savefig(Path(__file__).with_name("attribution_cost.png"), dpi=150)
    plt.close(figure)
    rows = [
        [
            f"{row.pairs:,.0f}",
            f"{1e3 * row.exact / row.pairs:.2f}",
            "" if np.isnan(row.plain) else f"{row.exact / row.plain:.2f}",
            f"{row.bytes / row.pairs:.0f}",
        ]
        for row in frame.itertuples()
    ]
    return [
        "## Cost of the exact form",
        f"LoRA, products with {len(world.explained)} prompts' gradients, one checkpoint; processor "
        f"time, the two ways run in turn, medians of 3 (of more than {TIMED_THRICE} pairs, once; "
        f"plain passes of up to {TIMED_PLAIN:,}). The training set is repeated to make more pairs. "
        f"Seconds grow with the number of pairs to the power {slope:.3f} (1 is linear).",
        table(["pairs", "ms a pair", "× a plain forward and backward pass", "bytes a pair"], rows),
        "![seconds over the number of pairs](attribution_cost.png)",
        "H5 (at most 1.5 plain passes a pair): "
        + ("holds." if (frame["exact"] / frame["plain"]).max() <= 1.5 else "does not hold."),
    ]


if __name__ == "__main__":
    main()
