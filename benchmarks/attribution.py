"""Does attribution say what happens without some training pairs? Retraining tells.

`python benchmarks/attribution.py` writes `attribution.md`; what was trained is kept in
`--output-dir` and not trained again, so that it can be stopped and given more halves later. The
embedded model, the settings of the preset `tiny` with `--general`, `--safe` and `--epochs` in place
of its own; a LoRA adapter moves.

*Datamodelling.* The model is trained on random halves of the training pairs, with two seeds each. A
method's scores of all pairs, of one run on all of them, predict log P(refuse) of a held-out prompt
by their sum over the half. The linear datamodelling score (LDS; Park et al. 2023, arXiv 2303.14186)
is the Spearman correlation of that with the mean over the two seeds, over the halves, averaged over
prompts. The noise ceiling is the root of the reliability of that mean, from the correlation of the
two seeds (Spearman-Brown): no method can expect more.

*Counterfactual.* Some seemingly toxic prompts are explained; the refusals that push these most
towards refusal, 5 % of them, are left out, and as many drawn at random, and the model is trained
anew. Over-refusal is that of the others. Beside it, DCR with nothing left out.

*Cost.* Processor time of the exact products of pairs with the gradients of the explained prompts,
at the final checkpoint, over that of a plain forward and backward pass of the same batches; and the
seconds a pair for more and more pairs.

Hypotheses, written before the first run:

H1. The sum over recorded steps has a higher LDS than the sum over checkpoints, and this a higher
    one than the final checkpoint alone.
H2. The sketch, at side 4 and 8 parts, loses less than 0.05 of the exact form's LDS.
H3. Each of ours has a higher LDS than TF-IDF similarity with the sign of the pair's source, and
    than that sign alone.
H4. Without the refusals that push most, over-refusal is lower than without random ones in 4 of 5
    seeds; DCR lowers it further.
H5. The exact form costs at most 1.5 plain passes a pair, and the same for 100 pairs as for 1,600.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from support.interleaved import interleaved
from support.tables import machine, table, write
from torch import nn
from tqdm import tqdm

import ntkprobe as ntk
from ntkprobe import tiny
from ntkprobe.attribution import AttributionSettings
from ntkprobe.attribution.observed import observe, pair_losses
from ntkprobe.attribution.products import PairGradients, products
from ntkprobe.attribution.training_run import TrainingRun
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.checkpoints.adapters import adapted
from ntkprobe.demo import refine
from ntkprobe.models.generation import length_batches
from ntkprobe.models.parameters import ParameterSelection, requiring_grad
from ntkprobe.presets.settings import preset_settings
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.storage import write_json
from ntkprobe.training.data import Pair, draw, read_pairs
from ntkprobe.training.sft import SFTConfig, train_sft
from ntkprobe.training.steps import StepCallback

BASE = str(tiny.model_path())
SEEDS = (0, 1)
DROPPED = 0.05


@dataclass(frozen=True)
class World:
    """What everything is trained and measured on.

    Attributes:
        folder: where runs and numbers are kept.
        general: all normal pairs.
        safe: all refusals.
        epochs: of every training.
        explained: prompts whose refusals are explained.
        others: seemingly toxic prompts that are explained nowhere.
        harmful: toxic prompts.
    """

    folder: Path
    general: tuple[Pair, ...]
    safe: tuple[Pair, ...]
    epochs: float
    explained: PromptSet
    others: PromptSet
    harmful: PromptSet

    @classmethod
    def of(cls, options: argparse.Namespace) -> "World":
        """Draw pairs and prompts."""
        normal, refused = (
            list(dict.fromkeys(read_pairs(path)))
            for path in (tiny.general_path(), tiny.safe_path())
        )
        general = draw(normal, options.general, "attribution/general")
        safe = draw(refused, options.safe, "attribution/safe")
        prompts = PromptSet.from_file(tiny.measure_path())
        explained = prompts.in_group("seemingly_toxic").sample(options.prompts, 0)
        known = {prompt.text for prompt in explained}
        others = tuple(p for p in prompts.in_group("seemingly_toxic") if p.text not in known)
        harmful = prompts.in_group("toxic").sample(options.prompts, 0)
        folder = Path(options.output_dir)
        pairs = (tuple(general), tuple(safe))
        return cls(folder, *pairs, options.epochs, explained, PromptSet(others), harmful)

    @property
    def pairs(self) -> list[Pair]:
        """All pairs, those of a run's data in another order."""
        return [*self.general, *self.safe]


