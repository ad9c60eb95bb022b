"""Surgical: ablate the direction of false refusals from every layer, leave that of true ones.

r = mean(toxic) − mean(normal) and w = mean(seemingly toxic) − mean(normal) of what enters a block
at a position behind the instruction; w⊥ = w − λ (w·r / ‖r‖²) r, and ŵ = w⊥ / ‖w⊥‖. Of all blocks
and positions, the ŵ whose ablation lowers refusal of seemingly toxic prompts most is taken.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn

from ..errors import UserError, require
from ..models.architecture import Before, Hook, layer_output
from ..prompts.prompt_set import PromptSet
from ..prompts.templates import resolve_template
from .activations import ablation_hooks, addition_hook
from .base import Steering, identity, learned
from .surgical_fit import choose

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Surgical(Steering):
    """x ← x − c (x·ŵ) ŵ wherever the residual stream is written or read; x ← x + a r at one block.

    Prompts that the model treats unlike their group (toxic ones answered, others refused or not)
    teach nothing about refusal and are left out, unless `filtered` is off.

    Attributes:
        coefficient: c; 0 changes nothing.
        addition: a; the true-refusal vector is added, after the ablation, to what enters its block.
        projection: λ, how much of the true refusal is taken out of the false one.
        refusal_words: a refusal's first token is one of those that begin these.
        per_group: prompts of each group at most.
        held_out: the share of them that vectors are chosen by.
        filtered: whether to leave out prompts that the model treats unlike their group.
        scored_at: the coefficient at which true-refusal vectors are tried while fitting; 0 for
            `addition`, as the authors do, and where that is 0, too, for 1: adding nothing, none
            would be better than another.
        kl_ablation: on normal prompts, a false-refusal vector may change the next token so much.
        kl_addition: the same, for a true-refusal vector.
        kl_epsilon: added to both probabilities inside the logarithms of these KLs, as the authors
            do; 0 gives the KL itself, which is larger, and its limits stricter.
        depth: vectors come from blocks below this share of the model's.
        template: how prompts become tokens.
        batch_size: prompts at a time while fitting.
        seed: of the choice of prompts.
        false_refusal: ŵ, `[hidden]`.
        true_refusal: r, `[hidden]`.
        block: the number of the block that r is added before, counted from 1.
        report: where both were found, and how they scored.
    """

    coefficient: float = 1.0
    addition: float = 0.0
    projection: float = 1.0
    refusal_words: tuple[str, ...] = ("I", "As")
    per_group: int = 160
    held_out: float = 0.2
    filtered: bool = True
    scored_at: float = 0.0
    kl_ablation: float = 0.2
    kl_addition: float = 2.0
    kl_epsilon: float = 1e-6
    depth: float = 0.8
    template: str = "auto"
    batch_size: int = 16
    seed: int = 0
    false_refusal: Tensor | None = learned()
    true_refusal: Tensor | None = learned()
    block: int | None = learned()
    report: dict[str, Any] | None = learned()

    source: ClassVar[str] = "Wang et al., ICLR 2025 (arXiv 2410.03415), section 3"

    def __post_init__(self) -> None:
        for name in ("coefficient", "addition", "projection", "scored_at"):
            value = getattr(self, name)
            require(math.isfinite(value), f"{name}={value}: give a number, such as 0.5")
        for name in ("kl_ablation", "kl_addition"):
            value = getattr(self, name)
            require(not math.isnan(value), f"{name}={value}: give a number, such as 0.2")
        if not 0 < self.depth <= 1:
            raise UserError(f"depth is {self.depth}: give a share of the blocks, over 0, at most 1")
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out is {self.held_out}: give a share between 0 and 1")
        if not 0 <= self.kl_epsilon < 1:
            raise UserError(f"kl_epsilon is {self.kl_epsilon}: give 0, or 1e-6 as the authors do")

    @property
    def fit_coefficient(self) -> float:
        """The coefficient at which true-refusal vectors are tried while fitting."""
        return self.scored_at or self.addition or 1.0

    def fit(
        self, model: nn.Module, tokenizer: "PreTrainedTokenizerBase", prompts: PromptSet
    ) -> Self:
        """Return a copy with both vectors.

        Args:
            model: in evaluation mode.
            tokenizer: its tokenizer.
            prompts: of all three groups.

        Returns:
            A fitted copy; too few prompts, or vectors that all do harm, are a `UserError`.
        """
        template = resolve_template(tokenizer, self.template)
        found = choose(self, model, tokenizer, template, prompts)
        return replace(self, **found, fitted_on=identity(model))

    def hooks(self, model: nn.Module) -> Sequence[tuple[nn.Module, Hook | Before]]:
        """Return hooks on what enters each block, and on all that a block adds to the stream.

        Raises:
            UserError: if nothing was learned yet.
        """
        if not (self.coefficient or self.addition):
            return []
        if self.false_refusal is None or self.true_refusal is None or self.block is None:
            raise UserError("Surgical has learned nothing yet: fit it first")
        found: list[tuple[nn.Module, Hook | Before]] = []
        if self.coefficient:
            found += ablation_hooks(model, self.false_refusal, self.coefficient)
        if self.addition:
            self._warn_of_another_coefficient()
            module = layer_output(model, self.block)
            found.append((module, addition_hook(self.true_refusal, self.addition)))
        return found

    def _warn_of_another_coefficient(self) -> None:
        tried = ((self.report or {}).get("true_refusal") or {}).get("coefficient")
        if tried is not None and not self.scored_at and tried != self.addition:
            warnings.warn(
                f"r is added {self.addition:g} times, but its block and position were chosen at "
                f"{tried:g}, where another place may be best: fit it again",
                stacklevel=3,
            )
