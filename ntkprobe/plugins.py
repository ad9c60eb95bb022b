"""The folder is the registry: a plug-in is a module `snake_case` holding the class `SnakeCase`."""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from .errors import UserError


def names(package: ModuleType) -> list[str]:
    """Return the names of the plug-ins in `package`: its public modules and subpackages, sorted."""
    return sorted(m.name for m in iter_modules(package.__path__) if not m.name.startswith("_"))


def load(package: ModuleType, name: str) -> Any:
    """Return the plug-in class that `package` holds under `name`.

    Args:
        package: the folder, as an imported package, such as `ntkprobe.estimators`.
        name: the module's name, such as `finite_difference`.

    Returns:
        The class `FiniteDifference` of the module `finite_difference`.

    Raises:
        UserError: if there is no such module.
    """
    if name not in names(package):
        raise UserError(f"no {name!r} in {package.__name__}: choose from {names(package)}")
    module = import_module(f"{package.__name__}.{name}")
    return getattr(module, "".join(word.capitalize() for word in name.split("_")))
