"""What is observed at x′, as a function of θ, and how it changes along a direction in θ.

Exactly, both ways: forward mode takes one direction and a whole batch of prompts at a time; reverse
mode one prompt and as many directions as are held, by inner products with its gradient.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.func import jvp

from ...estimators.forward_mode import differentiable_forwards
from ...kernel import last_logits
from ...models.backward import gradients
from ...models.parameters import called_with, requiring_grad
from ...refusal import differentiable_scorer, reduce_phrases
from .updates import Direction

Prompts = Sequence[Int[Tensor, " _"]]


class Observation(nn.Module):
    """A number or several at each prompt: a module, so that tied weights change together.

    Args:
        model: in evaluation mode.
        chosen: θ by name.
    """

    def __init__(self, model: nn.Module, chosen: dict[str, nn.Parameter]) -> None:
        super().__init__()
        names = {id(p): f"model.{name}" for name, p in model.named_parameters()}
        self.model, self.chosen = model, chosen
        self.names = {name: names[id(parameter)] for name, parameter in chosen.items()}

    def forward(self, prompts: Prompts) -> Float[Tensor, "batch values"]:
        """Return what is observed of a batch of prompts, of any lengths."""
        raise NotImplementedError

    def changes(
        self, values: Float64[Tensor, "batch values"], moved: Float64[Tensor, "batch values"]
    ) -> Float64[Tensor, "batch values"]:
        """Return the change that is reported, from what is observed and how it moves."""
        return moved

    def along(
        self, prompts: Prompts, direction: Direction
    ) -> tuple[Float64[Tensor, "batch values"], Float64[Tensor, "batch _"]]:
        """Return what is observed, and its change per unit of `direction`, by forward mode."""
        theta = {self.names[name]: p.detach() for name, p in self.chosen.items()}
        tangent = {self.names[name]: direction[name].to(p) for name, p in self.chosen.items()}
        with differentiable_forwards(self.model), torch.no_grad():
            values, moved = jvp(  # type: ignore[misc]
                lambda t: called_with(self, t, prompts), (theta,), (tangent,)
            )
        found = values.double().cpu()
        return found, self.changes(found, moved.double().cpu())

    def products(
        self, prompt: Int[Tensor, " seq"], directions: dict[str, Float[Tensor, "n _"]]
    ) -> Float64[Tensor, "n values"]:
        """Return the changes of one prompt's values along n directions, by a backward pass each.

        Args:
            prompt: token ids.
            directions: by name, each parameter's flattened, n of them in rows.
        """
        with requiring_grad(self.model, self.chosen), torch.enable_grad():
            values = self([prompt])[0]
            each = [gradients(value, self.chosen.values(), again=True) for value in values]
        return torch.stack([_inner(directions, gradient) for gradient in each], 1)


def _inner(
    directions: dict[str, Float[Tensor, "n _"]], gradient: Sequence[Tensor]
) -> Float64[Tensor, " n"]:
    """Return the inner products of n directions with a gradient, summed up in float64."""
    pairs = list(zip(directions.values(), gradient, strict=True))
    home = pairs[0][0].device  # a model may lie on several
    shares = [(rows @ part.flatten().to(rows)).to(home) for rows, part in pairs]
    return torch.stack(shares).cpu().double().sum(0)


class LogProbabilities(Observation):
    """log π(· | x′) of the first token of the answer, over the whole vocabulary or some tokens.

    Args:
        model: in evaluation mode.
        chosen: θ by name.
        tokens: vocabulary ids; None for all.
    """

    def __init__(
        self,
        model: nn.Module,
        chosen: dict[str, nn.Parameter],
        tokens: Int[Tensor, " k"] | None = None,
    ) -> None:
        super().__init__(model, chosen)
        self.tokens = tokens

    def forward(self, prompts: Prompts) -> Float[Tensor, "batch vocab"]:
        """Return the logits z(x′)."""
        return last_logits(self.model, prompts)

    def changes(
        self, values: Float64[Tensor, "batch vocab"], moved: Float64[Tensor, "batch vocab"]
    ) -> Float64[Tensor, "batch tokens"]:
        """Return A(x′) times how the logits move: A = I − 1πᵀ takes their mean under π off."""
        found = moved - (values.softmax(-1) * moved).sum(-1, keepdim=True)
        return found if self.tokens is None else found[:, self.tokens]


class Refusals(Observation):
    """log P_refuse(x′), teacher-forced over all tokens of all phrases (A.5), for each reduction.

    Args:
        model: in evaluation mode.
        chosen: θ by name.
        phrase_ids: the phrases' token ids.
        reductions: such as `literal` and `prefix_free`.
        longest: the longest prompt, to find out how the model can be asked.
    """

    def __init__(
        self,
        model: nn.Module,
        chosen: dict[str, nn.Parameter],
        phrase_ids: Sequence[Sequence[int]],
        reductions: Sequence[str],
        longest: Int[Tensor, " seq"],
    ) -> None:
        super().__init__(model, chosen)
        self.phrase_ids = [tuple(ids) for ids in phrase_ids if ids]
        self.reductions = tuple(reductions)
        self._scores: Callable[..., Tensor] = differentiable_scorer(model, longest, self.phrase_ids)

    def forward(self, prompts: Prompts) -> Float64[Tensor, "batch reductions"]:
        """Return log P_refuse."""
        scores = self._scores(prompts)
        return torch.stack(
            [reduce_phrases(scores, self.phrase_ids, how) for how in self.reductions], -1
        )


def a_norms(logits: Float[Tensor, "batch vocab"]) -> Float64[Tensor, " batch"]:
    """Return ‖A‖_F of A = I − 1πᵀ, which is √(V ‖π‖² + V − 2)."""
    chances = logits.double().softmax(-1)
    size = logits.shape[-1]
    return (size * chances.square().sum(-1) + size - 2).sqrt().cpu()
