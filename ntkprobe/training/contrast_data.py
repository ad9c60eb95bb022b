"""Prompts as the contrastive stage takes them, and in which order.

A prompt has tokens, a group, and what the regulariser predicts; the order is of whole batches,
seeded by (seed, epoch) alone.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..prompts.prompt_set import Prompt, PromptSet
from ..prompts.templates import Template, resolve_template
from .config import DCRConfig
from .data import IGNORED, Pair, about_template, pad_token, padded

SIDES = ("seemingly_toxic", "toxic")
"""The groups that are pushed apart; their positions are the labels."""

CORPUS = -1
"""The label of a row that only the regulariser sees."""


class PromptRows(Dataset):
    """Encoded prompts, each with the row of the corpus that goes with it, if there is one."""

    def __init__(
        self, rows: list[dict[str, Any]], corpus: list[dict[str, Any]], places: Sequence[int] = ()
    ) -> None:
        """Take encoded rows.

        Args:
            rows: of the prompts.
            corpus: of the regulariser's pairs; none without.
            places: of the prompts among those drawn, of which some may be too long.
        """
        self.rows = rows
        self.corpus = corpus
        self.places = places

    @property
    def groups(self) -> list[int]:
        """The label of each prompt."""
        return [row["group"] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        companion = [self.corpus[index % len(self.corpus)]] if self.corpus else []
        return [self.rows[index], *companion]


def encode_prompts(
    prompts: PromptSet,
    tokenizer: PreTrainedTokenizerBase,
    config: DCRConfig,
    corpus: Sequence[Pair] | None = None,
) -> tuple[PromptRows, dict[str, Any]]:
    """Return the rows to train on and a report of what was left out.

    Args:
        prompts: of any groups; those of `SIDES` are taken.
        tokenizer: the model's.
        config: template, length, numbers to draw, and what the regulariser is on.
        corpus: pairs for `nll_on="corpus"`.

    Returns:
        The rows, and counts for the report.

    Raises:
        UserError: if a group is empty, before or after prompts that are too long are left out, or
            what the regulariser needs is missing.
    """
    template = resolve_template(tokenizer, config.template)
    chosen = drawn(prompts, config)
    encoded = [_encode(prompt, tokenizer, template, config) for prompt in chosen]
    places = [i for i, row in enumerate(encoded) if len(row["input_ids"]) <= config.max_length]
    rows = [encoded[place] for place in places]
    lengths = [row["ends"] for row in rows]
    report = {
        **about_template(template, tokenizer, (prompt.text for prompt in chosen)),
        **{side: sum(row["group"] == i for row in rows) for i, side in enumerate(SIDES)},
        "other_groups": len(prompts) - len(prompts.in_group(*SIDES)),
        "not_drawn": len(prompts.in_group(*SIDES)) - len(chosen),
        "too_long": len(encoded) - len(rows),
        "prompt_tokens": [min(lengths, default=0), max(lengths, default=0)],
    }
    for side in SIDES:
        if not report[side]:
            raise UserError(f"all {side} prompts are longer than max_length={config.max_length}")
    companions, counts = _encode_corpus(corpus, tokenizer, template, config)
    report |= counts
    return PromptRows(rows, companions, places), report


def drawn(prompts: PromptSet, config: DCRConfig) -> PromptSet:
    """Return the prompts of both sides that are trained on, in the set's order.

    Args:
        prompts: of any groups.
        config: how many of each side, or the ratio of Table 4, and the seed of the draw.

    Returns:
        Prompts of `SIDES`. Fewer of a side than are asked for, or none, are a `UserError`.
    """
    sides = prompts.in_group(*SIDES)
    given, toxic = (sides.rows(side) for side in SIDES)
    mild = _draw(sides, given, config.n_seemingly_toxic, config.seed, "n_seemingly_toxic")
    wanted, setting = config.n_toxic, "n_toxic"
    if config.toxic_ratio is not None:
        wanted, setting = round(config.toxic_ratio * len(mild)), "toxic_ratio"
    return sides.take(sorted([*mild, *_draw(sides, toxic, wanted, config.seed, setting)]))


def _draw(
    prompts: PromptSet, rows: Sequence[int], wanted: int | None, seed: int, setting: str
) -> Sequence[int]:
    """Return a draw of rows, repeated prompts last; all where no number is asked for.

    Raises:
        UserError: if there are not so many.
    """
    if wanted is None:
        return rows
    if not 1 <= wanted <= len(rows):
        group = prompts[rows[0]].group
        raise UserError(
            f"{setting} needs {wanted} {group} prompts: there are {len(rows)}; give more, or "
            f"another --{setting.replace('_', '-')}"
        )
    return [rows[i] for i in prompts.take(rows).sampled_rows(wanted, seed)]


def _encode(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, template: Template, config: DCRConfig
) -> dict[str, Any]:
    """Return one prompt's tokens, where it ends, and what the regulariser predicts.

    Raises:
        UserError: if it needs a response that is not there.
    """
    ids = template.encode(tokenizer, prompt.text)
    row = {"group": SIDES.index(prompt.group), "ends": len(ids)}
    if config.nll_on == "response":
        if not prompt.response:
            raise UserError(f"nll_on=response: no response for the prompt {prompt.text[:60]!r}")
        whole, answer = template.encode_pair(tokenizer, prompt.text, prompt.response)
        labels = [token if kept else IGNORED for token, kept in zip(whole, answer, strict=True)]
        return row | {"input_ids": whole, "labels": labels, "ends": answer.index(True)}
    return row | {
        "input_ids": ids,
        "labels": ids if config.nll_on == "prompt" else [IGNORED] * len(ids),
    }


def _encode_corpus(
    corpus: Sequence[Pair] | None,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    config: DCRConfig,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the rows of the corpus, whose answers the regulariser predicts, and their counts.

    Raises:
        UserError: if there are none.
    """
    if config.nll_on != "corpus":
        return [], {}
    rows, cut = [], 0
    for pair in corpus or ():
        if not pair.empty:
            ids, answer = template.encode_pair(tokenizer, pair.prompt, pair.response)
            cut += len(ids) > config.max_length
            ids, answer = ids[: config.max_length], answer[: config.max_length]
            labels = [token if kept else IGNORED for token, kept in zip(ids, answer, strict=True)]
            rows.append({"input_ids": ids, "labels": labels, "group": CORPUS, "ends": len(ids)})
    if not rows:
        raise UserError("nll_on=corpus: give a corpus of question-answer pairs")
    empty = len(corpus or ()) - len(rows)
    return rows, {"corpus": len(rows), "corpus_empty": empty, "corpus_cut": cut}


