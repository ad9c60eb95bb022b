"""All phrases after a prompt in one forward pass: the prompt, then the trie of the phrases.

The phrases share the prompt and many of their beginnings. A node of the trie is such a beginning;
it attends to the prompt and to its own ancestors only, at the position that it would have in the
text. The distribution at a node gives the probabilities of all phrases' next tokens there, so that
the last token of a phrase is read and never run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ..models.batching import LengthRule, forgetting_lengths, together
from ..models.generation import Ids, input_device, left_padded, require_numbers
from ..models.masks import additive_masks

AT_A_TIME = 8  # nodes whose distributions are summed together


@dataclass(frozen=True)
class PhraseTrie:
    """The beginnings of phrases, each once; node 0 is the empty one, the end of the prompt.

    Attributes:
        nodes: token ids from the first on; parents stand before their children.
        steps: for each phrase, the (node, next token) pairs whose probabilities it is made of.
    """

    nodes: tuple[tuple[int, ...], ...]
    steps: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, phrase_ids: Sequence[Sequence[int]]) -> "PhraseTrie":
        """Return the trie of phrases."""
        numbers: dict[tuple[int, ...], int] = {(): 0}
        steps = []
        for ids in map(tuple, phrase_ids):
            beginnings = [ids[:t] for t in range(len(ids))]
            nodes = [numbers.setdefault(each, len(numbers)) for each in beginnings]
            steps.append(tuple(zip(nodes, ids, strict=True)))
        return cls(tuple(numbers), tuple(steps))

    @cached_property
    def follow(self) -> tuple[tuple[tuple[int, int | None, list[int]], ...], ...]:
        """By node: each next token, the node it leads to or None, and the phrases it ends."""
        numbers = {node: number for number, node in enumerate(self.nodes)}
        found: list[dict[int, list[int]]] = [{} for _ in self.nodes]
        for phrase, steps in enumerate(self.steps):
            for node, token in steps:
                found[node].setdefault(token, [])
            if steps:
                found[steps[-1][0]][steps[-1][1]].append(phrase)
        return tuple(
            tuple((token, numbers.get((*node, token)), ends) for token, ends in each.items())
            for node, each in zip(self.nodes, found, strict=True)
        )

    @cached_property
    def ancestors(self) -> tuple[tuple[int, ...], ...]:
        """By node: the nodes above it, the root left out."""
        numbers = {node: number for number, node in enumerate(self.nodes)}
        return tuple(
            tuple(numbers[node[:length]] for length in range(1, len(node))) for node in self.nodes
        )

    @property
    def depth(self) -> int:
        """How many tokens the longest beginning has."""
        return max(map(len, self.nodes))

    def down_to(self, depth: int) -> "PhraseTrie":
        """Return the nodes of at most so many tokens; no phrases are read off them."""
        return PhraseTrie(tuple(node for node in self.nodes if len(node) <= depth), ())

    @property
    def descent(self) -> Bool[Tensor, "nodes nodes"]:
        """Whether each node (row) is, or descends from, each node (column); the root left out."""
        nodes = self.nodes[1:]
        rows = [[node[: len(other)] == other for other in nodes] for node in nodes]
        return torch.tensor(rows, dtype=torch.bool).reshape(len(nodes), len(nodes))


@torch.no_grad()
def score_by_trie(
    model: Any,
    input_ids: Sequence[Ids],
    trie: PhraseTrie,
    rows: Sequence[int] | None = None,
) -> Float64[Tensor, "prompts phrases"]:
    """Return what `trie_scores` does, as numbers alone."""
    return trie_scores(model, input_ids, trie, rows)


def trie_scores(
    model: Any,
    input_ids: Sequence[Ids],
    trie: PhraseTrie,
    rows: Sequence[int] | None = None,
) -> Float64[Tensor, "prompts phrases"]:
    """Return log P(phrase | prompt), differentiably, from one forward pass over a batch of prompts.

    There are more passes where a model computes texts of different lengths differently: each
    prompt has the numbers that it has alone, each token those of the text before it (`batching`).

    Args:
        model: a causal language model in evaluation mode that obeys a 4-D mask and position ids.
        input_ids: encoded prompts, of any lengths.
        trie: of the phrases.
        rows: the prompts' numbers, for messages.

    Returns:
        Natural logarithms, float64.
    """
    numbers = list(range(len(input_ids)) if rows is None else rows)
    groups = together(model, input_ids, new_tokens=trie.depth)
    found = [
        _group_scores(model, [input_ids[row] for row in each], trie, [numbers[r] for r in each])
        for each in groups
    ]
    places = torch.tensor([row for each in groups for row in each]).argsort()
    return found[0] if len(found) == 1 else torch.cat(found)[places]


def _group_scores(
    model: Any, input_ids: Sequence[Ids], trie: PhraseTrie, rows: Sequence[int]
) -> Float64[Tensor, "prompts phrases"]:
    """Return the scores of prompts that may share a pass.

    One pass, or one for each run of depths at which the model computes alike: in it are the nodes
    down to the last of them, and those of the run are read.
    """
    spans = LengthRule.of(model).spans(len(input_ids[0]), trie.depth)
    with forgetting_lengths(model):
        if len(spans) == 1:
            return _read(_node_logits(model, input_ids, trie), trie, rows)
        logits: dict[tuple[int, ...], Tensor] = {}
        for first, last in spans:
            part = trie.down_to(last)
            found = _node_logits(model, input_ids, part).unbind(1)
            pairs = zip(part.nodes, found, strict=True)
            logits |= {node: z for node, z in pairs if len(node) >= first}
    return _read(torch.stack([logits[node] for node in trie.nodes], 1), trie, rows)


def _node_logits(
    model: Any, input_ids: Sequence[Ids], trie: PhraseTrie
) -> Float[Tensor, "batch nodes vocab"]:
    """Return the logits at every node of the trie, behind each prompt, from one pass."""
    device = input_device(model)
    prompts, real = left_padded(input_ids, device=device)
    branches = torch.tensor([node[-1] for node in trie.nodes[1:]], dtype=torch.long, device=device)
    depths = torch.tensor([len(node) for node in trie.nodes[1:]], dtype=torch.long, device=device)
    positions = torch.cat([real.cumsum(-1) - 1, real.sum(-1, keepdim=True) - 1 + depths], 1)
    logits = model(
        input_ids=torch.cat([prompts, branches.expand(len(prompts), -1)], 1),
        attention_mask=additive_masks(
            model, _allowed(real.bool(), trie.descent.to(device)), positions, positions
        ),
        position_ids=positions.clamp(min=0),
        use_cache=False,
        logits_to_keep=len(trie.nodes),
    ).logits
    return logits[:, -len(trie.nodes) :]


def _allowed(
    real: Bool[Tensor, "batch prompt"], descent: Bool[Tensor, "nodes nodes"]
) -> Bool[Tensor, "batch seq seq"]:
    """Return who attends to whom: prompts causally, nodes to the prompt and their ancestors.

    Args:
        real: which of the prompts' tokens are no padding.
        descent: the trie's.

    Returns:
        Rows attend to columns; everyone attends to itself, padding to nothing else.
    """
    batch, prompt = real.shape
    causal = torch.ones(prompt, prompt, dtype=torch.bool, device=real.device).tril()
    nothing = torch.zeros(batch, prompt, len(descent), dtype=torch.bool, device=real.device)
    above = torch.cat([causal & real[:, None], nothing], 2)
    below = torch.cat(
        [real[:, None].expand(-1, len(descent), -1), descent.expand(batch, -1, -1)], 2
    )
    itself = torch.eye(prompt + len(descent), dtype=torch.bool, device=real.device)
    return torch.cat([above, below], 1) | itself


def _read(
    logits: Float[Tensor, "batch nodes vocab"], trie: PhraseTrie, rows: Sequence[int]
) -> Float64[Tensor, "batch phrases"]:
    total = torch.stack([log_sums(row) for row in logits])
    require_numbers(~total.isfinite().all(-1), rows)
    scores = []
    for steps in trie.steps:
        if not steps:
            scores.append(torch.full((len(logits),), -torch.inf, dtype=torch.float64))
            continue
        nodes, tokens = (list(each) for each in zip(*steps, strict=True))
        scores.append((logits[:, nodes, tokens].double() - total[:, nodes]).sum(-1).cpu())
    return torch.stack(scores, -1)


def log_sums(logits: Float[Tensor, "nodes vocab"]) -> Float64[Tensor, " nodes"]:
    """Return log Σ exp over the vocabulary: terms in the model's precision, their sum in float64.

    Terms are at most 1, so that each is off by some 1e-7 of itself and so is their sum, however
    large the vocabulary. A few nodes at a time stay in the processor's cache, and no copy of a
    whole batch's logits is held.
    """
    sums = []
    for part in logits.split(AT_A_TIME):
        values = part if part.dtype == torch.float64 else part.float()
        largest = values.amax(-1, keepdim=True)
        terms = (values - largest).exp_().sum(-1, dtype=torch.float64)
        sums.append(terms.log() + largest[:, 0].double())
    return torch.cat(sums)
