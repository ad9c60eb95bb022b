"""Parts of a long measurement, kept in a folder so that a measurement that was stopped goes on."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..settings import require_same_settings
from ..storage import read_tensors, write_json, write_tensors


class StoredParts:
    """Tensors that are computed once and read from a folder afterwards."""

    def __init__(self, folder: Path, depends_on: Mapping[str, Any]) -> None:
        """Open or begin a folder.

        Args:
            folder: where parts are kept; made if it is not there.
            depends_on: everything that the parts depend on, as JSON can hold it.

        Raises:
            UserError: if the folder holds parts of another measurement.
        """  # ruff: ignore[docstring-extraneous-exception]
        self.folder = folder
        record = folder / "depends_on.json"
        if not record.is_file():
            write_json(record, dict(depends_on))
        recorded = json.loads(record.read_text())
        asked = json.loads(json.dumps(dict(depends_on)))
        instead = "take another folder, or remove it"
        require_same_settings(folder, "measured", recorded, asked, both=True, instead=instead)

    def get(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return a part, which is computed and stored if it is not there.

        Args:
            name: of the part, as a file's name.
            compute: returns its tensors.

        Returns:
            The tensors by name, on the CPU.
        """
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            tensors = compute()
            write_tensors(path, {key: each.cpu().contiguous() for key, each in tensors.items()})
        return {key: torch.from_numpy(array) for key, array in read_tensors(path).items()}


class NoStorage:
    """Takes the place of `StoredParts` where nothing is kept."""

    def get(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return what `compute` returns."""
        del name
        return compute()


Parts = StoredParts | NoStorage
NO_STORAGE = NoStorage()
