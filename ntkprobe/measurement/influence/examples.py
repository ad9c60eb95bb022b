"""The updated pairs and the observed prompts: read from files, checked, and as token ids."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...errors import MeasurementWarning, UserError, one_line, require
from ...models.batching import context_length
from ...models.generation import require_vocabulary, text_config
from ...prompts.files import ANSWER_COLUMNS, answer_column, read_rows
from ...prompts.learnt_answers import encode_learnt
from ...prompts.prompt_set import Prompt, PromptSet
from ...prompts.selections import PromptSelection
from ...prompts.templates import Template
from ...storage import training_settings
from ..encoding import Encoded, as_encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_IDS = "without a tokenizer give token ids"


@dataclass(frozen=True, eq=False)
class Example:
    """A pair (x, y) as one row of tokens.

    Attributes:
        input_ids: the prompt's tokens, then the answer's.
        start: the number of the prompt's tokens, and of a prefill's, before what is learnt.
    """

    input_ids: Int[Tensor, " seq"]
    start: int

    @property
    def answer(self) -> Int[Tensor, " answer"]:
        """The answer's tokens, as far as they are learnt."""
        return self.input_ids[self.start :]


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """Pairs and their tokens, which `influence` takes as `updated`.

    Attributes:
        pairs: the pairs, in order.
        examples: their tokens.
    """

    pairs: PromptSet
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class RecordedPairs:
    """What a run of `ntkprobe train sft` was trained on, and how, as far as a pair's loss depends.

    Attributes:
        pairs: the pairs, each in the group that its source stands for.
        system: the run's system message.
        max_length: the tokens at which pairs were cut; None where the run does not say.
        remarks: what the influence of these pairs leaves out of the training, a line each.
    """

    pairs: PromptSet
    system: str | None = None
    max_length: int | None = None
    remarks: tuple[str, ...] = ()


def answered(pairs: PromptSet | Iterable[Any]) -> PromptSet:
    """Return pairs as prompts whose `response` is the answer to be learnt.

    Args:
        pairs: a `PromptSet`, or prompts and `(prompt, answer)`, which count as `toxic`.

    Returns:
        The same, in order.

    Raises:
        UserError: if one is neither, or has no answer.
    """
    found = []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, Prompt):
            is_pair = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
            if not is_pair or not all(isinstance(text, str) for text in pair):
                raise UserError(
                    f"updated example {number} is no pair of texts: give (prompt, answer), or a"
                    " Prompt with its answer as response"
                )
            pair = Prompt(pair[0], "toxic", response=pair[1])
        require(
            pair.response.strip(), f"updated example {number} has no answer: give it a response"
        )
        found.append(pair)
    require(found, "no updated examples: give at least one pair (prompt, answer)")
    return PromptSet(tuple(found))


def encode_examples(
    tokenizer: "PreTrainedTokenizerBase | None", updated: Any, template: Template | None
) -> tuple[PromptSet | None, list[Example]]:
    """Return the updated pairs, as texts if there are any, and as tokens.

    Args:
        tokenizer: the model's, or None for token ids.
        updated: pairs of texts, or of token ids.
        template: as for training, with the answer's end-of-turn token.

    Returns:
        The pairs (None without a tokenizer) and their tokens.
    """
    if tokenizer is None or template is None:
        return None, [_of_ids(number, pair) for number, pair in enumerate(updated)]
    if isinstance(updated, EncodedPairs):
        return updated.pairs, list(updated.examples)
    made = encode_updated(tokenizer, answered(updated), template)
    return made.pairs, list(made.examples)


def encode_updated(
    tokenizer: "PreTrainedTokenizerBase",
    pairs: PromptSet,
    template: Template,
    system: str | None = None,
    max_length: int | None = None,
) -> EncodedPairs:
    """Return pairs with their tokens, as a run learns them.

    Args:
        tokenizer: the model's.
        pairs: prompts whose `response` is learnt behind their `prefill`.
        template: as for training, with the answer's end-of-turn token.
        system: the run's system message; None leaves the template's own, if any.
        max_length: answers end at so many tokens. A pair whose prompt leaves no room, which no run
            learns, stays whole: there is an `errors.MeasurementWarning`.

    Returns:
        Both, in the same order.
    """
    examples, too_long = [], 0
    for pair in pairs:
        texts = pair.text, pair.response, pair.prefill
        ids, _, learnt = encode_learnt(template, tokenizer, *texts, system)
        room = max_length is None or learnt < max_length
        too_long += not room
        examples.append(Example(torch.tensor(ids[:max_length] if room else ids), learnt))
    if too_long:
        warnings.warn(
            f"{too_long} of {len(examples)} updated pairs were not trained on, since their prompts "
            f"fill {max_length} tokens: their influence is that of the whole pair",
            MeasurementWarning,
            stacklevel=2,
        )
    return EncodedPairs(pairs, tuple(examples))


def encode_observed(
    tokenizer: "PreTrainedTokenizerBase | None",
    observed: Any,
    template: str | Template,
    max_length: int | None,
) -> tuple[Encoded | None, list[Tensor]]:
    """Return the observed prompts, as texts if there are any, and as tokens.

    Args:
        tokenizer: the model's, or None for token ids.
        observed: texts, or token ids.
        template: how texts become tokens.
        max_length: longer prompts lose the end of their text.

    Returns:
        The prompts (None without a tokenizer) and their tokens.
    """
    if tokenizer is None:
        rows = list(observed)
        return None, [_ids(row, f"observed prompt {number}") for number, row in enumerate(rows)]
    encoded = as_encoded(tokenizer, observed, template, max_length)
    return encoded, [torch.tensor(row) for row in encoded.input_ids]


