"""Both sides of Proposition 1 (A.7) between prompts, at the points measured."""

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn

from ...checkpoints import settings_digest, weights_digest
from ...errors import UserError, count
from ...models.architecture import layer_output
from ...models.logits import check_logits
from ...models.parameters import ParameterSelection, effective_parameters, part_of
from ...progress import progress
from ...prompts.prompt_set import PromptSet
from ...prompts.templates import Template
from ...storage import versions
from ..encoding import Encoded, Texts, as_encoded, evaluating
from ..full_vocabulary import Head, full_vocabulary_by_selection
from ..stored_parts import NO_STORAGE, Parts, StoredParts
from .factors import Tail, feature_products, tail_at
from .stored_hidden_kernels import stored_hidden_kernels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class BoundMeasurement:
    """The quantities of Proposition 1, for n prompts and one layer ℓ; all tensors float64.

    Attributes:
        prompts: the prompts, in the order of rows and columns.
        layer: ℓ, counted from 1.
        kernel: ‖K(x′,x)‖_F over the parameters up to ℓ (a frozen tail) and all logits, `[n, n]`.
        kernel_all: the same over all parameters; None where `tail` was off.
        inner: ⟨G_x′, G_x⟩_F, `[n, n]`; the diagonal is ‖G_x‖_F².
        inner_error: its standard errors, zero where it is exact.
        tail_spectral: ‖J_g(x)‖₂ `[n]`: local values, not the supremum that A1 takes.
        tail_frobenius: ‖J_g(x)‖_F `[n]`.
        tail_gradient: ‖H0(x)‖_F `[n]`, H0 = ∂z/∂θ over the parameters after ℓ (A4); else None.
        cosine: of h at the last position, which DCR's loss reduces, `[n, n]`.
        settings: everything that the numbers depend on.
    """

    prompts: PromptSet
    layer: int
    kernel: Tensor
    kernel_all: Tensor | None
    inner: Tensor
    inner_error: Tensor
    tail_spectral: Tensor
    tail_frobenius: Tensor
    tail_gradient: Tensor | None
    cosine: Tensor
    settings: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """Return both sides of every bound, a row per ordered pair.

        Returns:
            Left sides: `kernel` (tail frozen) and `kernel_all`. Right sides, with c and τ the
            largest over the prompts measured: `printed`, c ⟨G′, G⟩, the proposition with a frozen
            tail; `corrected`, c √(⟨G′,G′⟩ ⟨G,G⟩); `step_2`, Eq. 4, for `kernel_all`; and `local`,
            ‖J_g(x′)‖ ‖G′‖ ‖G‖ ‖J_g(x)‖, the tightest that follows from the norms. `kernel_all` and
            `step_2` are left out where `tail` was off.
        """
        n, c = len(self.prompts), self.tail_spectral.max() ** 2
        own = self.inner.diagonal().sqrt()
        right = right_sides(c, self.inner)
        reach = self.tail_spectral * own
        columns = {
            "kernel": self.kernel,
            **({} if self.kernel_all is None else {"kernel_all": self.kernel_all}),
            "inner": self.inner,
            "inner_error": self.inner_error,
            "cosine": self.cosine,
            **right,
        }
        if self.tail_gradient is not None:
            tau = self.tail_gradient.max()
            step_2 = right["corrected"] + c.sqrt() * tau * (own[:, None] + own) + tau**2
            columns["step_2"] = step_2
        columns["local"] = reach[:, None] * reach
        groups = pd.Series([prompt.group for prompt in self.prompts])
        rows = torch.arange(n).repeat_interleave(n).numpy()
        cols = torch.arange(n).repeat(n).numpy()
        named = {
            "observed": rows,
            "updated": cols,
            "observed_group": groups[rows].to_numpy(),
            "updated_group": groups[cols].to_numpy(),
        }
        return pd.DataFrame(named | {k: v.reshape(-1).numpy() for k, v in columns.items()})

    def prompt_frame(self) -> pd.DataFrame:
        """Return a row per prompt: ‖J_g‖₂, ‖J_g‖_F, ‖G‖_F and, if measured, ‖H0‖_F."""
        after = {} if self.tail_gradient is None else {"tail_gradient": self.tail_gradient.numpy()}
        return pd.DataFrame(
            {
                "prompt": range(len(self.prompts)),
                "group": [prompt.group for prompt in self.prompts],
                "tail_spectral": self.tail_spectral.numpy(),
                "tail_frobenius": self.tail_frobenius.numpy(),
                "feature_gradient": self.inner.diagonal().sqrt().numpy(),
                **after,
            }
        )

    def __repr__(self) -> str:
        return f"BoundMeasurement({self.prompts.describe()}, layer {self.layer})"


def right_sides(c: Tensor, inner: Tensor) -> dict[str, Tensor]:
    """Return the printed and the corrected right side with a frozen tail, `[n, n]`.

    Args:
        c: the bound of A1 on ‖J_g‖².
        inner: ⟨G_x′, G_x⟩_F, which A2 writes h′ᵀQh.
    """
    own = inner.diagonal().sqrt()
    return {"printed": c * inner, "corrected": c * own[:, None] * own}


