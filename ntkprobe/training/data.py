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

from ..chat import Template
from ..errors import UserError
from ..prompt_files import read_rows
from ..prompts import normalised as normalised

PROMPT_FIELDS = ("instruction", "prompt", "question", "text", "goal", "trigger")
RESPONSE_FIELDS = ("output", "response", "answer", "completion", "refusal")
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


def read_pairs(path: str | Path) -> list[Pair]:
    """Return the pairs of a JSON, JSONL, CSV or Parquet file, in its order.

    An Alpaca row's non-empty `input` follows its `instruction` on a new line. Empty prompts and
    answers are kept here: who trains on them decides, and counts.

    Args:
        path: a file with one field of `PROMPT_FIELDS` and one of `RESPONSE_FIELDS`.

    Returns:
        One pair for each record.

    Raises:
        UserError: if the file cannot be read, is empty, or a record lacks a field.
    """
    rows = read_rows(Path(path))
    if not rows:
        raise UserError(f"{path} is empty: it has no pairs")
    return [_pair(row, f"{path}, record {number}") for number, row in enumerate(rows, start=1)]


def read_texts(path: str | Path) -> list[str]:
    """Return the prompts of a file, of whatever group, to compare others with.

    Args:
        path: a file with one field of `PROMPT_FIELDS`.

    Returns:
        One text for each record.
    """
    rows = enumerate(read_rows(Path(path)), start=1)
    return [_field(row, PROMPT_FIELDS, f"{path}, record {number}") for number, row in rows]


def _pair(row: Mapping[str, Any], where: str) -> Pair:
    """Return one record as a pair."""
    prompt, response = _field(row, PROMPT_FIELDS, where), _field(row, RESPONSE_FIELDS, where)
    extra = str(row.get("input") or "")
    return Pair(f"{prompt}\n{extra}" if extra.strip() else prompt, response)


def _field(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """Return the first of the fields that the record has.

    Args:
        row: the record.
        names: of the fields.
        where: the record is, for messages.

    Returns:
        Its text; null counts as empty.

    Raises:
        UserError: if it has none of them.
    """
    name = next((name for name in names if name in row), None)
    if name is None:
        raise UserError(f"{where} has the fields {list(row)}: one of {list(names)} is needed")
    return "" if row[name] is None else str(row[name])


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


def about_template(template: Template, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what a training's report says of its template: name, day printed if any, remarks."""
    day = {"template_date": template.day} if template.day else {}
    return {
        "template": template.name,
        **day,
        "template_remarks": template.remarks(tokenizer),
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
