"""Safety alignment by supervised fine-tuning with LoRA (paper A.3): normal pairs and refusals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from ..checkpoints import load_model, load_tokenizer
from ..errors import UserError
from ..plugins import load
from ..prompts.learnt_answers import encode_learnt
from ..prompts.rendering import dated
from ..prompts.templates import Template, resolve_template
from . import recipes
from .adapters import attention_targets, with_lora
from .callbacks import install, quiet, settings_in_one_line
from .config import SFTConfig as SFTConfig
from .contamination import check_overlaps, prompts_of_stage_before
from .data import IGNORED, Pair, about_template, digest, pad_token, padded, prefilled
from .runs import Run, located, model_digest, text_digests

if TYPE_CHECKING:
    import pandas as pd


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, config: SFTConfig
) -> tuple[list[dict[str, list[int]]], dict[str, Any]]:
    """Return the rows to train on, and a report of what was left out or cut.

    Args:
        pairs: requests and answers.
        tokenizer: the model's.
        config: template, length, system message, and which tokens the loss counts.

    Returns:
        Rows of `input_ids` and `labels`, and counts for the report.
    """
    rows, _, report = encode_fitting(pairs, tokenizer, config)
    return rows, report


def encode_fitting(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, config: SFTConfig
) -> tuple[list[dict[str, list[int]]], list[int], dict[str, Any]]:
    """Return what `encode_pairs` does, and between its two which of the pairs the rows are.

    Args:
        pairs: requests and answers.
        tokenizer: the model's.
        config: as for `encode_pairs`.

    Raises:
        UserError: if nothing is left.
    """
    template = resolve_template(tokenizer, config.template)
    about = about_template(template, tokenizer, [pair.prompt for pair in pairs], config.system)
    report: dict[str, Any] = {**about, "too_long": 0, "cut": 0}
    traced = [
        template.leaves_reasoning_out(tokenizer, pair.response, pair.prompt, config.system)
        for pair in pairs
    ]
    report["reasoning_left_out"] = sum(traced)
    rows, places, lengths = [], [], []
    for place, pair in enumerate(pairs):
        row, length = encode_pair(pair, tokenizer, template, config)
        if row is None:
            report["too_long"] += 1
            continue
        report["cut"] += length > config.max_length
        lengths.append(length)
        rows.append(row)
        places.append(place)
    if not rows:
        raise UserError(f"no pair can be trained on: {len(pairs)} given, {report}")
    lengths.sort()
    report["tokens"] = {
        "least": lengths[0],
        "median": lengths[len(lengths) // 2],
        "most": lengths[-1],
        "total": sum(len(row["input_ids"]) for row in rows),
        "with_loss": sum(label != IGNORED for row in rows for label in row["labels"]),
    }
    return rows, places, report | {"trained_on": len(rows)}


def encode_pair(
    pair: Pair,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    config: SFTConfig,
    *,
    loss_on: str | None = None,
) -> tuple[dict[str, list[int]] | None, int]:
    """Return what is trained on of one pair: `input_ids` and `labels`, and its length uncut.

    Args:
        pair: request and answer.
        tokenizer: the model's.
        template: resolved.
        config: length, system message, and which tokens the loss counts.
        loss_on: which tokens have labels, in place of the settings' `loss_on`.

    Returns:
        The row, None where the prompt leaves no room for the answer, and its tokens before the cut.
    """
    texts = pair.prompt, pair.response, pair.prefill
    ids, start, learnt = encode_learnt(template, tokenizer, *texts, config.system)
    if learnt >= config.max_length:
        return None, len(ids)
    before = start if (loss_on or config.loss_on) == "all" else 0
    kept = [i < before or i >= learnt for i in range(len(ids))]
    labels = [token if k else IGNORED for token, k in zip(ids, kept, strict=True)]
    limit = config.max_length
    return {"input_ids": ids[:limit], "labels": labels[:limit]}, len(ids)


def make_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, list[int]]],
    config: SFTConfig,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """Return transformers' Trainer on a model that got its LoRA adapter.

    Args:
        model: a causal language model; the adapter is put into it.
        tokenizer: the model's, saved with each checkpoint.
        rows: of `encode_pairs`.
        config: the settings.
        callbacks: for the Trainer.

    Returns:
        A trainer, ready to train.
    """
    adapted = with_lora(
        model,
        config.lora_targets or attention_targets(model),
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        seed=config.seed,
    )
    filler = pad_token(tokenizer)
    with settings_in_one_line():
        trainer = Trainer(
            model=adapted,
            args=config,
            train_dataset=rows,
            data_collator=lambda batch: padded(batch, filler),
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
    install(trainer, "sft", config.save_at)
    return trainer


def mix(
    config: SFTConfig, sources: Mapping[str, Sequence[Pair]]
) -> tuple[dict[str, list[Pair]], dict[str, dict[str, int]]]:
    """Return the pairs of each source that the recipe draws, and counts for the report.

    Args:
        config: names the recipe and its numbers.
        sources: pairs by the names that the recipe needs.

    Returns:
        Pairs by source, and how many were asked for, given, empty, and drawn.

    Raises:
        UserError: if a source is missing or has nothing in it.
    """
    kind = load(recipes, config.recipe)
    recipe = kind(**{field.name: getattr(config, field.name) for field in fields(kind)})
    usable = {name: [p for p in sources.get(name, ()) if not p.empty] for name in recipe.needs}
    if lacking := [name for name in recipe.needs if not usable[name]]:
        raise UserError(f"the recipe {config.recipe} needs {lacking[0]} pairs: none were given")
    drawn = recipe.mix(usable, config.seed)
    asked = {"general": config.n_general, "safe": config.n_safe}
    counts = {
        name: {
            "asked": asked.get(name, len(drawn[name])),
            "given": len(sources[name]),
            "empty": len(sources[name]) - len(usable[name]),
            "drawn": len(drawn[name]),
        }
        for name in drawn
    }
    if config.prefill:
        rows = prefilled(drawn["safe"], config.prefill, config.prefill_share, f"{config.seed}/pre")
        drawn["safe"] = rows
        counts["safe"]["prefilled"] = sum(bool(pair.prefill) for pair in rows)
    return drawn, counts


def train_sft(
    model: str | Path,
    general: Sequence[Pair],
    safe: Sequence[Pair],
    config: SFTConfig,
    *,
    seemingly: Sequence[Pair] = (),
    triggers: Sequence[Pair] = (),
    held_out: Mapping[str, Iterable[str]] | None = None,
    sources: dict[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Run the alignment stage in `config.output_dir`, going on where an earlier call stopped.

    Args:
        model: a folder, or a name on the hub; `RUN/dcr/final` for DCR.
        general: normal requests and answers (Alpaca); none for the recipe `refusal_trigger`.
        safe: toxic requests and refusals.
        config: the settings.
        seemingly: seemingly toxic requests and compliant answers, for the recipes `stl_aug` and
            `influence`, whose order counts.
        triggers: refusal triggers and compliant answers, for the recipe `refusal_trigger`.
        held_out: prompts of evaluations by name, compared with these.
        sources: where the data came from, for the record.
        callbacks: for the Trainer, such as `ntkprobe.TrajectoryCallback`.

    Returns:
        The folder `final` with the trained adapter and the tokenizer.

    Raises:
        UserError: for a mistake in the settings or data, or a folder that holds another run.
    """  # ruff: ignore[docstring-extraneous-exception]
    start = str(model)
    every = {"general": general, "safe": safe, "seemingly": seemingly, "triggers": triggers}
    needed = load(recipes, config.recipe).needs
    given = {name: pairs for name, pairs in every.items() if name in needed}
    digests = {name: digest(pairs) for name, pairs in given.items() if pairs} | model_digest(start)
    digests |= text_digests(start, config.template)
    run = Run(config, {"stage": "sft", "model": start, **(sources or {}), "digests": digests})
    if run.finished:
        return run.final
    for name in [name for name, pairs in every.items() if pairs and name not in needed]:
        run.note(f"{name}: given, but the recipe {config.recipe} does not use them")
    drawn, counts = mix(config, given)
    asked = {name: [p.prompt for p in pairs] for name, pairs in drawn.items()}
    asked |= prompts_of_stage_before(start)
    check_overlaps(run, {**asked, **(held_out or {})}, strict=config.strict)
    with quiet(), run.stage("load"):
        network = load_model(located(start), config.loading())
        tokenizer = load_tokenizer(located(start), local=False)
    with run.stage("encode"), dated(run.template_date):
        named = [(name, pair) for name, pairs in drawn.items() for pair in pairs]
        rows, places, report = encode_fitting([pair for _, pair in named], tokenizer, config)
    _describe(run, counts, report)
    with quiet():
        trainer = make_trainer(network, tokenizer, rows, config, callbacks)
    fitting = [named[place] for place in places]
    trained_on = digest([pair for _, pair in fitting])
    run.begin(_table(fitting), data={"sources": counts, "digest": trained_on, **report})
    run.train(trainer)
    run.finish(trainer.model, tokenizer)
    return run.final