def measure_bounds(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Texts | Encoded,
    *,
    layer: int,
    directions: int | None = 64,
    seed: int = 0,
    template: str | Template = "auto",
    max_length: int | None = None,
    tail: bool = True,
    partial_dir: Path | None = None,
) -> BoundMeasurement:
    """Measure both sides of Proposition 1 between all pairs of prompts (A.7).

    The parameters up to ℓ are what DCR trains: blocks 1 to ℓ and the embedding, unless that is
    tied to the head. All logits are read, exactly: backward passes grow with the model's width.

    Args:
        model: any causal language model with a plain head; in memory, in one process.
        tokenizer: its tokenizer.
        prompts: what to measure on.
        layer: ℓ: after which block h is taken, counted from 1.
        directions: the number of random directions of h that ⟨G′, G⟩ is estimated from, with
            standard errors; None computes it exactly, with as many backward passes as h has
            numbers (tokens times width).
        seed: of the directions.
        template: how prompts become tokens.
        max_length: longer prompts lose the end of their text.
        tail: whether to read the parameters after ℓ as well, for `kernel_all` and `tail_gradient`;
            a tied embedding, whose lookups take long, is one of them.
        partial_dir: a folder for what is done; a call that was stopped goes on there, if nothing
            is different. The caller removes it.

    Returns:
        Every term of the proposition; nothing of it is fitted.

    Raises:
        UserError: if there is no such layer, the model cannot be measured, or the folder holds
            parts of another measurement.
    """  # ruff: ignore[docstring-extraneous-exception]
    if directions is not None:
        count("directions", directions, least=2)
    encoded = as_encoded(tokenizer, prompts, template, max_length)
    ids = [torch.tensor(row) for row in encoded.input_ids]
    with evaluating(model):
        check_logits(model, ids)
        layer_output(model, layer)
        settings = {
            "layer": layer,
            "directions": "exact" if directions is None else directions,
            "seed": seed,
            "tail": tail,
            **encoded.record,
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        }
        parts: Parts = NO_STORAGE
        if partial_dir is not None:
            own: Any = model.config
            of_model = {"weights": weights_digest(model), "config": settings_digest(own.to_dict())}
            rows = {"tokens": [row.tolist() for row in ids]}
            parts = StoredParts(partial_dir, {**settings, **versions(), **of_model, **rows})
        terms = measure_terms(model, ids, layer, directions, seed, tail=tail, parts=parts)
    return BoundMeasurement(encoded.prompts, layer, settings=settings, **terms)


def measure_terms(
    model: nn.Module,
    ids: list[Tensor],
    layer: int,
    directions: int | None,
    seed: int,
    *,
    tail: bool = True,
    parts: Parts = NO_STORAGE,
) -> dict[str, Any]:
    """Return the tensors of a `BoundMeasurement` by name."""
    below, above = split_at(model, layer)
    chosen = below.parameters(model)
    head = Head.of(model, {})
    shown = progress(ids, desc="layers above", unit="prompt", leave=False)

    def tail_of(row: Tensor) -> dict[str, Tensor]:
        return tail_at(model, head, row, layer).tensors()

    stored = [parts.get(f"tail-{n}", partial(tail_of, row)) for n, row in enumerate(shown)]
    tails = [Tail.from_tensors(each) for each in stored]
    unit = torch.nn.functional.normalize(torch.stack([tail.last for tail in tails]))
    found = feature_products(
        model, ids, layer, chosen, directions=directions, seed=seed, parts=parts
    )
    kernels = partial(stored_hidden_kernels, parts) if isinstance(parts, StoredParts) else None
    read = full_vocabulary_by_selection(
        model, ids, [below, above, "all"] if tail else [below], kernels=kernels
    )
    return {
        "kernel": read[0].norms,
        "kernel_all": read[2].norms if tail else None,
        "inner": found.inner,
        "inner_error": found.error,
        "tail_spectral": torch.tensor([tail.spectral for tail in tails], dtype=torch.float64),
        "tail_frobenius": torch.tensor([tail.frobenius for tail in tails], dtype=torch.float64),
        "tail_gradient": read[1].gradients if tail else None,
        "cosine": unit @ unit.T,
    }


def split_at(model: nn.Module, layer: int) -> tuple[ParameterSelection, ParameterSelection]:
    """Return the parameters up to layer ℓ, as DCR trains them, and all others.

    Raises:
        UserError: if a model has no others, or none up to ℓ.
    """
    parts = part_of(model)
    below = [n for n, p in parts.items() if p.kind == "embed" or 1 <= (p.layer or 0) <= layer]
    above = [name for name in effective_parameters(model) if name not in set(below)]
    if not below or not above:
        raise UserError(f"layer {layer}: no parameters on one side of it")
    return _named(below), _named(above)


def _named(names: list[str]) -> ParameterSelection:
    return ParameterSelection((f"re:^(?:{'|'.join(map(re.escape, names))})$",))
