"""Does over-refusal fall without the refusals that push it most, or with the answers that help?

`python benchmarks/attribution_counterfactual.py` writes `attribution_counterfactual.md`, its raw
numbers beside it; what was trained is kept in `--output-dir`, so that it can be stopped. On the
embedded model, which is a constructed world: it shows the method at work and nothing about other
models. 350 of its normal pairs, its 200 refusals and 3 epochs; the settings of the preset `tiny`
apart from that (50 refusals as in `attribution.py` would leave 5 % of them two pairs, and the
preset's 1,400 pairs and 5 epochs were more than could be trained here: both set before any result).

One run, seed 0, is attributed: 15 seemingly toxic prompts are explained, by the sum over its
checkpoints. Every way below is then trained from the base with each seed, and over-refusal is that
of the 45 seemingly toxic prompts that were not explained, refusals of toxic prompts that of all 60.

*Left out*: the 5 % of the refusals that push the explained prompts most towards refusal, or as many
drawn at random, anew for each seed. *DCR*: nothing left out, from the refined base. *Added*: 25 of
STL-aug's pool, which are DCR's 250 seemingly toxic prompts with the base model's answers: those
whose step lowers log P(refuse) of the explained prompts most by the same sum (they are in no
training that is attributed), or as many drawn at random, anew for each seed. *Similar*: those
whose prompts are nearest to the explained ones by TF-IDF, which no hypothesis below is about: added
when all other ways but DCR had been seen, since random pairs do not know the explained prompts.

Hypotheses, written before the first run:

C1. Without the refusals that push most, over-refusal is lower than without random ones in 4 of 5
    seeds; DCR lowers it further.
C2. With the pairs added that our scores say help most, over-refusal is lower than with random ones:
    the 95 % interval of the paired difference over seeds (Student's t) lies below 0, and toxic
    prompts are refused at most 5 points less often than with random ones. If so, and only then, the
    choice becomes a recipe of training.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t
from support.attribution_world import BASE, World, in_order, measured, trained, whole_run
from support.tables import machine, table, write
from tqdm import tqdm

import ntkprobe as ntk
from ntkprobe import tiny
from ntkprobe.attribution import rank_candidates
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.demo import refine
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.storage import replacing
from ntkprobe.training.data import Pair, read_pairs
from ntkprobe.triggers.answers import compliant, generated
from ntkprobe.triggers.extraction import Trigger

SHARE_LEFT_OUT = 0.05
PAIRS_ADDED = 25
MEASURES = {
    "over_refusal": "seemingly toxic refused, %",
    "toxic_refusal": "toxic refused, %",
    "log_probability": "log P(refuse), seemingly toxic",
}


def main() -> None:
    """Train every way with every seed, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output-dir", default="runs/counterfactual")
    parser.add_argument("--prompts", type=int, default=15, help="explained")
    parser.add_argument("--general", type=int, default=350)
    parser.add_argument("--safe", type=int, default=200)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    world = World.of(options)
    world = replace(world, harmful=PromptSet.from_file(tiny.measure_path()).in_group("toxic"))
    ways = _ways(world)
    tasks = [(seed, way) for seed in range(options.seeds) for way in ways]
    tasks.sort(key=lambda task: task[1] == "DCR")  # the longest come last
    rows = []
    for seed, way in tqdm(tasks, desc="trainings"):
        rows.append(_row(world, seed, way, ways[way]))
        frame = pd.DataFrame(rows)
        folder = Path(__file__).with_name("attribution_results")
        folder.mkdir(exist_ok=True)
        frame.to_csv(folder / "counterfactual.csv", index=False, float_format="%.6g")
        page = write(__file__, *_sections(world, frame, options.seeds))
    print(page)


# Ways

Change = Callable[[int], tuple[list[Pair], list[Pair], str]]
"""The refusals that are kept, the pairs that are added and the model to begin with, by seed."""


