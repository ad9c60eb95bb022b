"""How an estimator handles each parameter: by a rule, or by autograd for that parameter alone."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..kernel import Estimator, Probe
from ..measurement import Encoded, evaluating
from ..models.parameters import ParameterSelection

if TYPE_CHECKING:
    from torch import nn

_RULES = {"matrix": "matrices", "vector": "vectors", "table": "tables"}


@dataclass(frozen=True)
class Coverage:
    """How the parameters of one model are handled.

    Attributes:
        handled: how many of them by each kind of rule, by `autograd`, or `unused` by any logit.
        numbers: how many numbers they hold.
        without_rule: how many of those are left to autograd.
    """

    handled: dict[str, int]
    numbers: int
    without_rule: int

    @property
    def share_without_rule(self) -> float:
        """The share of the numbers that are left to autograd."""
        return self.without_rule / self.numbers

    def __str__(self) -> str:
        """Return one line for a log."""
        ruled = {kind: self.handled[kind] for kind in _RULES if kind in self.handled}
        described = [f"{n} {kind if n == 1 else _RULES[kind]}" for kind, n in ruled.items()]
        left, unused = self.handled.get("autograd", 0), self.handled.get("unused", 0)
        shown = f"{100 * self.share_without_rule:.2g} % of the numbers"
        rest = f"{left} by autograd ({shown})" if left else "none by autograd"
        also = f"; {unused} unused" if unused else ""
        return (
            f"kernel over {self.numbers:,} parameters: {', '.join(described)} by rule; {rest}{also}"
        )


def coverage(
    estimator: Estimator, model: "nn.Module", encoded: Encoded, parameters: str
) -> Coverage | None:
    """Return how an estimator handles the parameters of a model; None where it has no rules.

    Args:
        estimator: the estimator; `Gram` has a method `coverage`.
        model: the model.
        encoded: the prompts; the shortest are tried.
        parameters: the selection.

    Returns:
        The counts.
    """
    if not hasattr(estimator, "coverage"):
        return None
    probes = [Probe(ids, ids[:1]) for ids in map(torch.tensor, encoded.input_ids)]
    with evaluating(model):
        handled = estimator.coverage(model, probes, parameters)
    chosen = ParameterSelection.parse(parameters).parameters(model)
    left = (chosen[name].numel() for name, how in handled.items() if how == "autograd")
    numbers = sum(parameter.numel() for parameter in chosen.values())
    return Coverage(dict(Counter(handled.values())), numbers, sum(left))
