"""Answers of the final models, the filters' verdicts, and the loss on held-out normal answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..checkpoints import adapted, base_and_adapter, load_model, load_tokenizer
from ..errors import UserError
from ..evaluation import Evaluation
from ..evaluation.benchmarks.sources import read_own
from ..evaluation.judge_specs import DEFAULT, read_judges
from ..evaluation.models import EvaluatedModel
from ..evaluation.run import evaluate as ask
from ..evaluation.settings import AnswerSettings
from ..mitigations import Mitigation, save
from ..mitigations.storage import mitigation_class
from ..prompts.phrases import is_refusal
from ..prompts.prompt_set import Prompt, PromptSet
from ..prompts.selections import PromptSelection
from ..prompts.templates import resolve_template
from ..storage import replacing, write_json, write_table
from ..training.data import Pair
from .data_files import OVER_REFUSAL_SETS, SAFETY_SETS
from .plan import STEERED, Stage
from .workspace import Workspace

SETS = (*OVER_REFUSAL_SETS, *SAFETY_SETS, "normal")
UNFIT, FITTED = ".unfit.json", ".prompts.jsonl"
"""Behind a method's folder: why it could not be fitted, and the prompts that it was fitted on."""
LONGER = 3
"""Times the tokens of an answer that is trained on (STL-aug)."""


def evaluate(workspace: Workspace, stage: Stage) -> None:
    """Answer every set with a final model, and compute its loss, unless this is done already."""
    if why_unfit(workspace.out, stage.folder):
        return
    subject = subject_of(workspace, stage)
    folder = workspace.out / "eval" / stage.folder
    files = {name: workspace.splits.path(name) for name in SETS}
    answer(
        workspace, subject, files, folder, label=stage.folder, learned=_learned(workspace, stage)
    )
    if stage.run != "adacd" and not (folder / "losses.parquet").is_file():
        settings = AnswerSettings(max_new_tokens=1)
        with subject.in_memory(settings, None) as local:
            table = answer_losses(
                local.model,
                local.tokenizer,
                workspace.splits.pairs("normal"),
                workspace.scale.length,
            )
        write_table(folder / "losses.parquet", table)


def subject_of(workspace: Workspace, stage: Stage) -> EvaluatedModel:
    """Return the model of a stage: the base, a run's final model, or STL's with a method on it."""
    if stage.run == "base":
        return EvaluatedModel.named(workspace.settings.model, None, None, workspace.load)
    run = "stl" if stage.run in STEERED else stage.run
    final = workspace.run(Stage("train", run, stage.seed)) / "final"
    start = workspace.start_of(Stage("train", run, stage.seed))
    fitted = workspace.out / "mitigations" / stage.folder if stage.run in STEERED else None
    return EvaluatedModel.named(start, final, fitted, workspace.load)


def answer(
    workspace: Workspace,
    subject: EvaluatedModel,
    files: dict[str, Path],
    folder: Path,
    *,
    label: str,
    learned: Sequence[Path] = (),
    longer: int = 1,
) -> Evaluation:
    """Return the evaluation of a model on some sets, in one folder.

    Args:
        workspace: folder and settings.
        subject: the model.
        files: sets by name.
        folder: of the answers.
        label: what the model is called.
        learned: prompts that it learned from beside those that its runs' records name.
        longer: times the tokens of an answer.

    Returns:
        Answers and verdicts.
    """
    benchmarks = [read_own(PromptSelection(path), name) for name, path in files.items()]
    settings = AnswerSettings(max_new_tokens=workspace.scale.tokens * longer)
    ask(
        subject,
        benchmarks,
        folder,
        judges=read_judges(DEFAULT),
        settings=settings,
        label=label,
        trained_on=learned,
    )
    return Evaluation(folder)


def refusal_rates(workspace: Workspace, adapter: Path, file: Path, name: str) -> dict[str, float]:
    """Return the refusal rate of each group of a set that an adapter over the base answers."""
    subject = EvaluatedModel.named(workspace.settings.model, adapter, None, workspace.load)
    found = answer(
        workspace, subject, {"development": file}, workspace.out / "eval" / name, label=name
    )
    groups = found.prompts("development").set_index("id")["type"]
    answers = found.answers("development").set_index("id")["answer"]
    refused = answers.map(is_refusal).groupby(groups).mean()
    return {str(group): float(rate) for group, rate in refused.items()}