def collate(
    batch: Sequence[list[dict[str, Any]]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Tensor]:
    """Return a batch: the padded tokens and labels, and the `groups` and `ends` of the rows."""
    rows = [row for rows in batch for row in rows]
    return padded(rows, pad_token(tokenizer)) | {
        "groups": torch.tensor([row["group"] for row in rows]),
        "ends": torch.tensor([row["ends"] for row in rows]),
    }


class EpochSampler(Sampler[int]):
    """Draws one epoch as a whole number of batches, so that no batch is too small to hold pairs.

    Balanced: with replacement, each label with the same probability (the paper's weighted sampler).
    Natural: a permutation of the data, its beginning repeated to fill the last batch.
    The order depends on the seed and the epoch only: not on the processes, nor on what ran before,
    so a resumed run continues the order of the uninterrupted one.
    """

    def __init__(
        self, labels: Sequence[int], batch_size: int, *, balanced: bool = True, seed: int = 0
    ) -> None:
        """Prepare to draw.

        Args:
            labels: the label of each example.
            batch_size: the size of a batch over all processes.
            balanced: draw labels equally often, else as they come.
            seed: of the order.
        """
        self.labels = torch.as_tensor(labels)
        self.batches = -(-len(labels) // batch_size)
        self.batch_size = batch_size
        self.balanced = balanced
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is; accelerate's data loaders call this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = self._balanced(draw) if self.balanced else self._natural(draw)
        yield from order.tolist()

    def _balanced(self, draw: torch.Generator) -> torch.Tensor:
        """Return indices drawn with weight 1 / (number of examples of that label)."""
        _, which, count = self.labels.unique(return_inverse=True, return_counts=True)
        return torch.multinomial(
            1.0 / count[which].double(), len(self), replacement=True, generator=draw
        )

    def _natural(self, draw: torch.Generator) -> torch.Tensor:
        """Return a permutation, continued from its beginning up to whole batches."""
        order = torch.randperm(len(self.labels), generator=draw)
        return order.repeat(-(-len(self) // len(order)))[: len(self)]
