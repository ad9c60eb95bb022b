"""Resizes a base's embeddings to the number of rows that an adapter was trained with."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UserError, one_line
from ..models.architecture import embedding, head
from ..models.peft_modules import parameter_locations
from .headers import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sizes = dict[str, torch.Size]


def resize(base: "PreTrainedModel", written: dict[str, Tensor], config: Any, folder: Path) -> Sizes:
    """Give the base as many rows of embeddings as an adapter's tensors have.

    Args:
        base: the model, changed in place; the values of new rows are arbitrary.
        written: the adapter's tensors, by the names that those of the base have in it.
        config: the adapter's configuration.
        folder: the adapter; its tokenizer, if it has one, tells how many tokens there are.

    Returns:
        The shape that each parameter of the base had, by name.

    Raises:
        UserError: if the rows needed are more than the base has and the adapter holds.
    """
    sizes = {location.name: location.parameter.shape for location in parameter_locations(base)}
    ends = _ends(base)
    rows = int(next(iter(ends.values()), torch.empty(0)).shape[0])
    found = {name: _rows(name, written) for name in ends}
    wanted = {count for counts in found.values() for count in counts} - {rows}
    if len(wanted) > 1:
        raise UserError(f"{folder.name}: its embeddings have {sorted(wanted)} rows: not one size")
    now = wanted.pop() if wanted else rows
    _require_rows(now, rows, config, folder)
    if now != rows:
        try:
            with torch.random.fork_rng(devices=[]):
                base.resize_token_embeddings(now, mean_resizing=False)
        except (ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
            raise UserError(
                f"{folder.name} was trained with {now} rows of embeddings, and the base has "
                f"{rows}, which cannot be resized: {one_line(error)}"
            ) from error
    return sizes


def _ends(base: "PreTrainedModel") -> dict[str, Tensor]:
    """Return the matrices of the embedding and the head, by the names of their modules."""
    modules = [module for module in (embedding(base), head(base)) if module is not None]
    return {
        name: matrix
        for name, module in base.named_modules(remove_duplicate=False)
        if any(module is end for end in modules)
        and isinstance(matrix := getattr(module, "weight", None), Tensor)
    }


def _rows(name: str, written: dict[str, Tensor]) -> set[int]:
    """Return how many rows an adapter's tensors give a matrix of the base: whole, or by LoRA."""
    whole = (f"{name}.weight", f"{name}.lora_B.weight")
    counts = {int(written[key].shape[0]) for key in whole if key in written}
    table = written.get(f"{name}.lora_embedding_A")
    return counts | ({int(table.shape[1])} if table is not None else set())


def _require_rows(now: int, rows: int, config: Any, folder: Path) -> None:
    """Raise if tokens have no row.

    Raises:
        UserError: saying how many tokens and rows there are.
    """
    where = f"the base has {rows} rows of embeddings"
    cure = "save it with save_embedding_layers=True, or give the resized base with --model"
    trained: Any = getattr(config, "trainable_token_indices", None) or []
    each = trained.values() if isinstance(trained, dict) else [trained]
    highest = max((token for some in each for token in some), default=-1)
    if highest >= now:
        raise UserError(f"{folder.name} trains the token {highest}; {where}: {cure}")
    tokens = _tokens(folder)
    if tokens > now:
        raise UserError(
            f"{folder.name}: its tokenizer has {tokens} tokens; {where} and the adapter holds no "
            f"resized ones: {cure}"
        )


def _tokens(folder: Path) -> int:
    """Return how many tokens the tokenizer in a folder has with those added to it, 0 for none."""
    ids = [-1]
    if (folder / "tokenizer.json").is_file():
        added: Any = read_json(folder / "tokenizer.json", limit=512 << 20).get("added_tokens") or []
        ids += [token.get("id", -1) for token in added if isinstance(token, dict)]
    if (folder / "added_tokens.json").is_file():
        ids += list(read_json(folder / "added_tokens.json").values())
    return max(token for token in ids if isinstance(token, int)) + 1
