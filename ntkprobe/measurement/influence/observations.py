"""Values observed at x′ as functions of θ, and their derivatives along directions in θ.

Both modes are exact: forward mode takes one direction and a batch of prompts at a time; reverse
mode takes one prompt and several directions, by inner products with the prompt's gradient.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.func import jvp

from ...estimators.forward_mode import differentiable_forwards
from ...kernel import last_logits
from ...models.gradients import gradients
from ...models.padding_row import varying_padding_row
from ...models.parameters import call_with_parameters, requiring_grad
from ...refusal import differentiable_scorer, reduce_phrases
from .updates import Direction

Prompts = Sequence[Int[Tensor, " _"]]


class Observation(nn.Module):
    """One or several numbers for each prompt: a module, so that tied weights change together.

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
        """Return the values for a batch of prompts, of any lengths."""
        raise NotImplementedError

    def changes(
        self, values: Float64[Tensor, "batch values"], tangents: Float64[Tensor, "batch values"]
    ) -> Float64[Tensor, "batch values"]:
        """Return the reported change, from the values and their tangents."""
        return tangents

    def directional_derivative(
        self, prompts: Prompts, direction: Direction
    ) -> tuple[Float64[Tensor, "batch values"], Float64[Tensor, "batch _"]]:
        """Return the values, and their change per unit of `direction`, by forward mode."""
        theta = {self.names[name]: p.detach() for name, p in self.chosen.items()}
        tangent = {self.names[name]: direction[name].to(p) for name, p in self.chosen.items()}
        with differentiable_forwards(self.model), torch.no_grad():
            values, tangents = jvp(  # type: ignore[misc]
                lambda t: call_with_parameters(self, t, prompts), (theta,), (tangent,)
            )
        found = values.double().cpu()
        return found, self.changes(found, tangents.double().cpu())

    @contextmanager
    def differentiated(self) -> Generator[None]:
        """Let reverse mode find all of ∂/∂θ, the padding token's row included."""
        with requiring_grad(self.model, self.chosen), varying_padding_row(self.model):
            yield

    def vjp_products(
        self, prompt: Int[Tensor, " seq"], directions: dict[str, Float[Tensor, "n _"]]
    ) -> Float64[Tensor, "n values"]:
        """Return the changes of one prompt's values along n directions, by a backward pass each.

        Args:
            prompt: token ids.
            directions: by name, each parameter's flattened, n of them in rows.
        """
        with self.differentiated(), torch.enable_grad():
            values = self([prompt])[0]
            each = [gradients(value, self.chosen.values(), retain_graph=True) for value in values]
        return torch.stack([_inner_products(directions, gradient) for gradient in each], 1)


def _inner_products(
    directions: dict[str, Float[Tensor, "n _"]], gradient: Sequence[Tensor]
) -> Float64[Tensor, " n"]:
    """Return the inner products of n directions with a gradient, summed up in float64."""
    pairs = list(zip(directions.values(), gradient, strict=True))
    device = pairs[0][0].device  # a model may be on several
    shares = [(rows @ part.flatten().to(rows)).to(device) for rows, part in pairs]
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
        self, values: Float64[Tensor, "batch vocab"], tangents: Float64[Tensor, "batch vocab"]
    ) -> Float64[Tensor, "batch tokens"]:
        """Return A(x′) times the logits' tangents: A = I − 1πᵀ subtracts their mean under π."""
        found = tangents - (values.softmax(-1) * tangents).sum(-1, keepdim=True)
        return found if self.tokens is None else found[:, self.tokens]


class Refusals(Observation):
    """log P_refuse(x′), teacher-forced over all tokens of all phrases (A.5), for each reduction.

    Args:
        model: in evaluation mode.
        chosen: θ by name.
        phrase_ids: the phrases' token ids.
        reductions: such as `literal` and `prefix_free`.
        longest: the longest prompt, by which the way of scoring is chosen.
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
