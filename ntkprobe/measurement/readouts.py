"""Which logits the kernel is taken of: each prompt's top tokens, given ones, or all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from .. import kernel
from ..errors import UserError, require
from ..kernel import Probe
from ..models.logits import check_logits
from ..models.memory import halving
from ..models.parameters import ParameterSelection
from .encoding import Encoded
from .full_vocabulary import full_vocabulary_norms
from .random_probes import random_probe_norms

T = TypeVar("T")
TOP_TOKENS = 32
"""Prompts at a time where only their top tokens are looked for, if they fit."""
Tokens = Tensor | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False)
class Readout:
    """A choice of logits; at most one of the last three is set.

    Attributes:
        top_k: how many of each prompt's most probable tokens, unless another is chosen.
        tokens: given ones, `[k]` or `[n, k]`.
        full_vocabulary: all logits, exactly.
        random_probes: all logits, estimated from so many random weightings.
        batch_size: prompts at a time in the forward pass that finds the top tokens; None for as
            many as fit.

    Raises:
        UserError: if they contradict each other.
    """

    top_k: int = 10
    tokens: Tokens | None = None
    full_vocabulary: bool = False
    random_probes: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        chosen = [self.tokens is not None, self.full_vocabulary, self.random_probes is not None]
        if sum(chosen) > 1:
            raise UserError("choose one of: tokens, full vocabulary, random probes")

    def in_batches(self, compute: Callable[[int], T]) -> T:
        """Return what is computed of all prompts, with so many at a time as were set, or as fit."""
        if self.batch_size is not None:
            return compute(self.batch_size)
        return halving(compute, TOP_TOKENS)[0]

    @property
    def name(self) -> str:
        """What is read, for the record."""
        if self.full_vocabulary:
            return "all logits"
        if self.random_probes is not None:
            return f"{self.random_probes} random probes"
        return f"top {self.top_k}" if self.tokens is None else "given tokens"


def read_out(
    model: nn.Module,
    encoded: Encoded,
    method: Any,
    selection: ParameterSelection,
    readout: Readout,
    *,
    by: str | None = None,
    blocks: bool = False,
    others: Sequence[ParameterSelection] = (),
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the kernel between prompts, as the fields of a `KernelMeasurement`.

    Args:
        model: in evaluation mode.
        encoded: the prompts.
        method: the estimator.
        selection: the parameters.
        readout: the logits.
        by: `layer` for the shares of layers and parts.
        blocks: whether to keep K itself.
        others: further selections, in the same pass where the estimator can.

    Returns:
        `norms` and `tokens`, and what was asked for of `parts`, `blocks` and `errors`; and those
        of every other selection, as it is written.

    Raises:
        UserError: if blocks, parts or further selections are asked for where there are none.
    """
    ids = [torch.tensor(row) for row in encoded.input_ids]
    if readout.full_vocabulary or readout.random_probes is not None:
        if by is not None or blocks or others:
            raise UserError(
                "all logits have no blocks to keep, to split by layer or by selections: "
                "use top tokens"
            )
        return _all_logits(model, ids, method, selection, readout), {}
    tokens = tokens_read(model, ids, readout)
    probes = [Probe(row, tokens=block) for row, block in zip(ids, tokens, strict=True)]
    if by is None and hasattr(method, "norms"):
        first, *more = (
            _estimated(method, model, probes, each, tokens, blocks) for each in (selection, *others)
        )
        return first, {str(each): found for each, found in zip(others, more, strict=True)}
    parts: dict[str, Any] = {}
    if others:
        require(by is None, "by='layer' splits one selection: ask for selections= without it")
        found = kernel.blocks_by_selection(method, model, probes, [selection, *others])
    else:
        whole, parts["parts"] = _blocks_and_parts(method, model, probes, selection, by)
        found = {str(selection): whole}
    fields = {
        written: {
            "norms": kernel.norms(each).cpu(),
            "tokens": tokens.cpu(),
            "blocks": each.float().cpu() if blocks else None,
        }
        for written, each in found.items()
    }
    return {**fields[str(selection)], **parts}, {str(s): fields[str(s)] for s in others}


def _estimated(
    method: Any,
    model: nn.Module,
    probes: list[Probe],
    selection: ParameterSelection,
    tokens: Tensor,
    blocks: bool,
) -> dict[str, Any]:
    """Return norms and their errors from an estimator that has some: those of K̂ are too large."""
    norms, errors = method.norms(model, probes, selection)
    kept = method(model, probes, selection).float() if blocks else None
    return {"norms": norms, "errors": errors, "tokens": tokens.cpu(), "blocks": kept}