def _describe(run: Run, counts: dict[str, dict[str, int]], report: dict[str, Any]) -> None:
    """Say what will be trained on, and what will not."""
    sizes, tokens = (
        ", ".join(f"{n['drawn']} {name}" for name, n in counts.items()),
        report["tokens"],
    )
    run.tell(
        f"sft: {sizes} pairs of {tokens['least']} to {tokens['most']} tokens (median "
        f"{tokens['median']}), template {report['template']}; the loss counts "
        f"{tokens['with_loss']:,} of {tokens['total']:,} tokens"
    )
    for name, number in counts.items():
        if number["empty"]:
            run.note(f"{name}: {number['empty']} pairs without prompt or answer left out")
        if number["drawn"] < number["asked"]:
            run.note(f"{name}: {number['drawn']} of the {number['asked']} pairs asked for")
        if number["drawn"] > (usable := number["given"] - number["empty"]):
            run.note(f"{name}: {usable} different pairs, repeated to {number['drawn']}")
        if "prefilled" in number:
            run.note(f"{name}: {number['prefilled']} answers begin with the prefill, without loss")
    for line in report["template_remarks"]:
        run.note(line)
    if report["reasoning_left_out"]:
        run.note(
            f"{report['reasoning_left_out']} answers are learnt without the reasoning in front of "
            "them: the template takes it out"
        )
    limit = run.config.max_length
    if report["too_long"]:
        run.note(f"{report['too_long']} pairs whose prompt fills {limit} tokens left out")
    if report["cut"]:
        run.note(f"{report['cut']} answers cut at {limit} tokens")


def _table(pairs: Sequence[tuple[str, Pair]]) -> "pd.DataFrame":
    """Return what is trained on: source, prompt, response, and prefill where any has one."""
    import pandas as pd

    rows = [(name, p.prompt, p.response, p.prefill) for name, p in pairs]
    made = pd.DataFrame(rows, columns=["source", "prompt", "response", "prefill"])
    return made if made["prefill"].any() else made.drop(columns="prefill")
