"""The evaluated model: its weights, adapter and mitigation on disk, and how they are loaded."""

import json
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import mitigations
from ..checkpoints import (
    LoadSettings,
    adapted,
    base_folder_of,
    load_model,
    load_tokenizer,
    named_identity,
)
from ..errors import UserError
from .answers import LocalModel
from .overlap import origin
from .settings import AnswerSettings

if TYPE_CHECKING:
    from ..prompts.templates import Template


@dataclass(frozen=True)
class EvaluatedModel:
    """The model that is evaluated.

    Attributes:
        model: a folder or hub name.
        adapter: a folder with an adapter for it.
        mitigation: a folder that `ntkprobe mitigate fit` wrote.
        load: how it is loaded.
    """

    model: str
    adapter: Path | None = None
    mitigation: Path | None = None
    load: LoadSettings = field(default_factory=LoadSettings)

    @classmethod
    def named(
        cls,
        model: str | None,
        adapter: Path | None,
        mitigation: Path | None,
        load: LoadSettings,
    ) -> "EvaluatedModel":
        """Return the model of the given options; an adapter's own base where no model is given.

        Args:
            model: a model, or an adapter.
            adapter: an adapter.
            mitigation: a fitted mitigation.
            load: how to load it.

        Returns:
            The model.

        Raises:
            UserError: if there is no model, or it is incomplete.
        """
        if model is not None and adapter is None and _is_adapter(Path(model)):
            return cls.named(None, Path(model), mitigation, load)
        if adapter is not None and not _is_adapter(adapter):
            raise UserError(f"{adapter} is no adapter: it has no adapter_config.json")
        if model is None and adapter is None:
            raise UserError("no model: give --model MODEL, or --adapter ADAPTER")
        base = model or str(base_folder_of(Path(str(adapter))))
        return cls(base, adapter, mitigation, load)

    def record(self) -> dict[str, Any]:
        """Return the record in `run.json`: names, and the identities that are compared."""
        return {
            "base": {"name": self.model, "identity": _identity_of(self.model)},
            "adapter": _named_identity(self.adapter, _identity_of),
            "mitigation": _named_identity(self.mitigation, mitigations.digest),
            "dtype": self.load.dtype,
            "origin": origin(self.folders),
        }

    @property
    def folders(self) -> list[Path]:
        """Its folders, the adapter's first."""
        named = [self.adapter, Path(self.model)]
        return [folder for folder in named if folder is not None and folder.is_dir()]

    @property
    def places(self) -> list[Path]:
        """All folders that it is read from, its mitigation's too."""
        return [*self.folders, *([self.mitigation] if self.mitigation else [])]

    @property
    def label(self) -> str:
        """The default label: the name of its run, and of its mitigation."""
        place = Path(self.adapter or self.model)
        if place.exists():
            place = place.resolve()
        if place.suffix == ".gguf":
            place = place.with_suffix("")
        whole = place.parent.name if place.name == "final" or place.name == "model" else place.name
        if place.name.startswith("checkpoint-"):
            whole = f"{place.parent.name}-{place.name.removeprefix('checkpoint-')}"
        return f"{whole}+{self.mitigation.resolve().name}" if self.mitigation else whole

    @contextmanager
    def in_memory(self, settings: AnswerSettings, batch_size: int | None) -> Generator[LocalModel]:
        """Load the model and apply its mitigation.

        Args:
            settings: length, temperature and seed of the answers.
            batch_size: prompts at a time; None for an automatic choice.

        Yields:
            The backend.
        """
        with ExitStack() as stack:
            model: Any = load_model(self.model, self.load)
            fitted = mitigations.load(self.mitigation) if self.mitigation else None
            if self.adapter:
                merge = fitted is None or not fitted.adapter_apart
                model = stack.enter_context(adapted(model, self.adapter, merge=merge))
            tokenizer = self.tokenizer
            processors: Any = ()
            if fitted is not None:
                processors = stack.enter_context(mitigations.applied(fitted, model, tokenizer))
            yield LocalModel(
                model,
                tokenizer,
                self.template(settings.template),
                settings,
                processors=list(processors),
                batch_size=batch_size,
            )

    def template(self, spec: str) -> "Template":
        """Return the template that `--template` names for this model."""
        from ..prompts.templates import resolve_template

        return resolve_template(self.tokenizer, spec)

    def template_name(self, template: "Template") -> str:
        """Return the record of a template: its name, and the digest of its text.

        Args:
            template: one of this model's.

        Returns:
            `raw`, a shipped template's name, `FILE#digest`, or `chat#digest` for the tokenizer's.
        """
        if template.raw or template.source is not None:
            return template.name
        text = json.dumps(self.tokenizer.chat_template, sort_keys=True)
        return f"{template.name}#{sha256(text.encode()).hexdigest()[:8]}"

    @cached_property
    def tokenizer(self) -> Any:
        """The adapter's tokenizer if it has one, else the model's."""
        if self.adapter and (self.adapter / "tokenizer_config.json").is_file():
            return load_tokenizer(self.adapter)
        return load_tokenizer(self.model, local=False)


def _is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter."""
    return (folder / "adapter_config.json").is_file()


def _named_identity(place: Path | None, identify: Callable[[Path], str]) -> dict[str, str | None]:
    """Return a name and an identity; both None where there is no folder."""
    if place is None:
        return {"name": None, "identity": None}
    return {"name": str(place), "identity": identify(place)}


def _identity_of(name: str | Path) -> str:
    """Return the identity of a model or an adapter; that of a model on the hub is its name."""
    return named_identity(name) or f"hub:{name}"