def _ways(world: World) -> dict[str, Change]:
    """Return what each way changes."""
    run = whole_run(world, steps=False)
    scored = cache(lambda: _pushing(world, run))  # only where a training is still to be done
    pool = _pool(world)
    helping = cache(lambda: _helping(world, run, pool))
    safe, n = list(world.safe), max(1, round(SHARE_LEFT_OUT * len(world.safe)))

    def without(out: Sequence[int]) -> list[Pair]:
        return [pair for row, pair in enumerate(safe) if row not in set(out)]

    def drawn(seed: int, stream: int, size: int, number: int) -> list[int]:
        return np.random.default_rng([stream, seed]).choice(size, number, replace=False).tolist()

    def added(rows: Sequence[int]) -> list[Pair]:
        return [pool[row] for row in rows]

    def refined(seed: int) -> str:
        return str(refine(world.folder / f"dcr-{seed}", seed))

    return {
        "nothing changed": lambda seed: (safe, [], BASE),
        "the pushing 5 % left out": lambda seed: (without(scored()[:n]), [], BASE),
        "a random 5 % left out": lambda seed: (without(drawn(seed, 11, len(safe), n)), [], BASE),
        "helping pairs added": lambda seed: (safe, helping()[:PAIRS_ADDED], BASE),
        "random pairs added": lambda seed: (
            safe,
            added(drawn(seed, 13, len(pool), PAIRS_ADDED)),
            BASE,
        ),
        "similar pairs added": lambda seed: (
            safe,
            added(_similar(world, pool)[:PAIRS_ADDED]),
            BASE,
        ),
        "DCR": lambda seed: (safe, [], refined(seed)),
    }


def _pushing(world: World, run: Path) -> list[int]:
    """Return the refusals, those that push most first."""
    found = ntk.attribute(run, prompts=world.explained, over="checkpoints")
    assert found is not None
    scores = in_order(world, found).mean(0)[len(world.general) :]
    return np.argsort(-scores).tolist()


def _pool(world: World) -> list[Pair]:
    """Return DCR's seemingly toxic prompts with the base model's answers."""
    file = world.folder / "pool.jsonl"
    if not file.is_file():
        asked = PromptSet.from_file(tiny.dcr_path()).in_group("seemingly_toxic")
        made = generated(
            load_model(BASE),
            load_tokenizer(BASE),
            [Trigger(prompt.text, "", 1.0) for prompt in asked],
            template="chat",
            max_new_tokens=32,
        )
        rows = [{"prompt": each.text, "response": each.response} for each in compliant(made)[0]]
        with replacing(file) as hidden:
            hidden.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_pairs(file)


def _helping(world: World, run: Path, pool: list[Pair]) -> list[Pair]:
    """Return the pool's pairs, those that lower log P(refuse) most first."""
    found = rank_candidates(run, prompts=world.explained, candidates=pool, model=BASE)
    assert found is not None  # one worker has all blocks
    return [Pair(*texts) for texts in zip(found["prompt"], found["response"], strict=True)]


