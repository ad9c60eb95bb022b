"""The empirical neural tangent kernel between the prompts of a causal language model.

| here            | paper       | what                                                             |
|-----------------|-------------|------------------------------------------------------------------|
| observed prompt | x′          | whose logits change: rows                                        |
| updated prompt  | x           | which one step of training is taken on: columns                  |
| logits          | z(x)        | `[vocab]`, after the prompt's last token                         |
| values read     | z_S(x)      | k logits (`Probe.tokens`) or k combinations (`Probe.cotangents`) |
| Jacobian        | ∇_θ z(x)    | `[k, parameters]`, over the selected parameters θ                |
| kernel block    | K(x′, x)    | J(x′) J(x)ᵀ, `[k, k]`: how a step on x moves the logits of x′    |
| norm            | ‖K(x′,x)‖_F | divided by ‖K(x′,x′)‖_F in every figure of the paper             |

All blocks of n prompts are one tensor, `K[a, i, b, j] = ⟨∂z_i(x_a)/∂θ, ∂z_j(x_b)/∂θ⟩` (Eq. 2).
An `Estimator` computes it; each is a file in `estimators/`. `dense` is this definition written
out, `gram` computes the same numbers in a small fraction of the time and memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from .errors import require
from .models.logits import last_logits as last_logits
from .models.logits import top_tokens as top_tokens
from .models.logits import try_padding
from .models.parameters import ParameterSelection
from .models.validation import check_measurable, check_prompts, check_read

Blocks = Float64[Tensor, "n k m l"]
Table = Float64[Tensor, "n n"]


@dataclass(frozen=True, eq=False)
class Probe:
    """A prompt, without padding, and the k values read from its last logits (A.6).

    Either the logits of `tokens`, which are vocabulary ids, or `cotangents @ logits`.
    """

    input_ids: Int[Tensor, " seq"]
    tokens: Int[Tensor, " k"] | None = None
    cotangents: Float[Tensor, "k vocab"] | None = None

    def __post_init__(self) -> None:
        """Refuse an empty prompt, and neither or both of tokens and cotangents."""
        require(len(self.input_ids) > 0, "a prompt is empty: it needs at least one token")
        one_of_them = (self.tokens is None) != (self.cotangents is None)
        require(one_of_them, "a Probe takes either tokens= or cotangents=, one of the two")

    def __len__(self) -> int:
        """Return k."""
        return len(self.tokens if self.tokens is not None else self.cotangents)  # type: ignore[arg-type]

    def read(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " k"]:
        """Return z_S of this prompt's logits, in their dtype.

        Cotangents for another number of logits are a `UserError`; that `tokens` are in the
        vocabulary is checked before a measurement (`prepare`).
        """
        if self.tokens is not None:
            return logits[self.tokens.to(logits.device)]
        weights = self.cotangents.to(logits)  # type: ignore[union-attr]
        fits = weights.shape[-1] == len(logits)
        require(fits, f"cotangents {tuple(weights.shape)}: give [k, {len(logits)}] of them")
        return weights @ logits


@runtime_checkable
class Estimator(Protocol):
    """A way to compute all blocks: its settings; called with all prompts at once."""

    def __call__(
        self, model: nn.Module, probes: Sequence[Probe], parameters: str | ParameterSelection = ...
    ) -> Blocks:
        """Return K, `[n, k, n, k]`, rows observed and columns updated."""
        ...


def prepare(
    model: nn.Module, probes: Sequence[Probe], parameters: str | ParameterSelection
) -> dict[str, nn.Parameter]:
    """Return θ by name, having refused what cannot be measured. Every estimator calls it first."""
    check_measurable(model)
    check_prompts(model, [probe.input_ids for probe in probes])
    check_read(model, [probe.tokens for probe in probes], [len(probe) for probe in probes])
    try_padding(model, [probe.input_ids for probe in probes])
    return ParameterSelection.parse(parameters).parameters(model)


def blocks_by_selection(
    estimator: Estimator,
    model: nn.Module,
    probes: Sequence[Probe],
    selections: Sequence[ParameterSelection],
) -> dict[str, Blocks]:
    """Return K over each selection, by its text: from one pass where the estimator can."""
    together = getattr(estimator, "by_selection", None)
    if together is not None and selections:
        return together(model, probes, selections)
    return {str(each): estimator(model, probes, each) for each in selections}


def norms(blocks: Blocks) -> Float64[Tensor, "n m"]:
    """Return ‖K(x′,x)‖_F of every block."""
    return torch.linalg.matrix_norm(blocks.transpose(1, 2))


def similarity(norms: Table) -> Table:
    """Return ‖K(x′,x)‖_F / ‖K(x′,x′)‖_F, the paper's: rows over their diagonal, not symmetric.

    A diagonal entry that is not above zero is a `UserError`.
    """
    return norms / _self_norms(norms)[:, None]


def symmetric_similarity(norms: Table) -> Table:
    """Return ‖K(x′,x)‖_F / √(‖K(x′,x′)‖_F ‖K(x,x)‖_F).

    A diagonal entry that is not above zero is a `UserError`.
    """
    own = _self_norms(norms).sqrt()
    return norms / (own[:, None] * own)


def _self_norms(norms: Table) -> Float64[Tensor, " n"]:
    """Return ‖K(x,x)‖_F; zero is refused, since then no logit of a prompt depends on θ."""
    own = norms.diagonal()
    require(
        bool((own > 0).all()),
        "no logit of a prompt depends on the selected parameters: select more of them",
    )
    return own


def group_means(
    matrix: Table, groups: Sequence[str], self_pairs: bool = False
) -> dict[tuple[str, str], float]:
    """Return the mean over the pairs of every two groups, `{(observed, updated): mean}`."""
    counted = ~torch.eye(len(groups), dtype=torch.bool) | self_pairs
    members = {group: torch.tensor([g == group for g in groups]) for group in groups}
    pairs = {
        (observed, updated): matrix[members[observed][:, None] & members[updated] & counted]
        for observed in members
        for updated in members
    }
    return {key: float(values.mean()) for key, values in pairs.items() if len(values)}
