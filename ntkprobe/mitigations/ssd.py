"""SSD, Wang et al., EMNLP 2025: mix in a small, safer draft model, more where the two disagree."""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..checkpoints import LoadSettings, load_model, load_tokenizer
from ..errors import UserError, require
from ..models.generation import input_device
from ..prompts.prompt_set import PromptSet
from .base import Decoding
from .branches import Branch
from .contrastive import ContrastiveProcessor
from .token_candidates import either_candidates, mixed_scores, shared_candidates

if TYPE_CHECKING:
    from transformers import LogitsProcessor, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Ssd(Decoding):
    """P = p + a (p_e − p), on few tokens while the models agree, on more once they do not.

    - *Intersection*, at first: a = α₁ on top-k(p) ∩ top-k(p_e) of the smallest k that gives C
      tokens; but p's best token alone where it is not among them.
    - *Union*: a = α₂ on top-C(p) ∪ top-C(p_e).

    After every g tokens a row chooses anew: union if less than a threshold of the last g were the
    draft's best token, else intersection. The same as before: the threshold falls by 0.1 and, in
    the intersection, α₁ by 0.15, to 0.3 at least. Another: both are reset.

    The draft sees the same token ids. It is run once for every token: the authors' speculation,
    three tokens ahead, gives the same answers and is a matter of speed alone.

    Attributes:
        draft: the folder of a small model with the same vocabulary; empty with both weights 0.
        alpha_shared: α₁. The authors' code defaults to 0.5, and its example has 0.3.
        alpha_either: α₂. The authors' code defaults to 0.5, and its example has 0.8.
        common: C.
        window: g.
        threshold: of the share that agrees; the authors take 0.5 for Llama 3.1.
    """

    draft: str = ""
    alpha_shared: float = 0.5
    alpha_either: float = 0.5
    common: int = 10
    window: int = 7
    threshold: float = 0.6

    source: ClassVar[str] = "SSD: Wang et al., EMNLP 2025"
    models: ClassVar[tuple[str, ...]] = ("draft",)

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        for name in ("alpha_shared", "alpha_either"):
            value = getattr(self, name)
            require(math.isfinite(value), f"{name}={value}: give a number, such as 0.5")
        require(self.common >= 1, f"common={self.common}: 1 or more tokens, such as 10")
        require(self.window >= 1, f"window={self.window}: 1 or more tokens, such as 7")
        require(0 <= self.threshold <= 1, f"threshold={self.threshold}: choose from 0 to 1")

    @property
    def neutral(self) -> bool:
        """Whether both weights are 0, so that scores are returned unchanged."""
        return self.alpha_shared == 0 == self.alpha_either

    def fit(
        self, model: nn.Module, tokenizer: "PreTrainedTokenizerBase", prompts: PromptSet
    ) -> Self:
        """Return the same with the draft's absolute path, after checking that it fits.

        A name on the hub stays as it is.
        """
        load_draft(self.draft, model, tokenizer)
        place = Path(self.draft)
        return replace(self, draft=str(place.absolute())) if place.exists() else self

    def logits_processor(
        self, model: Any, tokenizer: "PreTrainedTokenizerBase"
    ) -> "LogitsProcessor":
        """Return a processor whose second branch is the draft."""
        steps = 0 if self.neutral else None
        draft = model if self.neutral else load_draft(self.draft, model, tokenizer)
        return ContrastiveProcessor(
            tokenizer, partial(Branch, draft), partial(SsdState, self), steps
        )


class SsdState:
    """State of one batch: the mode of each row, and how often it took the draft's best token.

    Args:
        settings: the method.
    """

    def __init__(self, settings: Ssd) -> None:
        self.settings = settings
        self.matches: list[Tensor] = []
        self.united = self.threshold = self.alpha = self.expected = torch.empty(0)

    def __call__(
        self,
        plain: Float[Tensor, "batch vocab"],
        draft: Float[Tensor, "batch vocab"],
        chosen: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch vocab"]:
        """Return log P of the row's mode, −∞ outside of its tokens.

        Args:
            plain: logits, whose softmax is p.
            draft: the draft's, −∞ for a token that it does not have. Larger models of a family
                pad their vocabularies with such tokens; they are excluded from p.
            chosen: the tokens chosen from the last call's scores; None at first.
        """
        if chosen is None:
            self._begin(plain)
        else:
            self._observe(chosen)
        return self._mixed(plain.masked_fill(draft.isneginf(), -math.inf), draft)

    def _mixed(self, plain: Tensor, draft: Tensor) -> Tensor:
        self.expected = draft.argmax(-1)
        shared = shared_candidates(plain, draft, self.settings.common)
        best = torch.zeros_like(shared).scatter(-1, plain.argmax(-1, keepdim=True), True)
        shared = torch.where((best & shared).any(-1, keepdim=True), shared, best)
        either = either_candidates(plain, draft, self.settings.common)
        mode = self.united[:, None]
        weight = torch.where(mode, self.settings.alpha_either, self.alpha[:, None])
        return mixed_scores(plain, draft, weight, torch.where(mode, either, shared))

    def _begin(self, plain: Tensor) -> None:
        rows = len(plain)
        self.united = torch.zeros(rows, dtype=torch.bool, device=plain.device)
        self.threshold = plain.new_full((rows,), self.settings.threshold)
        self.alpha = plain.new_full((rows,), self.settings.alpha_shared)

    def _observe(self, chosen: Tensor) -> None:
        self.matches.append(chosen == self.expected)
        if len(self.matches) % self.settings.window:
            return
        share = torch.stack(self.matches[-self.settings.window :]).to(self.threshold).mean(0)
        unite = share < self.threshold
        same, tighter = unite == self.united, (unite == self.united) & ~unite
        lower = (self.threshold - 0.1).clamp(min=0)
        lower = torch.where(lower < 1e-6, 0.0, lower)
        self.threshold = torch.where(same, lower, self.settings.threshold)
        weaker = (self.alpha - 0.15).clamp(min=0.3)
        kept = torch.where(same, self.alpha, self.settings.alpha_shared)
        self.alpha = torch.where(tighter, weaker, kept)
        self.united = unite


def load_draft(name: str, model: Any, tokenizer: "PreTrainedTokenizerBase") -> Any:
    """Return the model in a folder, on the device and in the precision of another.

    Args:
        name: its folder, or a name on the hub.
        model: the model that it is contrasted with.
        tokenizer: that model's.

    Returns:
        A model in evaluation mode.

    Raises:
        UserError: if none is named, it cannot be loaded, or it has another vocabulary.
    """
    if not name:
        raise UserError("SSD has no draft: set draft to the folder of a small model")
    own = load_tokenizer(name, local=False).get_vocab()
    if own != tokenizer.get_vocab():
        raise UserError(
            f"the draft {Path(name).name} has another vocabulary ({len(own)} tokens; the model has "
            f"{len(tokenizer)}): choose a smaller model of the same family"
        )
    dtype = str(model.dtype).removeprefix("torch.")
    return load_model(name, LoadSettings(dtype=dtype, device=str(input_device(model))))