def main() -> None:
    """Train, attribute, correlate, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output-dir", default="attribution-runs")
    parser.add_argument("--halves", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=15, help="explained, and harmful ones")
    parser.add_argument("--general", type=int, default=350)
    parser.add_argument("--safe", type=int, default=50)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--seeds", type=int, default=5, help="of the counterfactual")
    parser.add_argument("--only", choices=["datamodelling", "counterfactual", "cost"])
    options = parser.parse_args()
    world = World.of(options)
    sections = [
        "# Attribution against retraining",
        f"{len(world.general)} normal pairs and {len(world.safe)} refusals, {world.epochs:g} "
        f"epochs; {len(world.explained)} held-out seemingly toxic prompts explained; {machine()}; "
        f"by `python benchmarks/attribution.py --general {options.general} --safe {options.safe} "
        f"--epochs {options.epochs:g} --prompts {options.prompts} --halves {options.halves} "
        f"--seeds {options.seeds}`.",
    ]
    if options.only in (None, "datamodelling"):
        sections += datamodelling(world, options.halves)
    if options.only in (None, "counterfactual"):
        sections += counterfactual(world, options.seeds)
    if options.only in (None, "cost"):
        sections += cost(world)
    print(write(__file__, *sections))


# Retraining


def trained(world: World, name: str, pairs: Sequence[Pair], seed: int, start: str = BASE) -> Path:
    """Return the adapter that a training on some of the pairs leaves."""
    kept = set(pairs)
    general, safe = ([p for p in part if p in kept] for part in (world.general, world.safe))
    config = _config(world, world.folder / name, seed, save_strategy="no")
    config.n_general, config.n_safe = len(general), len(safe)
    return train_sft(start, general, safe, config)


def _config(world: World, folder: Path, seed: int, **changes: Any) -> SFTConfig:
    """Return the preset's settings for the world's sizes."""
    settings = preset_settings("tiny", "sft") | {
        "output_dir": str(folder),
        "seed": seed,
        "num_train_epochs": world.epochs,
        "n_general": len(world.general),
        "n_safe": len(world.safe),
        "disable_tqdm": True,
        "use_cpu": True,
    }
    del settings["model"], settings["save_at"]
    return SFTConfig(**{**settings, **changes})


def whole_run(world: World) -> Path:
    """Return the run on all pairs that is attributed, with checkpoints and recorded steps."""
    steps = -(-len(world.pairs) // 32) * int(world.epochs)
    marks = sorted({round(steps * share) for share in (0, 0.05, 0.1, 0.2, 0.4, 0.7, 1)})
    config = _config(world, world.folder / "whole", 0, save_at=marks)
    train_sft(BASE, world.general, world.safe, config, callbacks=[StepCallback()])
    return world.folder / "whole"


def measured(
    world: World, name: str, prompts: PromptSet, train: Callable[[], tuple[str, Path]]
) -> dict[str, list[float]]:
    """Return log P(refuse) and whether it refuses, for each prompt; trained if not known yet."""
    path = world.folder / "measured" / f"{name}.json"
    if path.is_file():
        return json.loads(path.read_text())
    start, adapter = train()
    with adapted(load_model(start), adapter) as model:
        found = ntk.measure_refusal(model, load_tokenizer(BASE), prompts, max_new_tokens=12)
    rows = found.frame()
    rows = rows[rows["reduction"] == "literal"].sort_values("prompt")
    values = {n: rows[n].astype(float).tolist() for n in ("log_probability", "refuses")}
    write_json(path, values)
    return values


# Datamodelling


def halves(world: World, number: int) -> list[np.ndarray]:
    """Return which pairs are in each half, `[pairs]` booleans."""
    n = len(world.pairs)
    found = []
    for half in range(number):
        order = np.random.default_rng([7, half]).permutation(n)
        found.append(np.isin(np.arange(n), order[: n // 2]))
    return found


def datamodelling(world: World, number: int) -> list[str]:
    """Return the section about halves."""
    chosen = halves(world, number)
    real = np.empty((len(SEEDS), number, len(world.explained)))
    for half, seed in tqdm([(h, s) for h in range(number) for s in SEEDS], desc="halves"):
        pairs = [p for p, kept in zip(world.pairs, chosen[half], strict=True) if kept]
        name = f"half-{half:03d}-{seed}"
        values = measured(world, name, world.explained, _from_base(world, name, pairs, seed))
        real[seed, half] = values["log_probability"]
    run = whole_run(world)
    members = np.array(chosen, dtype=float)
    rows = []
    for name, score in methods(world, run):
        start = process_time()
        scores = score()
        seconds = process_time() - start
        each = _correlations(members @ scores.T, real.mean(0))
        low, high = np.percentile(_bootstrap(each), [2.5, 97.5])
        rows.append([name, f"{each.mean():.3f}", f"{low:.3f} to {high:.3f}", f"{seconds:.1f}"])
    between = _correlations(real[0], real[1]).mean()
    ceiling = np.sqrt(max(0.0, 2 * between / (1 + between)))
    return [
        "## Linear datamodelling score",
        f"{number} random halves, two seeds each. Correlation of the two seeds {between:.3f}, "
        f"hence a noise ceiling of {ceiling:.3f}. Intervals over prompts. Peers' packages (TRAK, "
        "dattri, kronfluence, bergson) have no row yet.",
        table(["method", "LDS", "95 %", "CPU s"], rows),
    ]


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the Spearman correlation over halves, for each prompt; 0 where one is constant."""
    pairs = zip(first.T, second.T, strict=True)
    return np.nan_to_num([spearmanr(a, b).statistic if np.ptp(a) else 0.0 for a, b in pairs])


