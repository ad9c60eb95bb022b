"""Both sides of Proposition 1 (A.7) on the demo's model, before and after DCR.

`python benchmarks/proposition.py` writes `proposition.md`; minutes on 2 cores. DCR is the demo's
(preset `tiny`, seed 0), read from `--output-dir` if it is there. Pairs are unordered, of different
prompts that no stage has seen.
"""

import argparse
from pathlib import Path

import pandas as pd
from support.tables import machine, table, write

import ntkprobe as ntk
from ntkprobe import tiny
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.demo import refine
from ntkprobe.measurement.proposition1 import BoundMeasurement
from ntkprobe.presets.settings import preset_settings

SIDES = {
    "printed: c ⟨G′, G⟩": ("kernel", "printed"),
    "corrected: c √(⟨G′, G′⟩ ⟨G, G⟩)": ("kernel", "corrected"),
    "each pair's own ‖J′‖ ‖G′‖ ‖G‖ ‖J‖": ("kernel", "local"),
    "step 2 (Eq. 4), all parameters": ("kernel_all", "step_2"),
}
GROUPS = ("normal", "seemingly_toxic", "toxic")


def main() -> None:
    """Measure both models, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--per-group", type=int, default=8)
    parser.add_argument("--directions", type=int, default=128)
    given = parser.parse_args()
    base = str(tiny.model_path())
    layer = int(preset_settings("tiny", "dcr")["layer"])
    prompts = ntk.PromptSet.from_file(tiny.measure_path()).sample(given.per_group)
    found = {
        name: ntk.measure_bounds(
            load_model(folder),
            load_tokenizer(base),
            prompts,
            layer=layer,
            directions=given.directions,
        )
        for name, folder in (
            ("before DCR", base),
            ("after DCR", str(refine(given.output_dir / "dcr", 0))),
        )
    }
    pairs = {name: measured.frame().query("observed < updated") for name, measured in found.items()}
    error = max(relative_error(measured) for measured in found.values())
    print(
        write(
            __file__,
            "# Proposition 1 in numbers",
            f"The demo's model (a constructed world) at layer ℓ = {layer}, {prompts.describe()}, "
            f"{len(pairs['before DCR'])} unordered pairs. θ is what DCR trains: blocks 1 to "
            f"{layer} (the embedding is tied to the head, hence tail). h is the layer's output at "
            "all positions, prompts aligned at their last. c and τ are the largest ‖J_g‖² and ‖H0‖ "
            "at the prompts measured: the least that A1 and A4 can mean. ‖K‖, ‖J_g‖ and ‖H0‖ are "
            f"exact and over all logits; ⟨G′, G⟩ is from {given.directions} random directions, "
            f"standard error at most {error:.1%} of ‖G′‖ ‖G‖. {machine()}; by "
            "`python benchmarks/proposition.py`.",
            "## Which bounds hold",
            "Looseness: right side over left, median over pairs. Spearman: of right side and left "
            "over pairs, whether a larger bound goes with a larger kernel.",
            table(
                ("model", "right side", "holds for", "negative", "looseness", "Spearman"),
                [
                    (name, side, *verdict(rows, *columns))
                    for name, rows in pairs.items()
                    for side, columns in SIDES.items()
                ],
            ),
            "## What goes with the kernel",
            "Spearman's rank correlation with ‖K‖ over pairs: of the cosine of h at the last "
            "position, which DCR's loss lowers, and of the cosine of G, ⟨G′, G⟩ / ‖G′‖ ‖G‖.",
            table(
                ("model", "cos h", "cos G"),
                [(name, *companions(rows)) for name, rows in pairs.items()],
            ),
            "## By groups",
            "Means over pairs; ‖K‖ and right sides in thousands.",
            table(
                ("model", "pairs", "cos h", "cos G", "‖K‖", "printed", "corrected"),
                [line for name, rows in pairs.items() for line in by_groups(name, rows)],
            ),
            "## Per prompt",
            "Means over prompts, and the largest, of which c and τ are made.",
            table(
                ("model", "‖J_g‖₂", "‖J_g‖_F", "‖G‖_F", "‖H0‖_F"),
                [(name, *per_prompt(measured)) for name, measured in found.items()],
            ),
        )
    )


def relative_error(measured: BoundMeasurement) -> float:
    """Return the largest standard error of ⟨G′, G⟩, relative to ‖G′‖ ‖G‖."""
    own = measured.inner.diagonal().sqrt()
    return float((measured.inner_error / own / own[:, None]).max())


def verdict(rows: pd.DataFrame, left: str, right: str) -> tuple[str, str, str, str]:
    """Return how often a bound holds, how often it is negative, its looseness, its correlation."""
    holds, negative = (rows[left] <= rows[right]).mean(), (rows[right] < 0).mean()
    ratio = (rows[right] / rows[left]).median()
    rank = rows[left].corr(rows[right], method="spearman")
    return f"{holds:.1%}", f"{negative:.1%}", f"{ratio:.3g}", f"{rank:.2f}"


def companions(rows: pd.DataFrame) -> list[str]:
    """Return how both cosines go with the kernel."""
    cosines = (rows["cosine"], rows["printed"] / rows["corrected"])
    return [f"{rows['kernel'].corr(each, method='spearman'):.2f}" for each in cosines]


def by_groups(name: str, rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return a line for each unordered pair of groups."""
    known = rows.assign(gradient_cosine=rows["printed"] / rows["corrected"])
    lines = []
    for i, one in enumerate(GROUPS):
        for other in GROUPS[i:]:
            groups = known[["observed_group", "updated_group"]].apply(frozenset, axis=1)
            mean = known[groups == frozenset((one, other))].mean(numeric_only=True)
            large = (mean[column] / 1000 for column in ("kernel", "printed", "corrected"))
            lines.append(
                (
                    name,
                    f"{one} – {other}",
                    f"{mean['cosine']:.2f}",
                    f"{mean['gradient_cosine']:.2f}",
                    *(f"{value:.3g}" for value in large),
                )
            )
    return lines


def per_prompt(measured: BoundMeasurement) -> list[str]:
    """Return mean and maximum of every norm."""
    rows = measured.prompt_frame().drop(columns=["prompt", "group"])
    return [f"{rows[column].mean():.3g} (at most {rows[column].max():.3g})" for column in rows]


if __name__ == "__main__":
    main()
