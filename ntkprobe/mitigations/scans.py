"""SCANS: steer towards refusal where a prompt is harmful, away from it where it is not.

v_ℓ is the direction from benign to harmful prompts at the instruction's end e; r_ℓ is the mean over
harmful prompts of h_ℓ[e] − h_ℓ[last], where an affirmative word follows the instruction. A prompt
is classified as harmful if its own h_ℓ[e] − h_ℓ[last] is similar to r_ℓ (mean cosine); then
h ← h + α v_ℓ from e on, else h ← h − α v_ℓ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import UserError, require
from ..models.architecture import Before, Hook, decoder, decoder_layers, embedding, hidden_state
from ..models.generation import length_batches, require_measurable
from ..prompts.prompt_set import PromptSet
from ..prompts.templates import Template, resolve_template
from .activations import instruction_end, last_states, mean_states, with_output_state
from .base import Steering, identity, learned
from .sequences import SequenceTracker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Window = tuple[float, float]

_NOTHING = 1e-6  # of a state's own length: below it a difference of means is rounding


@dataclass(frozen=True, eq=False)
class Scans(Steering):
    """h ← h ± α v behind the instruction, the sign by a classifier of the prompt.

    Windows are shares of the depth: block i of L, counted from 0, is in (a, b) if a ≤ i / L < b.
    The authors' script counts blocks, 10 to 19 of 32 and of any other depth. Of 28 blocks these
    shares are 9 to 17; `layers=(0.357, 0.714)` is 10 to 19 there. Their answers are generated with
    a repetition penalty of 1.1, ours without. A chat of several turns, which the script does not
    have, is judged and steered from the end of its last instruction on.

    Attributes:
        weight: α; 0 changes nothing.
        layers: the blocks steered; the paper's are 10 to 19 of 32.
        classified: the blocks that the classifier averages over; the paper's are 10 to 31 of 32.
        threshold: T, the mean cosine from which a prompt counts as harmful.
        final_norm: classify by the last block's output after the final norm, as the authors do,
            whose thresholds are for that; else by what leaves the block. v never has the norm.
        affirmation: the word put behind a prompt to see how it moves.
        anchors: prompts of each group to learn from, at most.
        template: how prompts become tokens; it must put something behind the instruction.
        batch_size: prompts at a time while fitting.
        seed: of the choice of prompts.
        vectors: v, `[layers, hidden]`, of length 1.
        transitions: r, `[layers, hidden]`.
        normed: whether the last of `transitions` is after the final norm.
        ending: the ids that the template puts behind an instruction; the last is e.
        word: the ids of the affirmation.
        report: by group, the mean likeness of its prompts and the share that counts as harmful.
    """

    weight: float = 3.5
    layers: Window = (10 / 32, 20 / 32)
    classified: Window = (10 / 32, 1.0)
    threshold: float = 0.75
    final_norm: bool = True
    affirmation: str = "Sure"
    anchors: int = 64
    template: str = "auto"
    batch_size: int = 16
    seed: int = 0
    vectors: Tensor | None = learned()
    transitions: Tensor | None = learned()
    normed: bool | None = learned()
    ending: Tensor | None = learned()
    word: Tensor | None = learned()
    report: dict[str, Any] | None = learned()

    source: ClassVar[str] = "Cao et al., AAAI 2025 (arXiv 2408.11491), section 3"

    def __post_init__(self) -> None:
        require(math.isfinite(self.weight), f"weight={self.weight}: give a number, such as 3.5")
        require(not math.isnan(self.threshold), f"threshold={self.threshold}: give a number")
        for name in ("layers", "classified"):
            window = getattr(self, name)
            if not (len(window) == 2 and 0 <= window[0] < window[1] <= 1):
                raise UserError(
                    f"{name} is {window}: give two shares of the depth, 0 ≤ first < last ≤ 1"
                )

    def fit(
        self, model: nn.Module, tokenizer: "PreTrainedTokenizerBase", prompts: PromptSet
    ) -> Self:
        """Return a copy with vectors and transitions of all layers.

        Args:
            model: in evaluation mode.
            tokenizer: its tokenizer.
            prompts: toxic and normal ones; the report is about all.

        Returns:
            A fitted copy.

        Raises:
            UserError: if a group is missing, a window holds no block, the affirmation cannot be
                written, or the groups do not differ.
        """
        template = resolve_template(tokenizer, self.template)
        steered, _ = self._windows(model)
        word = list(template.encode_phrases(tokenizer, [self.affirmation])[0])
        if tokenizer.unk_token_id in word:
            raise UserError(
                f"the affirmation {self.affirmation!r} cannot be written in this vocabulary: "
                "name a word that can"
            )
        means = {}
        for group in ("toxic", "normal"):
            anchors = prompts.in_group(group).sample(self.anchors, self.seed)
            ids = [torch.tensor(template.encode(tokenizer, each.text) + word) for each in anchors]
            # e, the affirmation's other tokens, its last one
            means[group] = mean_states(
                model, ids, len(word) + 1, final=True, batch_size=self.batch_size
            )
        difference = (means["toxic"] - means["normal"])[:-1, 0]
        lengths = means["normal"][:-1, 0].norm(dim=-1)
        toxic = _classified_states(means["toxic"], self.final_norm)
        if not bool((difference.norm(dim=-1) > _NOTHING * lengths)[steered].all()):
            raise UserError(
                "toxic and normal prompts do not differ in the layers steered: give others"
            )
        fitted = replace(
            self,
            vectors=torch.nn.functional.normalize(difference, dim=-1).float(),
            transitions=(toxic[:, 0] - toxic[:, -1]).float(),
            normed=self.final_norm,
            ending=torch.tensor(instruction_end(tokenizer, template)),
            word=torch.tensor(word),
            fitted_on=identity(model),
        )
        return replace(fitted, report=fitted._reported(model, tokenizer, template, prompts))

    def hooks(self, model: nn.Module) -> Sequence[tuple[nn.Module, Hook | Before]]:
        """Return hooks on the steered blocks, and on the input of the decoder.

        Raises:
            UserError: if nothing was learned yet.
        """
        if not self.weight:
            return []
        if self.vectors is None:
            raise UserError("Scans has learned nothing yet: fit it first")
        steered, _ = self._windows(model)
        sequences = SequenceTracker(self.ending, partial(self.harmful, model))  # type: ignore[arg-type]
        blocks = decoder_layers(model)
        found: list[tuple[nn.Module, Hook | Before]] = [
            (decoder(model), Before(sequences.see, whole_pass=True))
        ]
        if (table := embedding(model)) is not None:
            found.append((table, sequences.keep_ids))
        return found + [(blocks[at], self._steering(at, sequences)) for at in steered]

    def harmful(self, model: nn.Module, prompts: Sequence[Tensor]) -> Tensor:
        """Return whether each prompt counts as harmful, `[n]` bool.

        Args:
            model: without the hooks of this method.
            prompts: token ids, up to the end of the instruction.
        """
        return self.likeness(model, prompts) >= self.threshold

    def likeness(self, model: nn.Module, prompts: Sequence[Tensor]) -> Tensor:
        """Return c: the mean cosine over the classified layers, `[n]` float64.

        Args:
            model: without the hooks of this method.
            prompts: token ids, up to the end of the instruction.
        """
        _, classified = self._windows(model)
        word: Tensor = self.word  # type: ignore[assignment]
        transitions = self.transitions.double()  # type: ignore[union-attr]
        moved = [torch.cat([ids.cpu(), word]) for ids in prompts]
        require_measurable(model, moved)
        found = torch.empty(len(prompts), dtype=torch.float64)
        for rows in length_batches(moved, self.batch_size):
            some = [moved[row] for row in rows]
            states = last_states(model, some, len(word) + 1, final=True)
            states = _classified_states(states.transpose(0, 1), bool(self.normed)).transpose(0, 1)
            ways = states[:, :, 0] - states[:, :, -1]
            cosines = torch.cosine_similarity(ways, transitions, dim=-1)
            found[rows] = cosines[:, classified].mean(-1)
        return found

    def _reported(
        self,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        template: Template,
        prompts: PromptSet,
    ) -> dict[str, Any]:
        """Return the mean likeness and the share classified as harmful, by group."""
        found = {}
        for group in prompts.groups:
            some = prompts.in_group(group).sample(self.anchors, self.seed)
            ids = [torch.tensor(template.encode(tokenizer, each.text)) for each in some]
            scores = self.likeness(model, ids)
            share = float((scores >= self.threshold).double().mean())
            found[group] = {"likeness": float(scores.mean()), "harmful": share}
        return found

    def _steering(self, at: int, sequences: SequenceTracker) -> Hook:
        """Return the hook that moves what leaves a block."""
        vector: Tensor = self.vectors[at]  # type: ignore[index]

        def steered(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if sequences.paused:
                return None
            state = hidden_state(output)
            signs = sequences.signs.to(state)[..., None]
            return with_output_state(output, state + self.weight * signs * vector.to(state))

        return steered

    def _windows(self, model: nn.Module) -> tuple[list[int], list[int]]:
        """Return the numbers, from 0, of the blocks steered and classified.

        Raises:
            UserError: if a window holds no block.
        """
        depth = len(decoder_layers(model))
        found = []
        for name in ("layers", "classified"):
            first, last = getattr(self, name)
            inside = [at for at in range(depth) if first * depth <= at < last * depth]
            if not inside:
                raise UserError(
                    f"{name} {first:g}…{last:g} holds none of the model's {depth} blocks: widen it"
                )
            found.append(inside)
        return found[0], found[1]


def _classified_states(states: Tensor, normed: bool) -> Tensor:
    """Return the states `[layers, …]` of `last_states`, the last one normed or not."""
    return torch.cat([states[:-2], states[-1:] if normed else states[-2:-1]])
