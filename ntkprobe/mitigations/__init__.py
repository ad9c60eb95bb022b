"""Inference-time remedies for over-refusal, a file each; the folder is the registry.

A method is a frozen dataclass of settings. `fit` gives a copy that carries what it learned from
prompts, `save` and `load` keep that on disk, and `applied` is the one way to use it:

    with applied(mitigation, model, tokenizer) as processors:
        model.generate(**inputs, logits_processor=processors)

What a method has to provide is described in `base`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ..lazy_imports import names_of

if TYPE_CHECKING:
    from .base import Decoding as Decoding
    from .base import Mitigation as Mitigation
    from .base import Steering as Steering
    from .base import applied as applied
    from .base import learned as learned
    from .storage import digest as digest
    from .storage import load as load
    from .storage import save as save

_HOMES = {
    "Decoding": "base",
    "Mitigation": "base",
    "Steering": "base",
    "applied": "base",
    "digest": "storage",
    "learned": "base",
    "load": "storage",
    "save": "storage",
}
__all__ = sorted([*_HOMES, "names"])


def names() -> list[str]:
    """Return the names of all methods."""
    from .. import plugins

    return plugins.names(import_module(__name__))


__getattr__ = names_of(__name__, _HOMES)
