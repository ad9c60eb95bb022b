"""A measurement folder and an evaluation of a real model's size, with numbers made up by a rule."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from ntkprobe.storage import write_json, write_table

GROUPS = ("normal", "seemingly_toxic", "toxic")


def write_run(
    folder: Path, *, per_group: int = 25, steps: int = 25, layers: int = 24, pairs: int = 200
) -> Path:
    """Write a run: kernel by layer, refusals of 4 times as many prompts, tokens, influence.

    Args:
        folder: where to.
        per_group: prompts of each group in the kernel.
        steps: how many.
        layers: of the model, each with attention, MLP and norms.
        pairs: training pairs whose influence is kept.

    Returns:
        The folder.
    """
    generator = np.random.default_rng(0)
    prompts = _prompts(per_group)
    write_json(folder / "run.json", {"schema_version": 1, "ckpt_dir": "RUN"})
    write_table(folder / "prompts.parquet", prompts)
    chosen = prompts.loc[prompts["in_kernel"], "prompt"].to_numpy()
    for number in range(steps):
        step = 20 * number
        name = f"step-{step:08d}.parquet"
        ratio = np.clip(generator.normal(0.4, 0.15, (len(chosen), len(chosen))), 0.01, 1)
        np.fill_diagonal(ratio, 1)
        observed, updated = (axis.ravel() for axis in np.meshgrid(chosen, chosen, indexing="ij"))
        kernel = pd.DataFrame({"step": step, "observed": observed, "updated": updated})
        write_table(folder / "kernel" / name, kernel.assign(norm=7 * ratio.ravel()))
        write_table(folder / "parts" / name, _parts(kernel, layers, generator))
        write_table(folder / "refusal" / name, _refusal(prompts, step, number / steps, generator))
        write_table(folder / "tokens" / name, _tokens(chosen, step, generator))
        write_table(folder / "influence" / name, _influence(chosen, step, pairs, generator))
    texts = [
        f"Training question number {number}: how would one do that?" for number in range(pairs)
    ]
    updated = pd.DataFrame({"updated": range(pairs), "id": None, "group": "toxic", "text": texts})
    write_table(folder / "updated.parquet", updated.assign(response="I cannot help with that."))
    return folder


def write_evaluation(folder: Path, answers: int = 700, words: int = 150) -> Path:
    """Write an evaluation with so many long answers and two judges; a third of them refuse."""
    ids = [str(number) for number in range(answers)]
    prompts = pd.DataFrame({"id": ids, "prompt": [f"Question {i} of a benchmark?" for i in ids]})
    write_table(folder / "prompts/own.parquet", prompts.assign(kind="safe", type="", pair=""))
    texts = [f"{'I cannot help. ' if int(i) % 3 == 0 else ''}{'some words ' * words}" for i in ids]
    answered = pd.DataFrame({"id": ids, "answer": texts})
    write_table(folder / "answers/own/batch-00000.parquet", answered)
    for judge, every in (("xstest_prefixes", 3), ("other", 4)):
        said = ["refusal" if int(i) % every == 0 else "compliance" for i in ids]
        verdicts = pd.DataFrame({"id": ids, "verdict": said, "detail": ""})
        write_table(folder / f"verdicts/own/{judge}.parquet", verdicts)
    (folder / "run.json").write_text(json.dumps({"schema_version": 1, "label": "one"}))
    return folder


def _prompts(per_group: int) -> pd.DataFrame:
    rows = [
        {
            "id": None,
            "group": group,
            "text": f"{group.replace('_', ' ')} question {number}: how does one do this?",
            "n_tokens": 20,
            "in_kernel": number < per_group,
        }
        for group in GROUPS
        for number in range(4 * per_group)
    ]
    return pd.DataFrame(rows).rename_axis("prompt").reset_index()


def _parts(kernel: pd.DataFrame, layers: int, generator: np.random.Generator) -> pd.DataFrame:
    kinds = [(None, "embed"), (None, "norm"), (None, "head")]
    kinds += [(n, part) for n in range(1, layers + 1) for part in ("attention", "mlp", "norms")]
    shares = generator.dirichlet(np.ones(len(kinds)), len(kernel)).T
    tables = [
        kernel.assign(layer=layer, part=part, norm=share, share=share)
        for (layer, part), share in zip(kinds, shares, strict=True)
    ]
    return pd.concat(tables, ignore_index=True).astype({"layer": "Int64"})


def _refusal(
    prompts: pd.DataFrame, step: int, progress: float, generator: np.random.Generator
) -> pd.DataFrame:
    ends = prompts["group"].map({"normal": 0.02, "seemingly_toxic": 0.5, "toxic": 0.95})
    share = np.clip(ends * progress + generator.normal(0, 0.05, len(prompts)), 1e-6, 1)
    rows = pd.DataFrame({"step": step, "prompt": prompts["prompt"], "phrase_set": "paper31"})
    rows = rows.assign(reduction="literal", log_probability=np.log(share), refuses=share > 0.4)
    return rows.astype({"refuses": "boolean"})


def _tokens(chosen: np.ndarray, step: int, generator: np.random.Generator) -> pd.DataFrame:
    rows = pd.DataFrame({"step": step, "prompt": np.repeat(chosen, 10)})
    tokens = generator.integers(0, 300, len(rows))
    rank = np.tile(np.arange(10), len(chosen))
    return rows.assign(rank=rank, token=tokens, text=[f" word{token}" for token in tokens])


def _influence(
    chosen: np.ndarray, step: int, pairs: int, generator: np.random.Generator
) -> pd.DataFrame:
    observed, updated = (x.ravel() for x in np.meshgrid(chosen, np.arange(pairs), indexing="ij"))
    rows = pd.DataFrame({"step": step, "observed": observed, "updated": updated})
    return rows.assign(target="refusal_literal", change=generator.normal(size=len(rows)))