def _bootstrap(values: np.ndarray) -> np.ndarray:
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    return values[draws].mean(1)


def methods(world: World, run: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Yield each method's name and what computes its scores, `[prompts, pairs]`."""

    def ours(**options: Any) -> Callable[[], np.ndarray]:
        return lambda: _in_order(world, ntk.attribute(run, prompts=world.explained, **options))

    yield "ours, recorded steps", ours(over="steps")
    yield "ours, checkpoints (TracIn's sum)", ours(over="checkpoints")
    yield "ours, checkpoints, mean loss of a pair", ours(over="checkpoints", loss="mean")
    yield "ours, checkpoints, sketch", ours(over="checkpoints", estimator="sketch")
    yield "gradient dot product, final checkpoint", ours(over="final")
    yield "TF-IDF similarity, sign of the source", lambda: _similarity(world) * _signs(world)
    yield "sign of the source alone", lambda: _signs(world) * np.ones((len(world.explained), 1))


def _in_order(world: World, found: Any) -> np.ndarray:
    """Return the changes with the pairs in the order of the world's."""
    texts = list(zip(found.pairs["prompt"], found.pairs["response"], strict=True))
    places = {text: place for place, text in enumerate(texts)}
    order = [places[pair.prompt, pair.response] for pair in world.pairs]
    return found.changes[:, order]


def _signs(world: World) -> np.ndarray:
    """Return +1 for refusals and −1 for normal pairs."""
    return np.array([-1.0] * len(world.general) + [1.0] * len(world.safe))


def _similarity(world: World) -> np.ndarray:
    """Return the cosine of TF-IDF vectors of prompts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer().fit([pair.prompt for pair in world.pairs])
    asked = vectors.transform([prompt.text for prompt in world.explained])
    return (asked @ vectors.transform([pair.prompt for pair in world.pairs]).T).toarray()


# Counterfactual


def counterfactual(world: World, seeds: int) -> list[str]:
    """Return the section about what is left out."""
    run = whole_run(world)
    scores = _in_order(world, ntk.attribute(run, prompts=world.explained, over="checkpoints"))
    refusals = scores.mean(0)[len(world.general) :]
    count = max(1, round(DROPPED * len(world.safe)))
    worst = set(np.argsort(-refusals)[:count].tolist())
    prompts = PromptSet((*world.others, *world.harmful))
    ways = ("nothing left out", "the pushing 5 % left out", "a random 5 % left out", "DCR")
    rates: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for seed in tqdm(range(seeds), desc="seeds"):
        drawn = np.random.default_rng([11, seed]).choice(len(world.safe), count, replace=False)
        for place, (way, out) in enumerate(
            zip(ways, (set(), worst, set(drawn), set()), strict=True)
        ):
            name = f"without-{place}-{seed}"
            kept = [p for row, p in enumerate(world.safe) if row not in out]
            found = measured(world, name, prompts, _trainer(world, name, kept, seed, way))
            refuses = np.array(found["refuses"])
            size = len(world.others)
            rates[way].append((refuses[:size].mean(), refuses[size:].mean()))
    rows = [
        [
            way,
            *(
                f"{100 * np.mean(part):.1f} ± {100 * np.std(part, ddof=int(seeds > 1)):.1f}"
                for part in zip(*each, strict=True)
            ),
        ]
        for way, each in rates.items()
    ]
    header = ["", "seemingly toxic refused, %", "toxic refused, %"]
    return [
        "## What happens without them",
        f"{count} of {len(world.safe)} refusals left out; {len(world.others)} other seemingly "
        f"toxic and {len(world.harmful)} toxic prompts; mean and standard deviation of {seeds} "
        "seeds.",
        table(header, rows),
    ]


def _from_base(
    world: World, name: str, pairs: Sequence[Pair], seed: int
) -> Callable[[], tuple[str, Path]]:
    """Return what trains the base on some pairs."""
    return lambda: (BASE, trained(world, name, pairs, seed))


def _trainer(
    world: World, name: str, kept: Sequence[Pair], seed: int, way: str
) -> Callable[[], tuple[str, Path]]:
    """Return what trains one way."""

    def train() -> tuple[str, Path]:
        start = str(refine(world.folder / f"dcr-{seed}", seed)) if way == "DCR" else BASE
        return start, trained(world, name, [*world.general, *kept], seed, start)

    return train


# Cost


def cost(world: World) -> list[str]:
    """Return the section about seconds a pair."""
    run = TrainingRun(whole_run(world))
    adapter = run.checkpoints()[-1].checkpoint.path
    tokenizer, how = load_tokenizer(BASE), AttributionSettings()
    known = run.encoded(tokenizer)
    rows = []
    with adapted(load_model(BASE, how.load), adapter, merge=False) as model:
        chosen = ParameterSelection.parse("lora").parameters(model)
        observed = observe(world.explained, tokenizer, run.template(tokenizer), run.config, how)
        _, held = observed.held(model, chosen)
        for number in (100, 400, 1600):
            pairs = (known * -(-number // len(known)))[:number]
            gradients = PairGradients(model, chosen, pairs, how.batch_size)
            ways = {
                "exact": partial(products, gradients, range(number), held),
                "plain": partial(_plain_passes, model, chosen, gradients),
            }
            seconds = interleaved(ways)
            ratio = seconds["exact"] / seconds["plain"]
            rows.append([number, f"{1e3 * seconds['exact'] / number:.2f}", f"{ratio:.2f}"])
    return [
        "## Cost",
        f"LoRA, products with {len(world.explained)} prompts' gradients, {how.batch_size} pairs in "
        "a batch; medians of 3 interleaved runs, processor time. On disk "
        f"{8 * len(world.explained)} bytes a pair and checkpoint.",
        table(["pairs", "ms a pair", "× a plain forward and backward pass"], rows),
    ]


def _plain_passes(model: nn.Module, chosen: dict[str, Any], pairs: PairGradients) -> None:
    """Run the same batches forward and backward, as a training step does."""
    with requiring_grad(model, chosen):
        for rows in length_batches(pairs.ids, pairs.batch_size):
            given = ([pairs.ids[row] for row in rows], [pairs.labels[row] for row in rows])
            torch.autograd.grad(pair_losses(model, *given).sum(), list(chosen.values()))


if __name__ == "__main__":
    main()
