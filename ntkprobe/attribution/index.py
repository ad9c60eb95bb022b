"""Projected gradients of all pairs at one checkpoint, as one file that is read in place.

INDEX/step-00000100.safetensors    features [pairs, parts, size] float16, scales [pairs] float32
INDEX/step-00000100.json           what they are: parameters, projection, pairs, checkpoint

A pair's features are divided by its scale, their largest absolute value, so that half precision
holds them to three digits whatever the gradient's size.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from safetensors import safe_open
from torch import Tensor

from ..models.projections import ProjectionSettings
from ..storage import replacing
from .pair_blocks import PairBlocks, require_recorded, settle

_PAIRS_AT_ONCE = 1024
OTHER_INDEX = "give another --index folder"


def as_stored(features: Float[Tensor, "rows parts size"]) -> dict[str, Tensor]:
    """Return features in half precision, with the scale of each pair."""
    scales = features.flatten(1).abs().amax(1).float().clamp(min=torch.finfo(torch.float32).tiny)
    return {"features": (features / scales[:, None, None]).half(), "scales": scales}


def describe(
    path: Path, step: int, which: str, pairs: str, parameters: str, how: ProjectionSettings
) -> None:
    """Write the description of an index, or compare with the one that is there.

    Args:
        path: its JSON file.
        step: of the checkpoint.
        which: the checkpoint's identity.
        pairs: the digest of the pairs' tokens.
        parameters: the selection.
        how: the projection.
    """
    record = {
        "step": step,
        "checkpoint": which,
        "parameters": parameters,
        "projection": asdict(how),
        "pairs": pairs,
        "tensors": {
            "features": "[pairs, parts, size] float16: projected gradients over their scale",
            "scales": "[pairs] float32",
        },
    }
    settle(path, record, what="the index", instead=OTHER_INDEX)


def compare(path: Path, which: str, pairs: str, how: ProjectionSettings) -> None:
    """Compare the description of an index, if there is one, with what it is to be used for.

    Args:
        path: its JSON file.
        which: the checkpoint's identity.
        pairs: the digest of the pairs' tokens, and of what else their features depend on.
        how: the projection.

    Raises:
        UserError: if it was made of something else.
    """  # ruff: ignore[docstring-extraneous-exception]
    wanted = {"checkpoint": which, "pairs": pairs, "projection": asdict(how)}
    require_recorded(path, wanted, what="the index", instead=OTHER_INDEX)


def tensor_bytes(pairs: int, features: int) -> tuple[int, int]:
    """Return the bytes of an index's two tensors: features and scales.

    Args:
        pairs: how many pairs.
        features: of a pair, all parts together.
    """
    return 2 * pairs * features, 4 * pairs


def merge(blocks: PairBlocks, step: int, path: Path) -> None:
    """Write all blocks of a step as one safetensors file, one block in memory at a time."""
    first = blocks.read(step, 0)["features"]
    shape = [blocks.pairs, *first.shape[1:]]
    size, rest = tensor_bytes(blocks.pairs, first[0].numel())
    header = {
        "features": {"dtype": "F16", "shape": shape, "data_offsets": [0, size]},
        "scales": {"dtype": "F32", "shape": [blocks.pairs], "data_offsets": [size, size + rest]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin where 8 bytes do
    with replacing(path) as hidden, hidden.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ("features", "scales"):
            for block in blocks.each(step):
                file.write(block[name].contiguous().numpy().tobytes())


class Index:
    """The index of one checkpoint, on disk or in memory.

    Args:
        source: its file, or the blocks and the step that it would be made of.
    """

    def __init__(self, source: Path | tuple[PairBlocks, int]) -> None:
        self.source = source

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features and scales of some pairs at a time."""
        if not isinstance(self.source, Path):
            blocks, step = self.source
            yield from ((block["features"], block["scales"]) for block in blocks.each(step))
            return
        with safe_open(self.source, "pt") as file:
            features, scales = file.get_slice("features"), file.get_tensor("scales")
            for start in range(0, len(scales), _PAIRS_AT_ONCE):
                end = min(start + _PAIRS_AT_ONCE, len(scales))
                yield features[start:end], scales[start:end]

    def products(
        self, queries: Float[Tensor, "m parts size"]
    ) -> tuple[Float64[Tensor, "m n"], Float64[Tensor, "m n"]]:
        """Return estimated inner products with every pair's gradient, and their standard errors.

        Args:
            queries: the projected gradients of m prompts, with the same projections.
        """
        found: list[tuple[Tensor, Tensor]] = []
        for features, scales in self._chunks():
            parts = torch.einsum("mrs,nrs->rmn", queries.float(), features.float()).double()
            parts *= scales.double()
            error = parts.std(0, correction=1) / len(parts) ** 0.5
            found.append((parts.mean(0), error))
        means, errors = zip(*found, strict=True)
        return torch.cat(means, 1), torch.cat(errors, 1)


def description(folder: Path, step: int) -> Path:
    """Return the JSON file of a step's index."""
    return folder / f"step-{step:08d}.json"


def features_file(folder: Path, step: int) -> Path:
    """Return the file of a step's features."""
    return folder / f"step-{step:08d}.safetensors"
