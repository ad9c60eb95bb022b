"""Training pairs and refusals as samples that any package of attribution can take.

A prompt and all phrases of refusal are one row: every phrase stands behind the prompt's tokens, at
the positions that it would have alone, and sees the prompt and itself only. One row is one sample,
so that packages that take a batch's first axis for its samples take log P(refuse) too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Sample = dict[str, Tensor]
"""`ids`, `positions` `[t]`, `mask` `[1, t, t]`, `source`, `token` `[s]`, `member` `[s, p]`."""


class Readings(nn.Module):
    """The log-probability of what each sample's tokens say.

    Args:
        model: a causal language model with eager attention, in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor,
        source: Tensor,
        token: Tensor,
        member: Tensor,
        sampled: bool = False,
    ) -> Tensor:
        """Return log Σ_p Π π(token) of each sample.

        Args:
            ids: `[b, t]`.
            positions: `[b, t]`.
            mask: `[b, 1, t, t]`, 0 where a place is seen and very negative where not.
            source: the places that predict, `[b, s]`.
            token: what they are to predict, `[b, s]`.
            member: which of p phrases each belongs to, `[b, s, p]`, zeros for padding.
            sampled: predict tokens drawn from the model instead.
        """
        # A PEFT model's own forward takes hold of things that vmap cannot; what is below has LoRA.
        logits = self.model.base_model.model(
            input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False
        ).logits
        places = source[..., None].expand(-1, -1, logits.shape[-1])
        log_pi = logits.gather(1, places).log_softmax(-1)
        if sampled:
            drawn = torch.distributions.Categorical(logits=log_pi.detach()).sample()
            token = drawn
        said = log_pi.gather(2, token[..., None])[..., 0]
        return (said[..., None] * member).sum(1).logsumexp(-1)


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    positions: list[int]
    sees: Tensor
    source: list[int]
    token: list[int]
    phrase: list[int]


def pair_row(ids: Sequence[int], labels: Sequence[int]) -> _Row:
    """Return a training pair as a row."""
    t = len(ids)
    learnt = [place for place in range(1, t) if labels[place] >= 0]
    sees = torch.ones(t, t, dtype=torch.bool).tril()
    source, token = [p - 1 for p in learnt], [labels[p] for p in learnt]
    return _Row(list(ids), list(range(t)), sees, source, token, [0] * len(learnt))


def refusal_row(prompt: Sequence[int], phrases: Sequence[Sequence[int]]) -> _Row:
    """Return a prompt with all phrases behind it as a row."""
    ids, positions = list(prompt), list(range(len(prompt)))
    source, token, phrase, owner = [], [], [], [-1] * len(prompt)
    for number, each in enumerate(phrases):
        for place, one in enumerate(each):
            source.append(len(prompt) - 1 if place == 0 else len(ids) - 1)
            token.append(one)
            phrase.append(number)
            ids.append(one)
            positions.append(len(prompt) + place)
            owner.append(number)
    who = torch.tensor(owner)
    causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    sees = causal & ((who[None] == -1) | (who[None] == who[:, None]))
    return _Row(ids, positions, sees, source, token, phrase)


def samples(rows: Sequence[_Row]) -> list[Sample]:
    """Return rows padded to one length; the padding sees itself alone and is read nowhere."""
    t, s = max(len(row.ids) for row in rows), max(len(row.source) for row in rows)
    p = 1 + max(max(row.phrase) for row in rows)
    found = []
    for row in rows:
        more, rest = t - len(row.ids), s - len(row.source)
        sees = torch.eye(t, dtype=torch.bool)
        sees[: len(row.ids), : len(row.ids)] |= row.sees
        member = torch.zeros(s, p)
        member[torch.arange(len(row.phrase)), torch.tensor(row.phrase)] = 1
        found.append(
            {
                "ids": torch.tensor(row.ids + [0] * more),
                "positions": torch.tensor(row.positions + [0] * more),
                "mask": torch.zeros(t, t).masked_fill(~sees, -1e9)[None],
                "source": torch.tensor(row.source + [0] * rest),
                "token": torch.tensor(row.token + [0] * rest),
                "member": member,
            }
        )
    return found


def stacked(some: Sequence[Sample]) -> Sample:
    """Return samples as one batch."""
    return {name: torch.stack([one[name] for one in some]) for name in some[0]}
