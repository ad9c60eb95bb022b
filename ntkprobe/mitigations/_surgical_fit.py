"""Surgical's two vectors: candidates at every block and position, chosen on held-out prompts."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import UserError
from ..models.architecture import decoder_layers, hooked
from ..models.generation import require_measurable
from ..prompts.prompt_set import GROUPS, PromptSet
from ..prompts.templates import Template
from ._positions import instruction_end
from ._refusal_scores import divergence, first_logits, first_tokens, refusal_scores
from ._states import mean_states

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .surgical import Surgical

NORMAL, SEEMINGLY, TOXIC = GROUPS
REFUSED = {NORMAL: False, SEEMINGLY: True, TOXIC: True}
"""What the method takes a model to do with each group: over-refusal is what it is to mend."""

_NOTHING = 1e-6  # of the stream's own length: below it a difference of means is rounding

Groups = dict[str, list[Tensor]]


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
    how: "Surgical",
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    prompts: PromptSet,
) -> dict[str, Any]:
    """Return what Surgical learns, by the names of its fields."""
    count = len(instruction_end(tokenizer, template))
    tokens = first_tokens(tokenizer, how.refusal_words, template)
    train, held_out = _split(how, tokenizer, template, prompts)
    require_measurable(
        model, [ids for part in (train, held_out) for g in part.values() for ids in g]
    )
    if how.filtered:
        train, held_out = (_filtered(how, model, tokens, part) for part in (train, held_out))
    false, true = candidates(how, model, train, count)
    trial = _Trial(how, model, tokens, held_out)
    chosen_false, said_false = trial.best_ablation(false)
    chosen_true, said_true = trial.best_addition(true)
    return {
        "false_refusal": chosen_false.vector.float(),
        "true_refusal": chosen_true.vector.float(),
        "block": chosen_true.block,
        "report": {"false_refusal": said_false, "true_refusal": said_true},
    }


def candidates(
    how: "Surgical", model: nn.Module, train: Groups, count: int
) -> tuple[list[Candidate], list[Candidate]]:
    """Return the false-refusal vectors ŵ and the true-refusal vectors r of all places.

    Args:
        how: the settings.
        model: the model.
        train: token ids by group.
        count: of positions behind the instruction.

    Returns:
        Two lists; a place at which the groups do not differ has none.

    Raises:
        UserError: if they differ nowhere.
    """
    means = {
        group: mean_states(model, ids, count, before=True, batch_size=how.batch_size)
        for group, ids in train.items()
    }
    false, true = [], []
    for layer in range(max(1, int(how.depth * len(decoder_layers(model))))):
        for position in range(count):
            mean = {group: states[layer, position] for group, states in means.items()}
            r, w = mean[TOXIC] - mean[NORMAL], mean[SEEMINGLY] - mean[NORMAL]
            rest = orthogonalised(w, r, how.projection)
            place = (layer + 1, position - count)
            length = _NOTHING * float(mean[NORMAL].norm())
            if float(rest.norm()) > length:
                false.append(Candidate(rest / rest.norm(), *place))
            if float(r.norm()) > length:
                true.append(Candidate(r, *place))
    if not false or not true:
        raise UserError(
            f"the groups do not differ in the first {how.depth:.0%} of the blocks: raise depth"
        )
    return false, true


def orthogonalised(w: Tensor, r: Tensor, projection: float) -> Tensor:
    """Return w − λ (w·r / ‖r‖²) r."""
    return w - projection * (w @ r) / (r @ r + 1e-8) * r


class _Trial:
    """Candidates on held-out prompts, against the model as it is."""

    def __init__(
        self, how: "Surgical", model: nn.Module, tokens: list[int], held_out: Groups
    ) -> None:
        self._how, self._model, self._tokens, self._prompts = how, model, tokens, held_out
        self._plain = self._logits(NORMAL)

    def best_ablation(self, found: list[Candidate]) -> tuple[Candidate, dict[str, Any]]:
        """Return the vector without which seemingly toxic prompts are refused least."""
        from .surgical import ablating

        def without(each: Candidate) -> AbstractContextManager[None]:
            return hooked(ablating(self._model, each.vector, 1.0))

        best, said = self._best(
            found, without, SEEMINGLY, -1.0, self._how.kl_ablation, "kl_ablation"
        )
        return best, {**said, "coefficient": 1.0}

    def best_addition(self, found: list[Candidate]) -> tuple[Candidate, dict[str, Any]]:
        """Return the vector with which normal prompts are refused most."""
        from .surgical import adding

        blocks, weight = decoder_layers(self._model), self._how.tried_at

        def added(each: Candidate) -> AbstractContextManager[None]:
            return hooked([(blocks[each.block - 1], adding(each.vector, weight))])

        best, said = self._best(found, added, NORMAL, 1.0, self._how.kl_addition, "kl_addition")
        return best, {**said, "coefficient": weight}

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
        for each in tqdm(found, desc="candidates", leave=False, disable=None):
            with changed(each):
                score = float(refusal_scores(self._logits(group), self._tokens).mean())
                distance = divergence(self._plain, self._logits(NORMAL), self._how.kl_epsilon)
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
        said = {"block": best.block, "position": best.position, "tried": len(rows)}
        scores = {"refusal_score": sign * score, "unchanged": unchanged}
        return best, {**said, **scores, "kl": distance}

    def _logits(self, group: str) -> Tensor:
        return first_logits(self._model, self._prompts[group], self._how.batch_size)


def _split(
    how: "Surgical",
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
        own = prompts.in_group(group).sample(how.per_group, how.seed)
        if len(own) < 2:
            raise UserError(f"one prompt in group {group!r}: give two or more of each group")
        apart = min(max(1, round(how.held_out * len(own))), len(own) - 1)
        some = set(own.sampled_rows(apart, how.seed + 1))
        ids = [torch.tensor(template.encode(tokenizer, prompt.text)) for prompt in own]
        train[group] = [row for number, row in enumerate(ids) if number not in some]
        held_out[group] = [row for number, row in enumerate(ids) if number in some]
    return train, held_out


def _filtered(how: "Surgical", model: nn.Module, tokens: list[int], given: Groups) -> Groups:
    """Return the prompts that the model treats as the method takes their group to be treated.

    Raises:
        UserError: if none of a group are left.
    """
    kept = {
        group: list(_as_expected(how, model, tokens, group, ids)) for group, ids in given.items()
    }
    for group, ids in kept.items():
        if not ids:
            done = "refuses" if REFUSED[group] else "answers"
            raise UserError(
                f"the model {done} none of {len(given[group])} {group} prompts, going by the first "
                f"token (refusal_words {list(how.refusal_words)}): name the words that its "
                "refusals begin with, give more prompts, or --set filtered=false"
            )
    return kept


def _as_expected(
    how: "Surgical", model: nn.Module, tokens: list[int], group: str, ids: list[Tensor]
) -> Iterator[Tensor]:
    scores = refusal_scores(first_logits(model, ids, how.batch_size), tokens)
    for row, score in zip(ids, scores.tolist(), strict=True):
        if (score > 0) == REFUSED[group]:
            yield row