def tokens_read(model: nn.Module, ids: list[Tensor], readout: Readout) -> Tensor:
    """Return the tokens that each prompt's block is of, `[n, k]`."""
    if readout.tokens is not None:
        readout.in_batches(lambda size: check_logits(model, ids, size))
        return _spread(readout.tokens, len(ids))
    return torch.stack(
        readout.in_batches(lambda size: kernel.top_tokens(model, ids, readout.top_k, size))
    )


def _all_logits(
    model: nn.Module,
    ids: list[Tensor],
    method: Any,
    selection: ParameterSelection,
    readout: Readout,
) -> dict[str, Any]:
    """Return norms over all logits, with errors where they are estimated."""
    if readout.full_vocabulary:
        norms = full_vocabulary_norms(model, ids, selection, estimator=method)
        return {"norms": norms.cpu(), "tokens": None}
    probes: Any = readout.random_probes
    estimate = random_probe_norms(model, ids, selection, probes=probes, estimator=method)
    # An unbiased estimate of a small square may be negative; its root is then 0, not NaN.
    positive = estimate.squared > 0
    errors = torch.where(positive, estimate.norm_error, estimate.error.sqrt())
    norms = estimate.squared.clamp(min=0).sqrt()
    return {"norms": norms.cpu(), "tokens": None, "errors": errors.cpu()}


def _blocks_and_parts(
    method: Any,
    model: nn.Module,
    probes: list[Probe],
    selection: ParameterSelection,
    by: str | None,
) -> tuple[Tensor, pd.DataFrame | None]:
    """Return K, and with `by` the table of its parts.

    Raises:
        UserError: if this estimator has no parts.
    """
    if by is None:
        return method(model, probes, selection), None
    if not hasattr(method, "by_part"):
        raise UserError(
            f"{type(method).__name__} cannot split the kernel by layer: use gram or dense"
        )
    pieces = method.by_part(model, probes, selection)
    blocks = sum(pieces.values(), torch.zeros(()))  # stacked, all parts would be there twice
    return blocks, pd.concat(
        [_part_rows(part, piece, blocks) for part, piece in pieces.items()], ignore_index=True
    )


def _part_rows(part: Any, piece: Tensor, blocks: Tensor) -> pd.DataFrame:
    """Return one part's rows; `share` is ⟨K_part, K⟩ / ‖K‖², which sums to 1 over the parts.

    Where K is 0 (the head alone, of prompts that share no token), no part has a share of it.
    """
    observed, updated = (t.reshape(-1).numpy() for t in rows_and_columns(len(blocks)))
    whole = kernel.norms(blocks).square()
    inner = torch.einsum("aibj,aibj->ab", piece, blocks)
    share = torch.where(whole > 0, inner / whole, torch.zeros_like(whole))
    return pd.DataFrame(
        {
            "observed": observed,
            "updated": updated,
            "layer": part.layer,
            "part": part.kind,
            "norm": kernel.norms(piece).reshape(-1).cpu().numpy(),
            "share": share.reshape(-1).cpu().numpy(),
        }
    )


def rows_and_columns(n: int) -> tuple[Tensor, Tensor]:
    """Return the row and the column number of every entry of an `[n, n]` matrix."""
    row = torch.arange(n)
    return row[:, None].expand(n, n), row[None].expand(n, n)


def _spread(tokens: Tokens, n: int) -> Tensor:
    """Return token ids as `[n, k]`.

    Raises:
        UserError: if they are of another shape.
    """
    try:
        given = torch.as_tensor(tokens)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError("tokens= takes k ids, or k ids for every prompt") from error
    require(not given.is_floating_point(), f"tokens={tokens!r}: give ids, whole numbers")
    ids = given.long()
    spread = ids.expand(n, -1) if ids.ndim == 1 else ids
    if spread.ndim != 2 or len(spread) != n or not spread.shape[1]:
        raise UserError(f"tokens= has shape {tuple(ids.shape)}: give k ids, or {n} times k ids")
    return spread


def token_id(tokenizer: Any, token: int | str) -> int:
    """Return the id of a token of a block that is given as id or text.

    Raises:
        UserError: if it is no single token.
    """
    ids = (
        [token]
        if isinstance(token, int)
        else tokenizer(token, add_special_tokens=False)["input_ids"]
    )
    if len(ids) != 1 or not 0 <= ids[0] < len(tokenizer):
        raise UserError(
            f"{token!r} is not one token of this model but {list(ids)}: give texts or ids that are"
        )
    return int(ids[0])
