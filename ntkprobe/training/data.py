"""Question-answer pairs for training: read from files, drawn, compared, padded into batches."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..prompts.files import ANSWER_COLUMNS, TEXT_COLUMNS, answer_column, prompt_of, text_column
from ..prompts.prompt_set import normalised as normalised
from ..prompts.selections import PromptSelection
from ..prompts.templates import Template

IGNORED = -100
"""The label of a position that no loss counts."""


@dataclass(frozen=True)
class Pair:
    """A user's request and the answer to learn.

    Attributes:
        prompt: what the user says.
        response: what the model is to say.
        prefill: what the model is taken to have said before that; no loss counts it.
    """

    prompt: str
    response: str
    prefill: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to ask or nothing to learn."""
        return not self.prompt.strip() or not self.response.strip()


def read_pairs(file: str | Path) -> list[Pair]:
    """Return the pairs of a JSON, JSONL, CSV or Parquet file, in its order.

    An Alpaca row's non-empty `input` follows its `instruction` on a new line. Empty prompts and
    answers are kept here: who trains on them decides, and counts.

    Args:
        file: one with a column of `TEXT_COLUMNS` and one of `ANSWER_COLUMNS`, or some of its rows,
            as `FILE:COLUMN=VALUE`.

    Returns:
        One pair for each record.

    Raises:
        UserError: if the file cannot be read, is empty, or a record lacks a field.
    """
    chosen = PromptSelection.parse(file).unmarked()
    rows = chosen.numbered()
    if not rows:
        raise UserError(f"{chosen.path} is empty: it has no pairs")
    return [_pair(row, f"{chosen.path}, record {number}") for number, row in rows]


def read_texts(file: str | Path) -> list[str]:
    """Return the prompts of a file, of whatever group, to compare others with.

    Args:
        file: one with a column of `TEXT_COLUMNS`, or some of its rows.

    Returns:
        One text for each record; a record without any is a `UserError`.
    """
    chosen = PromptSelection.parse(file)
    return [_prompt(row, f"{chosen.path}, record {n}") for n, row in chosen.numbered()]


def _pair(row: Mapping[str, Any], where: str) -> Pair:
    """Return one record as a pair."""
    prompt, column = _prompt(row, where), answer_column(row)
    return Pair(prompt, _text(row, column, ANSWER_COLUMNS, column and row[column], where))


def _prompt(row: Mapping[str, Any], where: str) -> str:
    """Return one record's prompt."""
    return _text(row, text_column(row), TEXT_COLUMNS, prompt_of(row), where)


def _text(
    row: Mapping[str, Any], column: str | None, names: Sequence[str], value: Any, where: str
) -> str:
    """Return what a record says as a text; null counts as empty.

    Args:
        row: the record.
        column: the one that says it, None if it has none of `names`.
        names: of the columns that might.
        value: what it says.
        where: the record is, for messages.

    Raises:
        UserError: if it has no such column, or one that holds no text.
    """
    if column is None:
        raise UserError(f"{where} has the fields {list(row)}: one of {list(names)} is needed")
    if isinstance(value, list | dict):
        raise UserError(f"{where}: its {column!r} is a {type(value).__name__}: give a text")
    return "" if value is None else str(value)


def draw(pairs: Sequence[Pair], number: int, seed: str) -> list[Pair]:
    """Return `number` pairs in random order, or all of them where there are fewer."""
    return random.Random(seed).sample(list(pairs), min(number, len(pairs)))


def prefilled(pairs: Sequence[Pair], text: str, share: float, seed: str) -> list[Pair]:
    """Return the pairs, some of which begin with an answer that was not asked for.

    Learning to refuse behind an affirmative beginning makes refusals reach deeper than the first
    tokens (Qi et al., arXiv 2406.05946, who do so with half of the pairs).

    Args:
        pairs: harmful requests and refusals.
        text: the beginning, such as "Sure, here is how:".
        share: of the pairs that get it, from 0 to 1.
        seed: another seed, other pairs.

    Returns:
        As many pairs, in the same order.
    """
    rows = random.Random(seed).sample(range(len(pairs)), round(share * len(pairs)))
    chosen = set(rows)
    return [replace(p, prefill=text) if row in chosen else p for row, p in enumerate(pairs)]


def about_template(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    system: str | None = None,
) -> dict[str, Any]:
    """Return what a training's report says of its template: name, day printed if any, remarks.

    Args:
        template: that of the run.
        tokenizer: the model's.
        texts: of the prompts.
        system: the system message that they have.
    """
    day = {"template_date": template.day} if template.day else {}
    return {
        "template": template.name,
        **day,
        "template_remarks": template.remarks(tokenizer, texts, system),
    }


def overlaps(sets: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Return the prompts that two sets share, compared by `normalised`.

    Args:
        sets: the prompts of each data set by its name.

    Returns:
        For each pair "A and B" that shares any, the texts as A has them, each once.
    """
    texts = {name: {normalised(t): t for t in prompts} for name, prompts in sets.items()}
    names = list(texts)
    shared = {
        f"{a} and {b}": [texts[a][key] for key in texts[a] if key in texts[b]]
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
    return {pair: prompts for pair, prompts in shared.items() if prompts}


def digest(pairs: Iterable[Pair]) -> str:
    """Return the SHA-256 of pairs, order included."""
    rows = [[pair.prompt, pair.response] for pair in pairs]
    return sha256(json.dumps(rows).encode()).hexdigest()


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Return ragged rows as one tensor [rows, longest], filled on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token to fill with: any will do, since what it fills is masked."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in known if token is not None))


def padded(rows: Sequence[Mapping[str, Sequence[int]]], pad_token: int) -> dict[str, Tensor]:
    """Return a batch of `input_ids`, `attention_mask` and `labels`, padded on the right.

    Args:
        rows: `input_ids` and `labels` of the same length in each row.
        pad_token: any token; padding is masked out of attention and loss.

    Returns:
        Three tensors [rows, longest].
    """
    return {
        "input_ids": pad([row["input_ids"] for row in rows], pad_token),
        "attention_mask": pad([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": pad([row["labels"] for row in rows], IGNORED),
    }
