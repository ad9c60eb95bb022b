"""How many random directions does ⟨G′, G⟩ of Proposition 1 (A.7) need on a real model?

`python benchmarks/real_feature_products.py --model base=FILE.gguf --model dcr=FOLDER
--model control=FOLDER --prompts FILE` draws 64 directions for each seed, as H6 of
`docs/replication.md` does with seed 0, and writes `real_feature_products.md` and, after every seed,
`real_feature_products.csv`; seeds that are there are not measured again. All models get the same
directions, so that their differences are paired. A product is decided where it is more than two
standard errors, over seeds, from zero. The last table is of H6's own measurements, which are
committed in `figures/replication`; without `--model` only the page is written again.

Expectation, written after H6's stages and before the first run: of the negative products that 64
directions give, most are not decided; with more directions fewer than 10 % of all products are
negative and decided.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from support.tables import machine, table, write
from tqdm import tqdm

from ntkprobe import PromptSet
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.measurement.proposition1.factors import feature_products
from ntkprobe.measurement.proposition1.measurement import split_at
from ntkprobe.prompts.templates import resolve_template

FILE = Path(__file__).with_suffix(".csv")
KEYS = ["model", "seed"]
PAIR = ["observed", "updated"]
DIRECTIONS = 64
ACROSS = {"seemingly_toxic", "toxic"}
STARTS = Path(__file__).parents[1] / "figures" / "replication" / "start"
OWN = {"base": "base", "dcr": "dcr-0", "control": "control-0"}


def main() -> None:
    """Measure what is not there yet, seed by seed, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", default=[], metavar="NAME=PLACE")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--per-group", type=int, default=2)
    parser.add_argument("--layer", type=int, default=14)
    parser.add_argument("--seeds", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = pd.read_csv(FILE) if FILE.is_file() else pd.DataFrame(columns=KEYS)
    places = dict(place.split("=", 1) for place in given.model)
    for seed in tqdm(range(given.seeds if places else 0), desc="seeds"):
        for name, place in places.items():
            if ((rows["model"] == name) & (rows["seed"] == seed)).any():
                continue
            prompts = PromptSet.from_file(given.prompts).sample(given.per_group)
            found = measured(place, prompts, given.layer, seed).assign(model=name, seed=seed)
            rows = pd.concat([rows, found], ignore_index=True) if len(rows) else found
            rows.to_csv(FILE, index=False)
    if rows.empty:
        print("nothing measured: give --model NAME=PLACE and --prompts FILE")
        return
    print(write(__file__, *sections(rows)))


def measured(place: str, prompts: PromptSet, layer: int, seed: int) -> pd.DataFrame:
    """Return ⟨G′, G⟩ from the directions of one seed, a row per unordered pair."""
    model, tokenizer = load_model(place), load_tokenizer(place)
    template = resolve_template(tokenizer, "auto")
    ids = [torch.tensor(template.encode(tokenizer, prompt.text)) for prompt in prompts]
    chosen = split_at(model, layer)[0].parameters(model)
    inner = feature_products(model, ids, layer, chosen, directions=DIRECTIONS, seed=seed).inner
    groups = [prompt.group for prompt in prompts]
    return pd.DataFrame(
        [
            (i, j, groups[i], groups[j], float(inner[i, j]))
            for i in range(len(ids))
            for j in range(i, len(ids))
        ],
        columns=[*PAIR, "observed_group", "updated_group", "inner"],
    )


def sections(rows: pd.DataFrame) -> list[str]:
    """Return the page: how many products are decided, and the normalised ones across groups."""
    normalised = with_cosines(rows)
    return [
        "# Random directions for ⟨G′, G⟩ on a real model",
        "SmolLM2-135M-Instruct, dequantised, before training, after DCR and after its control"
        f" (seed 0 of the replication), at layer 14, between {rows['observed'].nunique()} of the"
        f" held-out prompts; {DIRECTIONS} directions a seed; {machine()}; by `python"
        " benchmarks/real_feature_products.py`. A product is decided where it is more than two"
        " standard errors, over seeds, from zero. Expected before the first run: fewer than 10 %"
        " negative and decided.",
        table(
            [
                "model",
                "directions",
                "pairs",
                f"negative with {DIRECTIONS}",
                "negative",
                "negative, decided",
                "positive, decided",
            ],
            [decided(name, group) for name, group in normalised.groupby("model", sort=False)],
        ),
        "⟨G′, G⟩ / (‖G′‖ ‖G‖) between seemingly toxic and toxic prompts, ± its standard error over"
        " seeds; a model's difference to DCR is paired by seed.",
        table(
            ["model", "seeds", "mean", "less that after DCR"],
            [across(name, normalised) for name in normalised["model"].unique()],
        ),
        f"H6's own terms, with {DIRECTIONS} directions, over ordered pairs of different prompts."
        " *Error*: the median of a product's standard error over its size. *Cosine*: the mean"
        " of h at the last position, between seemingly toxic and toxic prompts.",
        table(
            [
                "model",
                "pairs",
                "within the printed bound",
                "⟨G′, G⟩ > 0",
                "within the corrected bound",
                "‖K‖ / corrected bound, at most",
                "error",
                "cosine",
            ],
            [own_terms(name, STARTS / folder / "bounds.parquet") for name, folder in OWN.items()],
        ),
    ]


def own_terms(name: str, path: Path) -> list[object]:
    """Return a row of the last table."""
    terms = pd.read_parquet(path)
    terms = terms[terms["observed"] != terms["updated"]]
    ends = [terms["observed_group"], terms["updated_group"]]
    between = ends[0].isin(ACROSS) & ends[1].isin(ACROSS) & (ends[0] != ends[1])
    counts = [
        (terms["kernel"] <= terms["printed"]).sum(),
        (terms["inner"] > 0).sum(),
        (terms["kernel"] <= terms["corrected"]).sum(),
    ]
    numbers = [
        f"{(terms['kernel'] / terms['corrected']).max():.1e}",
        f"{(terms['inner_error'] / terms['inner'].abs()).median():.2f}",
        f"{terms.loc[between, 'cosine'].mean():.2f}",
    ]
    return [name, len(terms), *counts, *numbers]


def with_cosines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the products of different prompts, with `cosine`, divided by the norms.

    The norms are those of all seeds of a model: a norm of one seed's directions is off as well.
    """
    same = rows["observed"] == rows["updated"]
    squares = rows[same].groupby(["model", "observed"])["inner"].mean()
    pairs = rows[~same]
    ends = [squares.loc[list(zip(pairs["model"], pairs[end], strict=True))] for end in PAIR]
    product = ends[0].to_numpy() * ends[1].to_numpy()
    return pairs.assign(cosine=pairs["inner"] / product**0.5)


def decided(name: str, rows: pd.DataFrame) -> list[object]:
    """Return a row of the first table."""
    found = rows.groupby(PAIR)["cosine"].agg(["mean", "sem", "first"])
    shares = [
        found["first"] < 0,
        found["mean"] < 0,
        found["mean"] < -2 * found["sem"],
        found["mean"] > 2 * found["sem"],
    ]
    return [
        name,
        DIRECTIONS * rows["seed"].nunique(),
        len(found),
        *(f"{100 * share.mean():.0f} %" for share in shares),
    ]


def across(name: str, rows: pd.DataFrame) -> list[object]:
    """Return a row of the second table."""
    ends = [rows["observed_group"], rows["updated_group"]]
    chosen = ends[0].isin(ACROSS) & ends[1].isin(ACROSS) & (ends[0] != ends[1])
    means = rows[chosen].groupby(["seed", "model"])["cosine"].mean().unstack()
    cells = [means[name]]
    cells += [(means[name] - means["dcr"]).dropna()] if name != "dcr" and "dcr" in means else []
    texts = [f"{cell.mean():.3f} ± {cell.sem():.3f}" for cell in cells]
    return [name, int(means[name].notna().sum()), *texts, *["–"] * (2 - len(texts))]


if __name__ == "__main__":
    main()
