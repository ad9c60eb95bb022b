"""Ways to compute all blocks of the kernel, one file each; the folder is the registry."""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Return an estimator's module, imported now (PEP 562): `ntk.estimators.gram`.

    Raises:
        AttributeError: if there is no such estimator.
    """
    from .. import plugins

    package = import_module(__name__)
    if name not in plugins.names(package):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
