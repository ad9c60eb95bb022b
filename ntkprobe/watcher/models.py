"""From a checkpoint to a model in memory, with one base kept for all adapters of a run."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints import (
    LoadSettings,
    adapted,
    base_folder_of,
    load_checkpoint,
    load_model,
    load_tokenizer,
    named_identity,
    weights_digest,
)
from ..errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Models:
    """Loads the models of one run.

    Args:
        named: the model that the user named, if any.
        load: how.
        merge: whether adapters are folded into the base.
    """

    def __init__(
        self, named: str | None, load: LoadSettings | None = None, *, merge: bool = True
    ) -> None:
        self.name = named
        self.load = load or LoadSettings()
        self.merge = merge
        self.adapts = False  # whether the run's checkpoints are adapters
        self._base: PreTrainedModel | None = None
        self._digest = ""  # of the base as it was loaded

    def learn_base(self, adapter: Path) -> None:
        """Take the base that an adapter's configuration names, unless the user named one.

        Args:
            adapter: a checkpoint with `adapter_config.json`.

        Raises:
            UserError: if it names no local folder: what a checkpoint says is fetched from nowhere.
        """  # ruff: ignore[docstring-extraneous-exception]
        self.adapts = True
        if self.name is None:
            self.name = str(base_folder_of(adapter))

    def base_identity(self) -> tuple[str, str] | None:
        """Return name and identity of the base, if one is known; of one on the hub by its name.

        Raises:
            UserError: if its folder holds no whole model.
        """  # ruff: ignore[docstring-extraneous-exception]
        if self.name is None:
            return None
        return shown_as(self.name), named_identity(self.name) or f"hub:{self.name}"

    def base(self) -> "PreTrainedModel":
        """Return the model below the adapters, loaded once.

        Raises:
            UserError: if no base is known.
        """
        if self.name is None:
            raise UserError("no base model is known: give it with --model")
        if self._base is None:
            self._base = load_model(self.name, self.load)
            self._digest = weights_digest(self._base)
        return self._base

    @contextmanager
    def opened(self, pin: Path, kind: str) -> Generator["nn.Module", None, None]:
        """Load a pinned checkpoint.

        Args:
            pin: its folder; not needed any more once the block has begun.
            kind: `full` or `adapter`.

        Yields:
            The model.
        """
        if kind == "full":
            self._base = None  # a run of full models keeps no second one in memory
            yield load_checkpoint(pin, self.load)
            return
        try:
            with adapted(self.base(), pin, merge=self.merge) as model:
                yield model
        finally:
            # The next adapter is for the base as it was, and for no other: else it is loaded anew.
            if self._base is not None and weights_digest(self._base) != self._digest:
                self._base = None

    def tokenizer(self, *folders: Path) -> "PreTrainedTokenizerBase":
        """Return the tokenizer of the first folder that has one, else that of the named model.

        Raises:
            UserError: if there is none.
        """
        for folder in folders:
            if (folder / "tokenizer_config.json").is_file():
                return load_tokenizer(folder)
        if self.name is None:
            raise UserError(
                "the checkpoints hold no tokenizer: name a model that has it with --model"
            )
        return load_tokenizer(self.name, local=False)


def shown_as(model: str | Path) -> str:
    """Return where a model is: its full path, a hub name, or `package:…` if it comes with us."""
    if not Path(model).exists():
        return str(model)
    package, full = Path(__file__).resolve().parents[1], Path(model).resolve()
    if not full.is_relative_to(package):
        return str(full)
    place = full.relative_to(package)
    return f"package:{package.name}.{place.parts[0]}/{'/'.join(place.parts[1:])}"
