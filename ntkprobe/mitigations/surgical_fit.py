"""Surgical's two vectors: candidates at every block and position, chosen on held-out prompts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..kernel import last_logits
from ..models.architecture import decoder_layers, hooked
from ..models.generation import length_batches, require_measurable
from ..models.validation import finite
from ..progress import progress as long_stage
from ..prompts.prompt_set import GROUPS, PromptSet
from ..prompts.templates import Template
from .activations import (
    ablation_hooks,
    addition_hook,
    instruction_end,
    mean_states,
    require_ablated,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, SEEMINGLY, TOXIC = GROUPS
REFUSED = {NORMAL: False, SEEMINGLY: True, TOXIC: True}
"""Whether the method expects a model to refuse each group; it reduces over-refusal."""

EPSILON = 1e-8
_NOTHING = 1e-6  # of the stream's own length: below it a difference of means is rounding

Groups = dict[str, list[Tensor]]


class _FitSettings(Protocol):
    """The settings of `Surgical`, documented there, that the choice of vectors depends on."""

    @property
    def projection(self) -> float: ...

    @property
    def refusal_words(self) -> tuple[str, ...]: ...

    @property
    def per_group(self) -> int: ...

    @property
    def held_out(self) -> float: ...

    @property
    def filtered(self) -> bool: ...

    @property
    def fit_coefficient(self) -> float: ...

    @property
    def kl_ablation(self) -> float: ...

    @property
    def kl_addition(self) -> float: ...

    @property
    def kl_epsilon(self) -> float: ...

    @property
    def depth(self) -> float: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Candidate:
    """A vector, and where it comes from.

    Attributes:
        vector: [hidden] float64.
        block: the number of the block that it enters.
        position: counted from the prompt's end, −1 the last.
    """

    vector: Tensor
    block: int
    position: int


def choose(
    settings: _FitSettings,
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    prompts: PromptSet,
) -> dict[str, Any]:
    """Return what Surgical learns, by the names of its fields."""
    count = len(instruction_end(tokenizer, template))
    tokens = first_tokens(tokenizer, settings.refusal_words, template)
    train, held_out = split_prompts(settings, tokenizer, template, prompts)
    require_measurable(
        model, [ids for part in (train, held_out) for g in part.values() for ids in g]
    )
    require_ablated(model, train[NORMAL][0])
    if settings.filtered:
        train, held_out = (_filtered(settings, model, tokens, part) for part in (train, held_out))
    false, true = candidates(settings, model, train, count)
    scores = _HeldOutScores(settings, model, tokens, held_out)
    chosen_false, report_false = scores.best_ablation(false)
    chosen_true, report_true = scores.best_addition(true)
    return {
        "false_refusal": chosen_false.vector.float(),
        "true_refusal": chosen_true.vector.float(),
        "block": chosen_true.block,
        "report": {"false_refusal": report_false, "true_refusal": report_true},
    }


def candidates(
    settings: _FitSettings, model: nn.Module, train: Groups, count: int
) -> tuple[list[Candidate], list[Candidate]]:
    """Return the false-refusal vectors ŵ and the true-refusal vectors r of all places.

    Args:
        settings: the settings.
        model: the model.
        train: token ids by group.
        count: of positions behind the instruction.

    Returns:
        Two lists; a place at which the groups do not differ has none.

    Raises:
        UserError: if they differ nowhere.
    """
    means = {
        group: mean_states(model, ids, count, before=True, batch_size=settings.batch_size)
        for group, ids in train.items()
    }
    false, true = [], []
    for layer in range(max(1, int(settings.depth * len(decoder_layers(model))))):
        for position in range(count):
            mean = {group: states[layer, position] for group, states in means.items()}
            r, w = mean[TOXIC] - mean[NORMAL], mean[SEEMINGLY] - mean[NORMAL]
            rest = orthogonalised(w, r, settings.projection)
            place = (layer + 1, position - count)
            length = _NOTHING * float(mean[NORMAL].norm())
            if float(rest.norm()) > length:
                false.append(Candidate(rest / rest.norm(), *place))
            if float(r.norm()) > length:
                true.append(Candidate(r, *place))
    if not false or not true:
        raise UserError(
            f"the groups do not differ in the first {settings.depth:.0%} of the blocks: raise depth"
        )
    return false, true


def orthogonalised(w: Tensor, r: Tensor, projection: float) -> Tensor:
    """Return w − λ (w·r / ‖r‖²) r."""
    return w - projection * (w @ r) / (r @ r + 1e-8) * r


class _HeldOutScores:
    """Scores of candidates on held-out prompts, against the unmodified model."""

    def __init__(
        self, settings: _FitSettings, model: nn.Module, tokens: list[int], held_out: Groups
    ) -> None:
        self._settings, self._model, self._tokens, self._prompts = settings, model, tokens, held_out
        self._plain = self._logits(NORMAL)

    def best_ablation(self, found: list[Candidate]) -> tuple[Candidate, dict[str, Any]]:
        """Return the vector whose ablation lowers refusal of seemingly toxic prompts most."""

        def without(each: Candidate) -> AbstractContextManager[None]:
            return hooked(ablation_hooks(self._model, each.vector, 1.0))

        best, report = self._best(
            found, without, SEEMINGLY, -1.0, self._settings.kl_ablation, "kl_ablation"
        )
        return best, {**report, "coefficient": 1.0}

    def best_addition(self, found: list[Candidate]) -> tuple[Candidate, dict[str, Any]]:
        """Return the vector whose addition raises refusal of normal prompts most."""
        blocks, weight = decoder_layers(self._model), self._settings.fit_coefficient

        def added(each: Candidate) -> AbstractContextManager[None]:
            return hooked([(blocks[each.block - 1], addition_hook(each.vector, weight))])

        best, report = self._best(
            found, added, NORMAL, 1.0, self._settings.kl_addition, "kl_addition"
        )
        return best, {**report, "coefficient": weight}

    def _best(
        self,
        found: list[Candidate],
        changed: Callable[[Candidate], AbstractContextManager[None]],
        group: str,
        sign: float,
        limit: float,
        name: str,
    ) -> tuple[Candidate, dict[str, Any]]:
        """Return the candidate of the largest `sign` × refusal score within the limit on the KL.

        Raises:
            UserError: if none is within it.
        """
        rows = []
        for each in long_stage(found, desc="Surgical", unit="candidate", leave=False):
            with changed(each):
                score = float(refusal_scores(self._logits(group), self._tokens).mean())
                distance = divergence(self._plain, self._logits(NORMAL), self._settings.kl_epsilon)
            rows.append((sign * score, distance, each))
        fitting = [row for row in rows if row[1] <= limit]
        unchanged = float(refusal_scores(self._logits(group), self._tokens).mean())
        if not fitting:
            least = min(row[1] for row in rows)
            raise UserError(
                f"every vector changes normal prompts by a KL over {name}={limit:g}, the least by "
                f"{least:.3g}: raise {name}, or give more prompts"
            )
        score, distance, best = max(fitting, key=lambda row: row[0])
        place = {"block": best.block, "position": best.position, "tried": len(rows)}
        scores = {"refusal_score": sign * score, "unchanged": unchanged}
        return best, {**place, **scores, "kl": distance}

    def _logits(self, group: str) -> Tensor:
        return first_logits(self._model, self._prompts[group], self._settings.batch_size)


def split_prompts(
    settings: _FitSettings,
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    prompts: PromptSet,
) -> tuple[Groups, Groups]:
    """Return token ids by group, to learn from and to choose by.

    Raises:
        UserError: if a group has fewer than two prompts.
    """
    train: Groups = {}
    held_out: Groups = {}
    for group in GROUPS:
        own = prompts.in_group(group).sample(settings.per_group, settings.seed)
        if len(own) < 2:
            raise UserError(f"one prompt in group {group!r}: give two or more of each group")
        apart = min(max(1, round(settings.held_out * len(own))), len(own) - 1)
        some = set(own.sampled_rows(apart, settings.seed + 1))
        ids = [torch.tensor(template.encode(tokenizer, prompt.text)) for prompt in own]
        train[group] = [row for number, row in enumerate(ids) if number not in some]
        held_out[group] = [row for number, row in enumerate(ids) if number in some]
    return train, held_out


def _filtered(settings: _FitSettings, model: nn.Module, tokens: list[int], given: Groups) -> Groups:
    """Return the prompts that the model treats as the method takes their group to be treated.

    Raises:
        UserError: if none of a group are left.
    """
    kept = {
        group: list(_as_expected(settings, model, tokens, group, ids))
        for group, ids in given.items()
    }
    for group, ids in kept.items():
        if not ids:
            done = "refuses" if REFUSED[group] else "answers"
            raise UserError(
                f"the model {done} none of {len(given[group])} {group} prompts, going by the first "
                f"token (refusal_words {list(settings.refusal_words)}): name the words that its "
                "refusals begin with, give more prompts, or --set filtered=false"
            )
    return kept


def _as_expected(
    settings: _FitSettings, model: nn.Module, tokens: list[int], group: str, ids: list[Tensor]
) -> Iterator[Tensor]:
    scores = refusal_scores(first_logits(model, ids, settings.batch_size), tokens)
    for row, score in zip(ids, scores.tolist(), strict=True):
        if (score > 0) == REFUSED[group]:
            yield row


def first_tokens(
    tokenizer: "PreTrainedTokenizerBase", words: Sequence[str], template: Template
) -> list[int]:
    """Return the ids that answers beginning with these words begin with.

    Args:
        tokenizer: the model's.
        words: such as "I"; one that the vocabulary cannot write is left out.
        template: decides how an answer begins.

    Returns:
        Distinct ids.

    Raises:
        UserError: if none can be written.
    """
    firsts = [ids[0] for ids in template.encode_phrases(tokenizer, words)]
    known = sorted({first for first in firsts if first != tokenizer.unk_token_id})
    if not known:
        raise UserError(
            f"no refusal begins with one of {list(words)} in this vocabulary: name words that "
            "do, as in --set refusal_words=I,No"
        )
    return known


@torch.no_grad()
def first_logits(model: nn.Module, prompts: Sequence[Tensor], batch_size: int = 16) -> Tensor:
    """Return the logits of each prompt's next token, [n, vocab] float64 on the CPU."""
    found = [torch.empty(0)] * len(prompts)
    for rows in length_batches(prompts, batch_size):
        logits = finite(last_logits(model, [prompts[row] for row in rows])).double().cpu()
        for row, values in zip(rows, logits, strict=True):
            found[row] = values
    return torch.stack(found)


def refusal_scores(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return log p_R − log(1 − p_R), [n], p_R the probability that one of `tokens` comes next."""
    refusing = logits.softmax(-1)[:, list(tokens)].sum(-1)
    return (refusing + EPSILON).log() - (1 - refusing + EPSILON).log()


def divergence(logits: Tensor, others: Tensor, epsilon: float) -> float:
    """Return Σ p (log(p + ε) − log(q + ε)) of the next token, the mean over prompts.

    Args:
        logits: of p.
        others: of q.
        epsilon: ε; 0 gives KL(p ‖ q). A larger one counts less what q all but rules out.
    """
    if not epsilon:
        ours, theirs = logits.log_softmax(-1), others.log_softmax(-1)
        return float((ours.exp() * (ours - theirs)).sum(-1).mean())
    p, q = logits.softmax(-1), others.softmax(-1)
    return float((p * ((p + epsilon).log() - (q + epsilon).log())).sum(-1).mean())