def base_answers(workspace: Workspace, texts: list[str]) -> list[str]:
    """Return the base model's answers to prompts, which STL-aug learns."""
    subject = EvaluatedModel.named(workspace.settings.model, None, None, workspace.load)
    file = workspace.out / "data" / "to_answer.csv"
    pd.DataFrame({"prompt": texts, "kind": "safe"}).to_csv(file, index=False)
    folder = workspace.out / "eval-augmenting"
    found = answer(workspace, subject, {"to_answer": file}, folder, label="base", longer=LONGER)
    by_id = found.answers("to_answer").set_index("id")["answer"]
    return [str(by_id[name]) for name in found.prompts("to_answer")["id"]]


def fit(workspace: Workspace, stage: Stage) -> None:
    """Fit a method on STL's final model, with prompts that DCR had as well."""
    folder = workspace.out / "mitigations" / stage.folder
    named, adapter = base_and_adapter(
        str(workspace.run(Stage("train", "stl", stage.seed)) / "final"), None
    )
    rows = [*workspace.splits.rows("dcr"), *workspace.splits.rows("fit_normal")]
    every = PromptSet(tuple(Prompt(row["prompt"], row["group"]) for row in rows))
    prompts = every.sample(workspace.scale.anchors)
    with replacing(folder.with_suffix(FITTED)) as hidden:
        lines = (json.dumps({"prompt": p.text, "group": p.group}) + "\n" for p in prompts)
        hidden.write_text("".join(lines), "utf-8")
    tokenizer = load_tokenizer(named, local=False)
    with adapted(load_model(named, workspace.load), Path(str(adapter))) as model:
        try:
            fitted = _method(stage.run).fit(model, tokenizer, prompts)
        except UserError as why:  # such as: the model refuses none of the prompts to learn from
            workspace.log(f"  {stage.run} cannot be fitted: {why}")
            write_json(folder.with_suffix(UNFIT), {"why": str(why)})
            return
    folder.with_suffix(UNFIT).unlink(missing_ok=True)  # of an earlier attempt
    save(fitted, folder)


def _learned(workspace: Workspace, stage: Stage) -> list[Path]:
    """Return the files of prompts that a model learned from, beside those of its runs."""
    fitted = (workspace.out / "mitigations" / stage.folder).with_suffix(FITTED)
    if fitted.is_file():
        return [fitted]
    return [workspace.splits.path("augmenting")] if stage.run == "stl-aug" else []


def why_unfit(out: Path, name: str) -> str:
    """Return why a method could not be fitted; empty if it could, or is none."""
    path = (out / "mitigations" / name).with_suffix(UNFIT)
    return str(json.loads(path.read_text())["why"]) if path.is_file() else ""


def _method(name: str) -> Mitigation:
    """Return a method with its own default settings."""
    made: Mitigation = mitigation_class(name)()
    return made


def answer_losses(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], max_length: int, template: str = "auto"
) -> pd.DataFrame:
    """Return the mean negative log-likelihood of each answer, given its prompt.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        pairs: prompts and answers.
        max_length: tokens at most; what is longer loses its end.
        template: how they become tokens.

    Returns:
        `pair, loss, tokens`, in nats per token of the answer; a pair whose prompt fills
        `max_length` is left out.
    """
    resolved = resolve_template(tokenizer, template)
    device = next(model.parameters()).device
    rows = []
    for number, pair in enumerate(pairs):
        ids, answer = resolved.encode_pair(tokenizer, pair.prompt, pair.response)
        ids, start = ids[:max_length], answer.index(True)
        if start >= len(ids):
            continue
        tokens = torch.tensor([ids], device=device)
        with torch.no_grad():
            logits = model(tokens, use_cache=False).logits[0, start - 1 : -1].double()
        chosen = logits.log_softmax(-1).gather(1, tokens[0, start:, None])
        loss = -float(chosen.mean())
        rows.append({"pair": number, "loss": loss, "tokens": len(ids) - start})
    return pd.DataFrame(rows, columns=["pair", "loss", "tokens"])
