"""Compares an estimator's kernel with plain backward passes, on any model.

For any u and v, uᵀ K(x′,x) v = ⟨J(x′)ᵀ u, J(x)ᵀ v⟩, and each factor on the right is one backward
pass. With random u and v the two sides differ if a parameter was left out, was counted once where
it is used twice, or has the gradient of another prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import estimators, plugins
from ...kernel import Blocks, Estimator, Probe, last_logits
from ...models.gradients import gradients
from ...models.logits import check_logits
from ...models.parameters import ParameterSelection, requiring_grad
from ...models.validation import check_loaded, check_measurable, check_prompts, finite
from ...prompts.templates import Template
from .. import Encoded, evaluating
from ..encoding import Texts, as_encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# In bfloat16 and float16 (0.05) the plain backward passes are inaccurate, too.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}


class WrongKernel(RuntimeError):
    """An estimator's kernel is not J(x′) J(x)ᵀ."""


@dataclass(frozen=True)
class Verification:
    """The result of a comparison.

    Attributes:
        relative_error: the largest |uᵀKv − ⟨J′ᵀu, Jᵀv⟩| / (‖J′ᵀu‖ ‖Jᵀv‖) over the pairs.
        tolerance: the largest error allowed.
        parameters: the number of scalar parameters that the kernel is over.
    """

    relative_error: float
    tolerance: float
    parameters: int

    def __str__(self) -> str:
        """Return one line for a log."""
        return (
            f"verified over {self.parameters:,} parameters by plain backward passes: "
            f"relative error {self.relative_error:.1e} (at most {self.tolerance:.0e})"
        )


def verify(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: "Texts | Encoded",
    *,
    estimator: str | Estimator = "gram",
    parameters: str | ParameterSelection = "all",
    template: str | Template = "auto",
    max_length: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> Verification:
    """Compare an estimator with plain backward passes on the shortest and the longest prompt.

    Args:
        model: the model; one in training mode is set to evaluation mode meanwhile, without dropout
            (an estimator called directly refuses it).
        tokenizer: its tokenizer.
        prompts: the prompts to be measured; two of them are compared.
        estimator: `gram`, `finite_difference`, `forward_mode`, `dense`, `sketch`, or one with its
            settings.
        parameters: the selection.
        template: how prompts become tokens.
        max_length: longer prompts lose the end of their text.
        tolerance: the relative error allowed; by default the estimator's own `rtol`, else by dtype.
        seed: of the tokens and combinations drawn.

    Returns:
        The error, which is within the tolerance: `WrongKernel` is raised where it is not.
    """
    encoded = as_encoded(tokenizer, prompts, template, max_length)
    ids = [torch.tensor(row) for row in encoded.input_ids]
    method = plugins.instance(estimators, estimator)
    check_loaded(model)
    with evaluating(model):
        check_measurable(model)
        check_prompts(model, ids)
        rows = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        pair = (ids[rows[0]], ids[rows[-1]])
        with torch.no_grad():
            finite(last_logits(model, pair), [rows[0], rows[-1]])
        return verify_pair(method, model, pair, parameters, tolerance, seed=seed)


def verify_pair(
    estimator: Estimator,
    model: nn.Module,
    pair: tuple[Tensor, Tensor],
    parameters: str | ParameterSelection = "all",
    tolerance: float | None = None,
    *,
    seed: int = 0,
) -> Verification:
    """Compare an estimator with plain backward passes on two prompts, as `verify` does.

    Args:
        estimator: the estimator.
        model: the model, in evaluation mode.
        pair: token ids of two prompts.
        parameters: the selection.
        tolerance: the relative error allowed; by default the estimator's own `rtol`, else by dtype.
        seed: of the tokens and combinations drawn.

    Returns:
        The larger error of two comparisons: random combinations of all logits, and a few tokens,
        which estimators handle differently.

    Raises:
        WrongKernel: if they differ by more than the tolerance.
    """
    vocabulary = check_logits(model, pair)
    chosen = ParameterSelection.parse(parameters).parameters(model)
    default = float(getattr(estimator, "rtol", tolerance_for(chosen)))
    allowed = default if tolerance is None else tolerance
    generator = torch.Generator().manual_seed(seed)
    errors = [
        relative_error(estimator(model, probes, parameters), model, probes, chosen, generator)
        for probes in _random_probes(pair, vocabulary, generator)
    ]
    error = float(torch.tensor(errors).max())  # unlike max(), NaN where one is
    if not error <= allowed:
        raise WrongKernel(
            f"{type(estimator).__name__} differs from plain backward passes by {error:.1e}, more "
            f"than {allowed:.0e}: a parameter is missing or wrong, or the estimator too "
            "inaccurate for this model; take forward_mode or dense, and report the architecture"
        )
    return Verification(error, allowed, sum(parameter.numel() for parameter in chosen.values()))


def relative_error(
    blocks: Blocks,
    model: nn.Module,
    probes: Sequence[Probe],
    chosen: dict[str, nn.Parameter],
    generator: torch.Generator,
) -> float:
    """Return the largest |uᵀKv − ⟨J′ᵀu, Jᵀv⟩| / (‖J′ᵀu‖ ‖Jᵀv‖) over pairs, for random u, v."""
    weights = torch.randn(blocks.shape[:2], generator=generator)
    vjps = [prompt_vjp(model, p, u, chosen) for p, u in zip(probes, weights, strict=True)]
    products = [[_inner_product(left, right) for right in vjps] for left in vjps]
    expected = torch.tensor(products, dtype=torch.float64)
    found = torch.einsum("ai,aibj,bj->ab", weights.double(), blocks.cpu(), weights.double())
    lengths = expected.diagonal().sqrt()
    scale = (lengths[:, None] * lengths).clamp(min=torch.finfo(torch.float64).tiny)
    return float(((found - expected).abs() / scale).max())


def prompt_vjp(
    model: nn.Module, probe: Probe, u: Float[Tensor, " k"], chosen: dict[str, nn.Parameter]
) -> list[Tensor]:
    """Return J(x)ᵀ u by one backward pass through one prompt alone."""
    with requiring_grad(model, chosen), torch.enable_grad():
        values = probe.read(finite(last_logits(model, [probe.input_ids]))[0])
        scalar = (values * u.to(values)).sum()
        return gradients(scalar, chosen.values())


def _random_probes(
    pair: tuple[Tensor, Tensor], vocabulary: int, generator: torch.Generator
) -> Iterator[list[Probe]]:
    """Yield probes of all logits, then of a few tokens, including each prompt's first one."""
    yield [Probe(x, cotangents=torch.randn(1, vocabulary, generator=generator)) for x in pair]
    some = [torch.randperm(vocabulary, generator=generator)[:3] for _ in pair]
    yield [Probe(x, torch.cat([x[:1].cpu(), t])) for x, t in zip(pair, some, strict=True)]


def _inner_product(left: list[Tensor], right: list[Tensor]) -> float:
    """Return the inner product over all parameters, in float64."""
    pairs = zip(left, right, strict=True)
    return sum(float(a.double().flatten() @ b.double().flatten()) for a, b in pairs)


def tolerance_for(chosen: dict[str, nn.Parameter]) -> float:
    """Return what an exact estimator may be off by: rounding of the least precise parameters.

    Args:
        chosen: the parameters that the kernel is over, by name.
    """
    return max(_TOLERANCES.get(parameter.dtype, 0.05) for parameter in chosen.values())
