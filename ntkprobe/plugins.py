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


def instance(package: ModuleType, given: Any) -> Any:
    """Return a plug-in ready to be called.

    Args:
        package: the folder, as an imported package.
        given: a name, for the plug-in with its defaults, or an instance.

    Returns:
        The instance.

    Raises:
        UserError: if there is no such name, or what is given is a class or cannot be called.
    """
    if isinstance(given, str):
        return load(package, given)()
    if isinstance(given, type):
        raise UserError(f"{given.__name__} is a class: give an instance, as {given.__name__}()")
    if not callable(given):
        raise UserError(f"{given!r} is none of {package.__name__}: give one of {names(package)}")
    return given
