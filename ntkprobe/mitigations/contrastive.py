"""The logits processor of the contrastive methods, which runs a second branch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import LongTensor, Tensor, nn
from transformers import LogitsProcessor

from ..errors import UserError
from ..models.architecture import Before, head
from ..models.generation import try_left_padding
from .branches import Branch
from .joint_pass import RowwiseHead
from .system_messages import Rows, SystemMessage, real_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Combine = Callable[[Tensor, Tensor], Tensor]
"""(plain scores, the branch's logits) → new scores, all `[batch, vocab]`."""

Mix = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(plain scores, the branch's logits, the tokens chosen last or None at first) → new scores."""

NORMALISED = 1e-4  # |log Σ exp| of log-probabilities, which float32 leaves at some 1e-6


def stateless(combine: Combine) -> Callable[[], Mix]:
    """Return the factory of a formula without state."""
    return lambda: lambda plain, other, chosen: combine(plain, other)


class ContrastiveProcessor(LogitsProcessor):
    """Combines the scores of each step with those of a second branch by a method's formula.

    Args:
        tokenizer: its padding token is taken for padding where `begin` was not called.
        open_branch: makes a branch from the prompts of a batch, without padding.
        mixing: makes the formula of one batch, which may have state.
        steps: how many tokens are changed; None for all. The branch is dropped after them.
    """

    def __init__(
        self,
        tokenizer: Any,
        open_branch: Callable[[Rows], Branch],
        mixing: Callable[[], Mix],
        steps: int | None = None,
    ) -> None:
        self.tokenizer, self.open_branch = tokenizer, open_branch
        self.mixing, self.steps = mixing, steps
        self.mask: Tensor | None = None
        self.sequence: _Generation | None = None
        self.own: Any = None
        self.joint = False

    def begin(self, attention_mask: Int[Tensor, "batch prompt"]) -> None:
        """Reset the state; the next call has the prompts that this mask belongs to."""
        self.sequence, self.mask = None, attention_mask

    def __call__(self, input_ids: LongTensor, scores: Any) -> Any:
        """Return the scores of the next token, [batch, vocab]; under beam search a `UserError`."""
        if self.steps == 0:
            return scores
        if self.sequence is None or not self.sequence.continues_with(input_ids):
            self.sequence = self._started(input_ids, scores)
        sequence = self.sequence
        sequence.ids = input_ids
        if self._ended(input_ids.shape[1]):
            sequence.branch = None  # its cache is no longer needed
        if sequence.branch is None:
            return scores
        first = input_ids.shape[1] == sequence.width
        chosen = input_ids[:, :0] if first else input_ids[:, -1:]
        other = _as_wide(sequence.branch.logits(chosen).to(scores), scores.shape[1])
        return sequence.mix(scores, other, None if first else input_ids[:, -1])

    def hooks(self, model: Any) -> list[tuple[nn.Module, Any]]:
        """Return hooks by which a branch of the same model shares the passes of the plain one.

        Without them the branch has passes of its own.
        """
        self.own = model
        owner = model.get_base_model() if hasattr(model, "get_base_model") else model
        found: list[tuple[nn.Module, Any]] = [
            (owner, Before(self._before)),
            (owner, self._behind),
        ]
        if (matrix := head(owner)) is not None:
            rows = RowwiseHead()
            found += [(matrix, Before(self._if_joint(rows.before)))]
            found += [(matrix, self._if_joint(rows.behind))]
        return found

    def _if_joint(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return a hook that is one only in a pass over both branches."""
        return lambda *given: hook(*given) if self.joint else None

    def _before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        self.joint = False  # a pass that failed, as for lack of memory, was never ended
        sequence = self.sequence
        if sequence is None or sequence.branch is None or args:
            return None
        if sequence.branch.model is not self.own or self._ended(sequence.ids.shape[1] + 1):
            return None
        changed = sequence.branch.join(kwargs, sequence.ids.shape[1] + 1)
        self.joint = changed is not None
        return None if changed is None else ((), changed)

    def _behind(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.joint:
            return None
        self.joint = False
        assert self.sequence is not None and self.sequence.branch is not None
        return self.sequence.branch.part(output)

    def _ended(self, width: int) -> bool:
        """Return whether no more tokens are changed once the ids have this width."""
        assert self.sequence is not None
        return self.steps is not None and width - self.sequence.width >= self.steps

    def _started(self, input_ids: Tensor, scores: Tensor) -> "_Generation":
        require_no_beams(scores)
        rows = real_rows(self.tokenizer, input_ids, self.mask)
        self.mask = self.sequence = None
        branch = self.open_branch(rows)
        if branch.model is self.own:  # both branches will share a pass
            try_left_padding(self.own, [*rows, *branch.prompts])
        return _Generation(input_ids.shape[1], input_ids, branch, self.mixing())


@dataclass
class _Generation:
    """State of one batch: the width of its prompts, its ids so far, its branch and formula."""

    width: int
    ids: Tensor
    branch: Branch | None
    mix: Mix

    def continues_with(self, input_ids: Tensor) -> bool:
        """Return whether these are the last call's ids with one more column."""
        rows, seen = self.ids.shape
        if input_ids.shape[0] != rows or input_ids.shape[1] != seen + 1:
            return False
        return torch.equal(input_ids[:, :-1], self.ids)


def _as_wide(logits: Tensor, words: int) -> Tensor:
    """Return logits over so many tokens: models of a family pad their vocabularies differently."""
    missing = words - logits.shape[1]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing else logits


def require_no_beams(scores: Float[Tensor, "batch vocab"]) -> None:
    """Refuse beam search, which reorders rows and hands on log-probabilities.

    Args:
        scores: of the first token.

    Raises:
        UserError: if every row is normalised, as no model's logits are.
    """
    if bool((scores.logsumexp(-1).abs() < NORMALISED).all()):
        raise UserError(
            "a decoding method cannot follow beam search, which reorders its rows: generate "
            "greedily or by sampling, with num_beams=1"
        )


def prompted_processor(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    system: str,
    template: str,
    combine: Combine,
    steps: int | None = None,
    place: str = "system",
) -> ContrastiveProcessor:
    """Return a processor that combines each token's scores with those under a system message.

    Args:
        model: of both branches, with its adapter if it has one.
        tokenizer: its tokenizer.
        system: the message.
        template: what the prompts are written with.
        combine: the method's formula.
        steps: how many tokens it changes; None for all.
        place: of the message, one of `_prompts.PLACES`.
    """
    message = SystemMessage.of(tokenizer, system, template, place)

    def open_branch(rows: Rows) -> Branch:
        return Branch(model, message.put_into(rows))

    return ContrastiveProcessor(tokenizer, open_branch, stateless(combine), steps)