def _similar(world: World, pool: list[Pair]) -> list[int]:
    """Return the pool's pairs, those nearest to the explained prompts by TF-IDF first."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [pair.prompt for pair in pool]
    vectors = TfidfVectorizer().fit(texts)
    asked = vectors.transform([prompt.text for prompt in world.explained])
    return np.argsort(-(asked @ vectors.transform(texts).T).toarray().mean(0)).tolist()


def _row(world: World, seed: int, way: str, change: Change) -> dict[str, object]:
    """Return what one training comes to; trained if not known yet."""
    prompts = PromptSet((*world.others, *world.harmful))
    name = f"{way.replace(' %', '').replace(' ', '-')}-{seed}"

    def train() -> tuple[str, Path]:
        safe, added, start = change(seed)
        return start, trained(world, name, [*world.general, *safe], seed, start, added)

    found = measured(world, name, prompts, train)
    refuses, size = np.array(found["refuses"]), len(world.others)
    return {
        "way": way,
        "seed": seed,
        "over_refusal": 100 * refuses[:size].mean(),
        "toxic_refusal": 100 * refuses[size:].mean(),
        "log_probability": np.mean(found["log_probability"][:size]),
    }


# Report


def _sections(world: World, frame: pd.DataFrame, seeds: int) -> list[str]:
    """Return the page."""
    ways = frame["way"].drop_duplicates().tolist()
    rows = [
        [way, *(_interval(_values(frame, way, measure)) for measure in MEASURES)] for way in ways
    ]
    pairs = [
        ("the pushing 5 % left out", "a random 5 % left out"),
        ("helping pairs added", "random pairs added"),
        ("helping pairs added", "similar pairs added"),
        ("DCR", "the pushing 5 % left out"),
        ("DCR", "helping pairs added"),
    ]
    differences = [
        [
            f"{a} − {b}",
            *(_interval(_differences(frame, a, b, measure)) for measure in MEASURES),
            _lower(_differences(frame, a, b, "over_refusal")),
        ]
        for a, b in pairs
        if {a, b} <= set(ways)
    ]
    return [
        "# Without the refusals that push, with the answers that help",
        f"{len(world.general)} normal pairs and {len(world.safe)} refusals, {world.epochs:g} "
        f"epochs; {len(world.explained)} seemingly toxic prompts explained, {len(world.others)} "
        f"others and {len(world.harmful)} toxic ones measured (greedy answers of 12 tokens, "
        f"XSTest's filter); {machine()}; by `python benchmarks/attribution_counterfactual.py "
        f"--seeds {seeds}`. The embedded model is a constructed world.",
        "Means over seeds with 95 % intervals (Student's t), and the number of seeds. The pairs "
        "that push and that help were chosen once, by the scores of one run; random ones are drawn "
        "anew for each seed.",
        table(["", *MEASURES.values()], rows),
        "Differences, paired by seed; the last column says in how many seeds over-refusal is "
        "lower by the first.",
        table(["", *MEASURES.values(), "lower in"], differences),
        *_verdicts(frame),
    ]


def _verdicts(frame: pd.DataFrame) -> list[str]:
    """Return what came of the hypotheses, as far as all their seeds are there."""
    out = _differences(frame, "the pushing 5 % left out", "a random 5 % left out", "over_refusal")
    fell, kept = (
        _differences(frame, "helping pairs added", "random pairs added", measure)
        for measure in ("over_refusal", "toxic_refusal")
    )
    if min(len(out), len(fell)) < 5:
        return []
    half = t.ppf(0.975, len(fell) - 1) * fell.std(ddof=1) / len(fell) ** 0.5
    first = (out < 0).sum() >= 4
    second = fell.mean() + half < 0 and kept.mean() >= -5
    return [
        f"C1 (left out, lower in 4 of 5 seeds): {'holds' if first else 'does not hold'}; "
        f"C2 (added, lower, toxic refusals kept): {'holds' if second else 'does not hold'}."
    ]


def _values(frame: pd.DataFrame, way: str, measure: str) -> pd.Series:
    """Return a way's numbers by seed."""
    return frame[frame["way"] == way].set_index("seed")[measure]


def _differences(frame: pd.DataFrame, way: str, other: str, measure: str) -> pd.Series:
    """Return the differences of two ways, in the seeds that have both."""
    return (_values(frame, way, measure) - _values(frame, other, measure)).dropna()


def _interval(values: pd.Series) -> str:
    """Return a mean with its 95 % interval."""
    mean, n = values.mean(), len(values)
    if n < 2:
        return f"{mean:.1f} [{n}]"
    half = t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5
    return f"{mean:.1f} ({mean - half:.1f} to {mean + half:.1f}) [{n}]"


def _lower(differences: pd.Series) -> str:
    return f"{(differences < 0).sum()} of {len(differences)} seeds"


if __name__ == "__main__":
    main()
