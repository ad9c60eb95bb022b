"""The prediction of `influence`, as tensors and as a tidy table."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import UserError
from ...prompts.prompt_set import PromptSet

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Influence:
    """The effect of one step of gradient descent on each updated pair on each observed prompt.

    To first order and per unit step: times η it is the change after θ ← θ − η ∇L(x, y).

    Attributes:
        observed: the prompts x′; None where token ids were given.
        updated: the pairs (x, y), their answer in `response`; None where token ids were given.
        log_probability: the change of log π of the answer's first token, `[updated, observed,
            vocab]` float64, or `[updated, observed, k]` with k `tokens`; None if not asked for.
        tokens: the vocabulary ids of the last axis; None for all.
        refusals: the change of log P_refuse, `[updated, observed]` float64, by reduction.
        losses: L(x, y) before the step, `[updated]`.
        a_norm: ‖A(x′)‖_F, `[observed]`.
        g_norm: ‖G(x, y)‖_F over the answer tokens that count, `[updated]`.
        gradient_norm: ‖J(x)ᵀ G‖, the length of a step of size 1, `[updated]`.
        settings: all settings that the numbers depend on.
    """

    observed: PromptSet | None
    updated: PromptSet | None
    log_probability: Tensor | None
    tokens: Tensor | None
    refusals: dict[str, Tensor]
    losses: Tensor
    a_norm: Tensor
    g_norm: Tensor
    gradient_norm: Tensor
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def refusal(self) -> Tensor:
        """The change of log P_refuse for the first reduction asked for, `[updated, observed]`.

        Raises:
            UserError: if there is none.
        """
        if not self.refusals:
            raise UserError(
                "no influence on refusals: give phrases=, as token ids where there is no tokenizer"
            )
        return next(iter(self.refusals.values()))

    def frame(self) -> "pd.DataFrame":
        """Return a row per pair and target: the columns of `Trajectory.influence` without `step`.

        Returns:
            `observed, updated, observed_group, updated_group, target, change`; targets are
            `refusal_literal`, `refusal_prefix_free` and, where some tokens were chosen,
            `token_ID`. The whole vocabulary stays in `log_probability`.
        """
        import pandas as pd

        tables = [self._rows(f"refusal_{how}", values) for how, values in self.refusals.items()]
        if self.tokens is not None and self.log_probability is not None:
            changes = self.log_probability.unbind(-1)
            tables += [
                self._rows(f"token_{token}", values)
                for token, values in zip(self.tokens.tolist(), changes, strict=True)
            ]
        names = ["observed", "updated", "observed_group", "updated_group", "target", "change"]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=names)

    def terms(self) -> "pd.DataFrame":
        """Return the norms of the terms of Eq. 2 that belong to one side: `term, observed, …`.

        Returns:
            `term, observed, updated, norm`: `A` (‖A(x′)‖_F) for each observed prompt, `G`
            (‖G(x,y)‖_F) and `gradient` (‖J(x)ᵀ G‖) for each updated pair.
        """
        import pandas as pd

        sides = [
            ("A", "observed", self.a_norm),
            ("G", "updated", self.g_norm),
            ("gradient", "updated", self.gradient_norm),
        ]
        tables = [
            pd.DataFrame({"term": term, side: range(len(norms)), "norm": norms.numpy()})
            for term, side, norms in sides
        ]
        columns = ["term", "observed", "updated", "norm"]
        whole = pd.concat(tables, ignore_index=True)[columns]
        return whole.astype({"observed": "Int64", "updated": "Int64"})

    def _rows(self, target: str, values: Tensor) -> "pd.DataFrame":
        import pandas as pd

        updated, observed = torch.meshgrid(*map(torch.arange, values.shape), indexing="ij")
        rows: dict[str, Any] = {
            "observed": observed.flatten().numpy(),
            "updated": updated.flatten().numpy(),
        }
        for name, prompts in (("observed", self.observed), ("updated", self.updated)):
            groups = None if prompts is None else [p.group for p in prompts]
            rows[f"{name}_group"] = None if groups is None else [groups[i] for i in rows[name]]
        return pd.DataFrame({**rows, "target": target, "change": values.flatten().numpy()})

    def __repr__(self) -> str:
        return f"Influence(of {len(self.g_norm)} pairs on {len(self.a_norm)} prompts)"