def require_room(model: Any, examples: Sequence[Example]) -> None:
    """Refuse pairs with ids outside the vocabulary, or longer than the context.

    Args:
        model: a causal language model.
        examples: pairs.

    Raises:
        UserError: naming the first such pair.
    """
    require(examples, "no updated examples: give at least one pair (prompt, answer)")
    context = context_length(text_config(model))
    for number, example in enumerate(examples):
        require_vocabulary(model, example.input_ids, f"updated example {number}")
        if context is not None and len(example.input_ids) > context:
            raise UserError(
                f"updated example {number} has {len(example.input_ids)} tokens, the model's context"
                f" {context}: shorten its answer"
            )


def _of_ids(number: int, pair: Any) -> Example:
    """Return a pair of token ids as an example.

    Raises:
        UserError: if it is none.
    """
    what = f"updated example {number}"
    if isinstance(pair, str | Prompt) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise UserError(f"{what} is no pair: {_IDS}, (prompt, answer)")
    prompt, answer = (_ids(part, what) for part in pair)
    return Example(torch.cat([prompt, answer]), len(prompt))


def _ids(row: Any, what: str) -> Int[Tensor, " seq"]:
    """Return token ids as a tensor.

    Raises:
        UserError: if they are none.
    """
    try:
        ids = torch.as_tensor(row)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} is no token ids: {_IDS}, or give the tokenizer") from error
    if ids.ndim != 1 or not len(ids) or ids.is_floating_point():
        raise UserError(f"{what} is no row of token ids: {_IDS}, 1-D and not empty")
    return ids.long()


SOURCES = {"general": "normal", "safe": "toxic", "seemingly": "seemingly_toxic"}
"""The groups of the prompts that a run was trained on, by their source."""


def read_updated(file: str | Path, answer: str | None = None) -> PromptSet:
    """Return the pairs of a file, their answer in `response`.

    Args:
        file: as `PromptSet.from_files` reads it, with a column of `ANSWER_COLUMNS`, and maybe
            `prefill`; where nothing says the group they are `toxic`.
        answer: the answer of prompts that have none.

    Returns:
        The pairs.

    Raises:
        UserError: if one has no answer.
    """
    numbered = PromptSelection.parse(file).numbered()
    prompts = PromptSet.from_files([file], otherwise="toxic")
    pairs = [
        replace(
            prompt,
            response=_answer(row, prompt) or answer or "",
            prefill=str(row.get("prefill") or ""),
        )
        for (_, row), prompt in zip(numbered, prompts, strict=True)
    ]
    lacking = [n for (n, _), pair in zip(numbered, pairs, strict=True) if not pair.response.strip()]
    if lacking:
        raise UserError(
            f"{file}: the pair in row {lacking[0]} has no answer: give it a column of"
            f" {list(ANSWER_COLUMNS)}, or all of them --answer TEXT"
        )
    return answered(pairs)


def read_recorded(path: Path) -> RecordedPairs:
    """Return the pairs that a run was trained on, each in the group that its source stands for.

    Args:
        path: the `data.parquet` of a run of `ntkprobe train sft`, with its `training.yaml` beside.

    Returns:
        The pairs of a source in `SOURCES`, with the run's system message and length.

    Raises:
        UserError: if there are no refusals among them.
    """
    rows = read_rows(path)
    pairs = [
        Prompt(str(row["prompt"]), SOURCES[row["source"]], None, *_learnt(row))
        for row in rows
        if row.get("source") in SOURCES and row.get("prompt")
    ]
    if not any(pair.group == "toxic" for pair in pairs):
        raise UserError(f"{path} names no pairs with source 'safe': give a file with --updated")
    left_out = sorted({str(row.get("source")) for row in rows} - set(SOURCES))
    given = training_settings(path.parent)
    system, length = given.get("system"), given.get("max_length")
    remarks = [
        f"pairs of the source {name!r} are left out: no group is theirs" for name in left_out
    ]
    if given.get("loss_on") == "all":
        remarks.append(
            "the run's loss counted the prompts' tokens too; the influence is that of the answers"
        )
    if smoothing := given.get("label_smoothing_factor"):
        remarks.append(
            f"the run smoothed its labels ({smoothing}); the influence is that of the loss without"
        )
    return RecordedPairs(
        answered(pairs),
        None if system is None else str(system),
        length if type(length) is int else None,
        tuple(map(one_line, remarks)),
    )


def _learnt(row: dict[str, Any]) -> tuple[str, str]:
    """Return the answer of a row of `data.parquet`, and its prefill."""
    return str(row.get("response") or ""), str(row.get("prefill") or "")


def recorded_data(run: Path | None) -> Path | None:
    """Return what a run of `ntkprobe train sft` was trained on, if it is there.

    Args:
        run: the run, or one of its checkpoints.
    """
    places = [] if run is None else [run, run.resolve().parent]
    return next((p / "data.parquet" for p in places if (p / "data.parquet").is_file()), None)


def _answer(row: dict[str, Any], prompt: Prompt) -> str:
    column = answer_column(row)
    return str(row[column]) if column and row[column] else prompt.response
