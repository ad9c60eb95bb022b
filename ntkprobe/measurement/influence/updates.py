"""One step of training on (x, y): J(x)ᵀ G(x,y), the gradient of the loss, by one backward pass.

The loss is what supervised fine-tuning minimises, −log π over the answer's tokens, its end-of-turn
token included: their sum (`sum`), as an example adds to a batch's loss, or their `mean`. A trainer
divides the sum over a batch by its number of answer tokens, so that one of its steps is the sum of
the batch's `sum` predictions over that number. `first_token` is the paper's reading of Eq. 2.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ...errors import UserError
from ...models.batching import forgetting_lengths
from ...models.gradients import gradients
from ...models.parameters import requiring_grad
from ...models.precision import at_least_single
from ...models.validation import finite
from .examples import Example

LOSSES = ("sum", "mean", "first_token")

Direction = dict[str, Tensor]
"""A change of the selected parameters θ, by their canonical names."""


@dataclass(frozen=True, eq=False)
class Update:
    """The gradient of one pair's loss, and the norms of its factors.

    Attributes:
        gradient: J(x)ᵀ G(x,y); a step of size η adds −η of it to θ.
        loss: of the pair.
        g_norm: ‖G‖_F, over the answer tokens with a weight.
    """

    gradient: Direction
    loss: float
    g_norm: float

    @property
    def gradient_norm(self) -> float:
        """‖J(x)ᵀ G‖, the length of a step in θ per unit of step size."""
        return float(sum(g.double().square().sum().cpu() for g in self.gradient.values())) ** 0.5


def update(
    model: nn.Module, example: Example, chosen: dict[str, nn.Parameter], loss: str = "sum"
) -> Update:
    """Return the update of one pair.

    Args:
        model: in evaluation mode.
        example: the pair.
        chosen: θ by name, as `ParameterSelection.parameters` gives it.
        loss: one of `LOSSES`.
    """
    with requiring_grad(model, chosen), torch.enable_grad():
        logits = answer_logits(model, example)
        g = residuals(logits.detach(), example, loss)
        # ⟨z, G⟩ has the gradient of the loss: G = ∇_z L, constant here.
        found = gradients((logits.double() * g).sum(), chosen.values())
    gradient = dict(zip(chosen, (at_least_single(each.detach()) for each in found), strict=True))
    return Update(gradient, loss_of(logits.detach(), example, loss), float(g.norm()))


def answer_logits(model: nn.Module, example: Example) -> Float[Tensor, "answer vocab"]:
    """Return z at every position that predicts a token of the answer."""
    device = next(model.parameters()).device
    with forgetting_lengths(model):
        logits = model(input_ids=example.input_ids[None].to(device), use_cache=False).logits[0]
    return finite(logits[example.start - 1 : -1])


def residuals(
    logits: Float[Tensor, "answer vocab"], example: Example, loss: str
) -> Float64[Tensor, "answer vocab"]:
    """Return G = ∇_z L: π − e_y at every answer token, weighted as the loss weights it."""
    answer = example.answer.to(logits.device)
    found = logits.double().softmax(-1)
    found[torch.arange(len(answer)), answer] -= 1
    return found * weights(len(answer), loss).to(found)[:, None]


def loss_of(logits: Float[Tensor, "answer vocab"], example: Example, loss: str) -> float:
    """Return L(x, y), the weighted sum of −log π over the answer."""
    answer = example.answer.to(logits.device)
    terms = -logits.double().log_softmax(-1)[torch.arange(len(answer)), answer]
    return float(terms @ weights(len(answer), loss).to(terms))


def weights(length: int, loss: str) -> Float64[Tensor, " answer"]:
    """Return the weight of each token of an answer in the loss.

    Raises:
        UserError: if there is no such loss.
    """
    if loss not in LOSSES:
        raise UserError(f"no loss {loss!r}: choose from {list(LOSSES)}")
    if loss == "first_token":
        return torch.eye(1, length, dtype=torch.float64)[0]
    return torch.ones(length, dtype=torch.float64) / (length if loss == "mean" else 1)
