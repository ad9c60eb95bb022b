"""A stage before its weights are loaded: tokenizer, template, what it can be compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import base_folder_of, identity, readiness
from ..checkpoints.identification import architecture_named
from ..errors import UserError
from ..measurement import Encoded, encode
from ..prompts.prompt_set import PromptSet
from ..prompts.rendering import dated
from ..prompts.special_tokens import vocabulary_difference
from ..stages import Stage, differences
from .models import Models, shown_as
from .scan import ScannedCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedStage:
    """A stage that is about to be measured.

    Attributes:
        step: its place among the stages, from 0.
        stage: its name, model and template.
        base: the model, or the one below its adapter.
        adapter: the checkpoint of its adapter, if it is one.
        tokenizer: its own.
        encoded: the prompts in its template.
        record: its entry in `run.json`.
        other_vocabulary: what its tokens have in another meaning than the first stage's, if so.
        failure: why it cannot be measured.
    """

    step: int
    stage: Stage
    base: str = ""
    adapter: ScannedCheckpoint | None = None
    tokenizer: "PreTrainedTokenizerBase | None" = None
    encoded: Encoded | None = None
    record: dict[str, Any] = field(default_factory=dict)
    other_vocabulary: str | None = None
    failure: str | None = None


def prepared(
    stages: Sequence[Stage],
    prompts: PromptSet,
    *,
    base: str | None = None,
    max_length: int | None = None,
    day: str | None = None,
    reference: int | None = None,
) -> list[PreparedStage]:
    """Return stages with their tokenizers and prompts; a failure concerns its stage alone.

    Args:
        stages: in order.
        prompts: what is measured on.
        base: the model below adapters that name none here.
        max_length: of a prompt.
        day: that templates print.
        reference: the stage whose vocabulary the others are compared with; by default the first
            that can be read.

    Returns:
        One for each stage.
    """
    with dated(day):
        found = [_prepared(n, s, prompts, base, max_length) for n, s in enumerate(stages)]
    readable = [one for one in found if one.failure is None]
    if not readable:
        return found
    first = next((one for one in readable if one.step == reference), readable[0])
    return [_compared(one, first) for one in found]


def _prepared(
    step: int, stage: Stage, prompts: PromptSet, base: str | None, max_length: int | None
) -> PreparedStage:
    one = begun(step, stage)
    try:
        return _read(one, prompts, base, max_length)
    except Exception as error:  # whatever is wrong with one stage, the others are measured
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return replace(one, failure=f"{kind}{error}")


def begun(step: int, stage: Stage) -> PreparedStage:
    """Return a stage of which nothing has been read yet."""
    return PreparedStage(step, stage, record={"name": stage.name, "model": shown_as(stage.model)})


def _read(
    one: PreparedStage, prompts: PromptSet, named: str | None, max_length: int | None
) -> PreparedStage:
    """Return a stage with what can be read without its weights.

    Raises:
        UserError: if it cannot be.
    """  # ruff: ignore[docstring-extraneous-exception]
    one = identified(one, named)
    folder, spec = one.stage.adapter, one.stage.template
    tokenizer = Models(one.base).tokenizer(*([folder] if folder else []))
    if spec == "auto":
        spec = "chat" if tokenizer.chat_template else "plain"
    encoded = encode(tokenizer, prompts, spec, max_length)
    record = {
        **one.record,
        "architecture": architecture_named(one.base),
        "template": encoded.template.name,
        "tokens": encoded.digest,
    }
    return replace(one, tokenizer=tokenizer, encoded=encoded, record=record)


def identified(one: PreparedStage, named: str | None) -> PreparedStage:
    """Return a stage with its base, adapter and identities, for which no tokenizer is needed.

    Args:
        one: with its place, its stage, and name and model in its record.
        named: the model below adapters that name none here.

    Raises:
        UserError: if there is no whole model.
    """  # ruff: ignore[docstring-extraneous-exception]
    stage, folder = one.stage, one.stage.adapter
    base = stage.model if folder is None else named or str(base_folder_of(folder))
    below = Models(base).base_identity()
    assert below is not None
    adapter = None if folder is None else _scanned(one.step, folder)
    own = identity(adapter.checkpoint.path, adapter.verdict.weights) if adapter else below[1]
    record = {**one.record, "identity": own, "base": below[0], "base_identity": below[1]}
    return replace(one, base=base, adapter=adapter, record=record)


def _scanned(step: int, adapter: Path) -> ScannedCheckpoint:
    """Return an adapter as a checkpoint that is ready.

    Raises:
        UserError: if it is not whole, or refused.
    """
    from ..checkpoints import Checkpoint

    verdict = readiness(adapter)
    if verdict.state not in ("ready", "unmarked"):
        raise UserError(f"{adapter} is {verdict.state}: {verdict.reason}")
    return ScannedCheckpoint(Checkpoint(step, adapter), replace(verdict, state="ready"))


def _compared(one: PreparedStage, first: PreparedStage) -> PreparedStage:
    """Return a stage with how its vocabulary differs from the first one's."""
    if one.tokenizer is None or first.tokenizer is None:
        return one
    differs = None if one is first else vocabulary_difference(first.tokenizer, one.tokenizer)
    record = {**one.record, "same_vocabulary": differs is None}
    reason = differs and f"{differs}, {first.stage.name} being there"
    return replace(one, record=record, other_vocabulary=reason)


def remarks(stages: Sequence[PreparedStage]) -> list[str]:
    """Return what a reader should know about stages and what differs between them, a line each.

    Args:
        stages: all of them.
    """
    lines = []
    known = [one for one in stages if one.failure is None and one.encoded is not None]
    for one in known:
        name, template = one.stage.name, one.record["template"]
        if one.stage.template == "auto" and template == "plain":
            lines.append(
                f"{name} has no chat template: its prompts get a plain frame (User: …, Assistant:);"
                f" --template {name}=FILE gives another"
            )
        if one.other_vocabulary:
            lines.append(
                f"{name} has another vocabulary ({one.other_vocabulary}): its kernel is not "
                "measured, since kernels over different tokens do not compare"
            )
        assert one.encoded is not None
        said = one.encoded.remarks(one.tokenizer)  # type: ignore[arg-type]
        lines += [f"{name}: {line}" for line in said]
    for before, now in pairwise(known):
        lines += differences(before.record, now.record)
    return list(dict.fromkeys(lines))
